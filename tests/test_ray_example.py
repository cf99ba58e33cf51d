"""The Ray example without Ray: each block is run once more, as Ray does it when an actor dies."""

import asyncio
import json
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from onellm_async.server import ServerSettings
from onellm_async.testing import ThreadedServer

ROOT = Path(__file__).parents[1]


class Blocks:
    """What the example uses of a data set."""

    def __init__(self, rows: list[dict[str, str]]) -> None:
        self._rows = rows

    def map_batches(self, actor: type, *, fn_constructor_kwargs: dict[str, object], **how: object) -> "Blocks":
        assert how["batch_size"] == 1

        async def run() -> list[dict[str, str]]:
            found = []
            for row in [*self._rows, *self._rows]:
                columns = await actor(**fn_constructor_kwargs)({"shard": [row["shard"]]})
                found.append({name: values[0] for name, values in columns.items()})
            return found[len(self._rows) :]

        return Blocks(asyncio.run(run()))

    def take_all(self) -> list[dict[str, str]]:
        return self._rows


def from_items(rows: list[dict[str, str]], *, override_num_blocks: int) -> Blocks:
    assert override_num_blocks == len(rows)
    return Blocks(rows)


def test_the_example_answers_each_prompt_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ray = ModuleType("ray")
    ray.init = lambda **_: None  # type: ignore[attr-defined]
    ray.data = SimpleNamespace(from_items=from_items, ActorPoolStrategy=lambda size: size)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.syspath_prepend(ROOT / "examples")
    monkeypatch.setenv("ONELLM_QUOTA_DIR", str(tmp_path))
    tmp_path.chmod(0o700)
    (tmp_path / "prompts.txt").write_text("".join(f"p{number}\n" for number in range(7)))
    with ThreadedServer(ServerSettings(requests_per_minute=60_000, burst=1000)) as server:
        monkeypatch.setenv("ONELLM_API_KEY", "any")
        monkeypatch.setenv("ONELLM_BASE_URL", server.url)
        arguments = [
            *("ray_shards.py", str(tmp_path / "prompts.txt"), str(tmp_path / "shards")),
            *("-o", str(tmp_path / "out.jsonl"), "--rpm", "60000", "--burst", "1000", "--prompts-per-shard", "3"),
        ]
        monkeypatch.setattr(sys, "argv", arguments)
        assert import_module("ray_shards").main() == 0
        assert server.ledger.billed == 7
    monkeypatch.delitem(sys.modules, "ray_shards")
    answers = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [answer["response"]["content"] for answer in answers] == [f"p{number}" for number in range(7)]
    assert "7 answered" in capsys.readouterr().out
