"""`RedisQuota`: one board for the processes of many hosts, in Redis or Valkey."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import suppress
from hashlib import sha1
from math import ceil
from operator import itemgetter
from random import Random
from secrets import token_hex
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from attrs import evolve, field, frozen

from onellm_async.chat import JSON
from onellm_async.errors import ConfigurationError
from onellm_async.limits.quota import Declaration, Demand, Grant
from onellm_async.quota.board import Board
from onellm_async.quota.controls import GeneralControl, declared_limit
from onellm_async.quota.names import ParticipantName
from onellm_async.quota.redis_board import (
    ENTER,
    EXPORT,
    REPLACE,
    Computed,
    Lead,
    needs_python,
    read_grant,
    read_reply,
    visit_arguments,
    visit_script,
)
from onellm_async.quota.versions import NewerBoardError, read_board, write_board
from onellm_async.quota.visit_message import PostedVisit, dump_grant
from onellm_async.wire import dump_json, parse_json

if TYPE_CHECKING:
    from redis.asyncio import Redis

__all__ = ["RedisMember", "RedisQuota"]

TIMEOUT = 0.5
"""Seconds that a connection or a reply may take. A visit is not repeated: it would take permits twice."""
LEAVE_TIMEOUT = 0.5
"""Seconds that a client which closes tries to remove its row."""
MAX_CONFLICTS = 20
"""Times in a row that another participant was faster in a compare-and-set, after which the visit fails."""
LOCK_SECONDS = 0.1
"""Seconds after which the lock of a leader that died is free. A visit in Python holds it for a few milliseconds."""
LOCK_PATIENCE = 1.5
"""Seconds without a reply or the lock after which the visit fails."""
KEPT = 5.0
"""Seconds after which Redis forgets posted visits and replies that are not taken."""
MIN_TTL = 3600
"""Seconds after the last visit for which Redis keeps a board, at least."""
SCHEMES = {"redis", "rediss", "unix"}


@frozen(repr=False)
class RedisQuota:
    """One quota for all processes that use the same key and reach the same Redis: ``quota="redis://HOST:PORT"``.

    Needs the extra ``redis``, and Redis 6 or Valkey. All it keeps there is one small value for each key, whose name is
    a hash of URL and key, and for milliseconds its lock and what visitors pass each other. A password in the URL is
    never shown; ``ONELLM_QUOTA`` keeps it out of ``ps``.

    Args:
        url: ``redis://``, ``rediss://`` (TLS) or ``unix://``, as in redis-py.
        prefix: Beginning of the names in Redis.

    Raises:
        ConfigurationError: If the URL is not one of Redis.
    """

    url: str = field()
    prefix: str = "onellm"

    def __attrs_post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            _ = parts.port
        except ValueError:
            parts = urlsplit("")
        if parts.scheme not in SCHEMES or not (parts.hostname or parts.scheme == "unix"):
            raise ConfigurationError(
                f"The quota {self.place!r} is not a URL of Redis.", advice="It has the form redis://HOST:PORT/DATABASE."
            )

    def __repr__(self) -> str:
        return f"RedisQuota({self.place!r}, prefix={self.prefix!r})"

    @property
    def kind(self) -> str:
        """``"redis"``."""
        return "redis"

    @property
    def place(self) -> str:
        """The URL without user name, password and options."""
        try:
            parts = urlsplit(self.url)
            port = "" if parts.port is None else f":{parts.port}"
        except ValueError:
            return "redis://…"
        return f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}"

    def check(self) -> None:
        """Tells whether the extra is installed and the URL can be used. Connects to nothing.

        Raises:
            ConfigurationError: If not.
        """
        _ = self._client()

    def join(self, name: str, declaration: Declaration, random: Random) -> "RedisMember":
        """Access for one client."""
        return RedisMember(self._client(), self.key(name), self.place, declaration, random)

    def key(self, name: str) -> str:
        """Key of the board `name` in Redis. The braces put it into one slot of a cluster."""
        return f"{self.prefix}:{{{name}}}:board"

    async def read(self, name: str) -> Mapping[str, JSON] | None:
        """The board `name` as it is now, without visiting it; None if there is none.

        Raises:
            ConfigurationError: If Redis cannot be reached.
        """
        client = self._client()
        try:
            text, _, now = await client.eval(EXPORT, 1, self.key(name))
        except (OSError, _redis_error()) as error:
            raise ConfigurationError(f"The quota in {self.place} could not be read: {error}") from None
        finally:
            await client.aclose()
        if not text:
            return None
        board: Mapping[str, JSON] = parse_json(text)
        return {**board, "now": float(now)}

    def _client(self) -> "Redis":
        try:
            from redis.asyncio import Redis  # noqa: PLC0415  # only those who use it pay for it
            from redis.asyncio.retry import Retry  # noqa: PLC0415
            from redis.backoff import NoBackoff  # noqa: PLC0415
        except ModuleNotFoundError:
            raise ConfigurationError(
                "A quota in Redis needs the extra 'redis'.", advice="pip install 'onellm-async[redis]'"
            ) from None
        try:
            return Redis.from_url(
                self.url,
                socket_timeout=TIMEOUT,
                socket_connect_timeout=TIMEOUT,
                retry=Retry(NoBackoff(), 0),
                single_connection_client=False,
                max_connections=2,
            )
        except ValueError as error:
            raise ConfigurationError(f"The quota {self.place!r} is not a URL of Redis: {error}") from None


def _redis_error() -> type[Exception]:
    from redis.exceptions import RedisError  # noqa: PLC0415

    return RedisError


def _is_refused(error: BaseException | None) -> bool:
    """Whether Redis wants another password. redis-py wraps what it says while it connects."""
    from redis.exceptions import AuthenticationError, NoPermissionError  # noqa: PLC0415

    while error is not None:
        if isinstance(error, AuthenticationError | NoPermissionError):
            return True
        error = error.__cause__ or error.__context__
    return False


class RedisMember:
    """One client's access to a board in Redis.

    Args:
        client: A client of its own.
        key: Of the board.
        place: Where it is, for messages.
        declaration: The limits of the client.
        random: Source of jitter.
    """

    def __init__(self, client: "Redis", key: str, place: str, declaration: Declaration, random: Random) -> None:
        self._client = client
        self._key = key
        self._keys = [key, f"{key}:lock", f"{key}:posted"]  # of visits in Python
        self._place = place
        self._declaration, self._declared_at = declaration, time.monotonic()
        self._random = random
        self._name = ParticipantName()
        self._task: asyncio.Task[None] | None = None
        self._lifetime: AsyncGenerator[None, None] | None = None
        self._seen = False
        self._general = declared_limit(declaration.limits) is None
        self._image: dict[str, JSON] | None = None
        self._digests: dict[str, str] = {}

    def redeclare(self, declaration: Declaration) -> None:
        """Brings other limits to the board, with the next visit."""
        self._declaration, self._declared_at = declaration, time.monotonic()
        self._general = declared_limit(declaration.limits) is None

    def visit(self, demand: Demand, then: Callable[[Grant], None], failed: Callable[[Exception], None]) -> None:
        """Visits the board; the answer comes later."""
        self._task = asyncio.get_running_loop().create_task(self._visit(demand, then, failed))

    async def _visit(self, demand: Demand, then: Callable[[Grant], None], failed: Callable[[Exception], None]) -> None:
        try:
            async with asyncio.timeout(4 * TIMEOUT):
                grant = await self.transact(demand)
        except Exception as error:  # whatever it is, the queue must not wait for a visit that never returns
            failed(self._translated(error))
            return
        then(grant)

    def _translated(self, error: Exception) -> Exception:
        text = str(error) or f"no reply in {TIMEOUT:g} s"
        if isinstance(error, NewerBoardError):
            return error
        if _is_refused(error):
            return ConfigurationError(
                f"{self._place} refuses the quota: {text}.", advice="Correct the password in quota or ONELLM_QUOTA."
            )
        return ConnectionError(text if text.endswith(".") else f"{text}.")

    async def transact(self, demand: Demand) -> Grant:
        """One visit.

        Raises:
            RedisError: If Redis fails or does not answer in time.
        """
        started = time.monotonic()
        age = started - self._declared_at
        if not self._general:
            arguments = visit_arguments(
                self._name.current(),
                demand,
                self._declaration,
                declared_age=age,
                seen=self._seen,
                draw=self._random.random(),
            )
            reply = await self._run(visit_script(), arguments)
            if not needs_python(reply):
                self._seen = True
                return _since(read_grant(reply), (time.monotonic() - started) / 2)
            tried, started = started, time.monotonic()
            demand, age = demand.aged(started - tried), age + started - tried
        visit = PostedVisit(self._name.current(), demand, self._declaration, age)
        grant = await self._transact_in_python(visit, started)
        self._seen = True
        return grant

    async def _transact_in_python(self, visit: PostedVisit, begun: float) -> Grant:
        visitor, message = token_hex(8), visit.dump()  # not from the client's random: others may have the same seed
        give_up_at = begun + LOCK_PATIENCE
        for _ in range(MAX_CONFLICTS):
            found, travel = await self._enter(visitor, message, give_up_at)
            received = time.monotonic()
            if isinstance(found, Computed):
                self._general = True
                return _since(found.grant, found.age + travel)
            grant = await self._lead(found, visitor, visit, max(0.0, received - travel - begun))
            if grant is not None:
                return _since(grant, time.monotonic() - received + travel)
        raise ConnectionError(f"{MAX_CONFLICTS} other participants were faster.")

    async def _enter(self, visitor: str, message: bytes, give_up_at: float) -> tuple[Lead | Computed, float]:
        """Gets the board with its lock, or the grant that another visitor has computed; and seconds of travel."""
        replies = f"{self._key}:reply:{visitor}"
        arguments = [visitor, _milliseconds(LOCK_SECONDS), message, _milliseconds(KEPT)]
        while True:
            asked = time.monotonic()
            reply: Sequence[bytes] = await self._run(ENTER, arguments, [*self._keys, replies])
            travel = (time.monotonic() - asked) / 2
            if len(reply) > 1:
                return Lead.of(reply), travel
            if reply:
                return read_reply(reply[0]), travel
            # Not all at the same moment: one of them leads then, and the others post their visits with it.
            patience = LOCK_SECONDS * self._random.uniform(1, 1.5)
            popped: Sequence[Any] | None = await self._client.blpop([replies], timeout=patience)
            if popped:
                return read_reply(popped[1]), travel
            if time.monotonic() > give_up_at:
                raise ConnectionError(f"Other participants kept it locked for {LOCK_PATIENCE:g} s.")

    async def _lead(self, found: Lead, visitor: str, visit: PostedVisit, waited: float) -> Grant | None:
        """Computes the posted visits and then `visit`, and writes the board; None if another one was faster.

        Args:
            found: The board.
            visitor: Its own mark.
            visit: Its own visit.
            waited: Seconds that this has waited for the lead.
        """
        now = float(found.clock)
        board = self._board(parse_json(found.image) if found.image else None, now, visit.declared_age + waited)
        replies: list[bytes] = []
        for other, posted in sorted(found.posted, key=itemgetter(1)):  # each begins with the time when it was posted
            if other.decode() != visitor:
                replies += _computed(other, posted, board, now)
        grant = visit.compute(board, now, waited)
        image = write_board(board)
        ttl = max(MIN_TTL, ceil(2 * grant.burst / max(grant.rate, 1e-6)))
        times = [_milliseconds(LOCK_SECONDS), _milliseconds(KEPT), found.clock]
        arguments = [found.digest, dump_json(image), str(ttl), visitor, *times, visitor, b"", *replies]
        if not await self._run(REPLACE, arguments, self._keys):
            return None
        self._image = image
        self._general = board.control.kind == GeneralControl.kind
        return grant

    def _board(self, image: dict[str, JSON] | None, now: float, age: float) -> Board:
        if image is None and self._image is not None:  # Redis lost the board: the first to notice restores it
            board = Board.load(self._image, self._random)
            board.rows.clear()
            board.stop_clock(now)
            return board
        if image is None:
            return Board(self._declaration, now, self._random, age=age, empty=self._seen)
        return read_board(image, self._declaration, now, self._random)

    async def _run(self, script: str, arguments: list[Any], keys: Sequence[str] = ()) -> Any:
        """Runs a script by its digest; sends its text only where Redis does not know it, as after a restart."""
        from redis.exceptions import NoScriptError  # noqa: PLC0415

        if self._lifetime is None:
            self._lifetime = _lifetime(self._client)
            await anext(self._lifetime)
        digest = self._digests.get(script)
        if digest is None:
            digest = self._digests[script] = sha1(script.encode(), usedforsecurity=False).hexdigest()
        keys = keys or [self._key]
        try:
            return await self._client.evalsha(digest, len(keys), *keys, *arguments)
        except NoScriptError:
            return await self._client.eval(script, len(keys), *keys, *arguments)

    def abandon(self) -> None:
        """Drops the connection. The row expires."""
        task, self._task = self._task, None
        if task is not None and not task.get_loop().is_closed():
            task.cancel()

    async def aclose(self, demand: Demand) -> None:
        """Returns permits, removes the row and closes the connection."""
        task, self._task = self._task, None
        if task is not None and not task.done():
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        with suppress(OSError, TimeoutError, _redis_error(), ValueError, LookupError, TypeError):
            async with asyncio.timeout(LEAVE_TIMEOUT):
                if self._seen:
                    await self.transact(evolve(demand, leaving=True))
        if self._lifetime is not None:
            with suppress(OSError, _redis_error()):
                await self._lifetime.aclose()


def _computed(visitor: bytes, posted: bytes, board: Board, now: float) -> Sequence[bytes]:
    """A posted visit, computed: the visitor and its grant; nothing if this version of the package cannot read it."""
    posted_at, _, message = posted.partition(b" ")
    waited = max(0.0, now - float(posted_at))
    if waited > LOCK_PATIENCE:  # the visitor has given up, and reports what it does without the board
        return visitor, b""
    try:
        visit = PostedVisit.load(message)
    except (ConfigurationError, LookupError, TypeError, ValueError):
        visit = None  # it must not fail the visit of the one that leads; its own visitor leads next, or gives up
    return () if visit is None else (visitor, dump_grant(visit.compute(board, now, waited)))


def _milliseconds(seconds: float) -> str:
    return str(int(1000 * seconds))


def _since(grant: Grant, seconds: float) -> Grant:
    """A grant that was computed so many seconds ago: the time of the next visit counts from then."""
    return grant if grant.again_in is None else evolve(grant, again_in=max(0.0, grant.again_in - seconds))


async def _lifetime(client: "Redis") -> AsyncGenerator[None, None]:
    # asyncio.run closes the async generators that are still open before it closes the loop, and with this one the
    # connection, in the loop it belongs to: nothing is left over if the client is never closed.
    try:
        yield
    finally:
        await client.aclose()
