"""`board.lua` and `board.py` are one algorithm in two languages: they decide alike, to the last digit."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from onellm_async.limits.quota import Grant
from onellm_async.quota.board import Board
from onellm_async.quota.redis_board import EXPORT, read_grant, visit_arguments, visit_script
from onellm_async.wire import parse_json
from tests.quota.visits import FixedRandom, Visit, random_visits

lua51 = pytest.importorskip("lupa.lua51", reason="lupa runs the Lua of Redis without a server")

VISITS = int(os.environ.get("ONELLM_LUA_VISITS", "5000"))
"""The gate plays 5,000; ``ONELLM_LUA_VISITS=100000`` is the long run."""

STUBS = """
KEYS, images, stored = {"board"}, {}, nil
local function copy(value)
  if type(value) ~= "table" then return value end
  local found = {}
  for name, item in pairs(value) do found[name] = copy(item) end
  return found
end
cmsgpack = {
  pack = function(value) images[1] = copy(value) return "packed" end,
  unpack = function() return copy(images[1]) end,
}
cjson = {encode = function(text) return '"' .. text .. '"' end}
redis = {
  sha1hex = function() return "" end,
  call = function(command, key, value)
    if command == "GET" then return stored end
    if command == "TIME" then return {0, 0} end
    stored = value
  end,
}
"""


class LuaBoard:
    """The script in an interpreter of the same version as that of Redis."""

    def __init__(self) -> None:
        self._lua = lua51.LuaRuntime(encoding="utf-8")
        self._lua.execute(STUBS)
        compiled: Callable[[str], Any] = self._lua.eval(
            "function(source) local script = assert(loadstring(source)) "
            "return function(arguments) ARGV = arguments return script() end end"
        )
        self._visit, self._export = compiled(visit_script()), compiled(EXPORT)

    def visit(self, visit: Visit, *, seen: bool = False) -> Grant:
        arguments = visit_arguments(
            visit.name,
            visit.demand,
            visit.declaration,
            declared_age=visit.declared_age,
            seen=seen,
            draw=visit.draw,
            now=visit.at,
        )
        return read_grant(list(self._visit(self._lua.table_from(arguments)).values()))

    def image(self) -> Any:
        return parse_json(self._export(self._lua.table_from([]))[1].encode())


class PythonBoard:
    """The same visits in Python."""

    def __init__(self) -> None:
        self.random = FixedRandom()
        self.board: Board | None = None

    def visit(self, visit: Visit) -> Grant:
        self.random.value = visit.draw
        if self.board is None:
            self.board = Board(visit.declaration, visit.at, self.random, age=visit.declared_age)
        return self.board.visit(visit.name, visit.demand, visit.at, visit.declaration, visit.declared_age)


def seeds() -> Iterator[tuple[int, int]]:
    each = 250
    for seed in range(-(-VISITS // each)):
        yield seed, each


def test_lua_and_python_return_the_same_grants() -> None:
    for seed, number in seeds():
        lua, python, grants = LuaBoard(), PythonBoard(), []
        for count, visit in enumerate(random_visits(seed, number, grants=grants)):
            expected = python.visit(visit)
            found = lua.visit(visit)
            grants.append(expected)
            assert found == expected, f"seed {seed}, visit {count}: {visit}"


def test_lua_and_python_begin_a_lost_board_alike() -> None:
    for visit in random_visits(5, 1, grants=[]):
        random = FixedRandom()
        random.value = visit.draw
        board = Board(visit.declaration, visit.at, random, age=visit.declared_age, empty=True)
        lua = LuaBoard()
        expected = board.visit(visit.name, visit.demand, visit.at, visit.declaration, visit.declared_age)
        assert lua.visit(visit, seen=True) == expected
        assert lua.image() == board.dump()
        break


def test_lua_and_python_keep_the_same_board() -> None:
    lua, python, grants = LuaBoard(), PythonBoard(), []
    for visit in random_visits(3, 400, grants=grants):
        grants.append(python.visit(visit))
        lua.visit(visit)
    assert python.board is not None
    assert lua.image() == python.board.dump()
    assert Board.load(lua.image(), python.random).dump() == python.board.dump()
