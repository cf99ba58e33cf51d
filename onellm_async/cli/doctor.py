"""``onellm-async doctor``: what stands between this machine and an answer, and what to do about it."""

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated, Literal
from urllib.parse import urlsplit

from attrs import frozen
from cyclopts import App, Parameter

from onellm_async.cli.command import command
from onellm_async.cli.exit_codes import ExitCode
from onellm_async.cli.flag_words import told_in_flags
from onellm_async.cli.general import GENERAL, GeneralFlags
from onellm_async.cli.options import ASKING, CONNECTING, ConnectionFlags, RequestFlags
from onellm_async.cli.terminal import put
from onellm_async.errors import OneLLMError
from onellm_async.formatting import format_usd, pluralize

if TYPE_CHECKING:
    from ssl import SSLContext

_EXAMPLES = """\
Examples:
  onellm-async doctor
  onellm-async doctor --no-call            # sends no chat, so it costs nothing
  onellm-async doctor --local              # of the local server

Prints a line for each check.
"""
_SECONDS = 10.0
"""For each step in the network."""
_MAX_SKEW = 300.0
"""Seconds by which the clock may differ from the service's: dates of certificates and Retry-After depend on it."""
_SPARE_DESCRIPTORS = 64
"""File descriptors for everything but connections."""

Outcome = Literal["ok", "warning", "failed"]


@frozen
class Finding:
    """The result of one check.

    Attributes:
        check: What was looked at.
        outcome: ``"ok"``, ``"warning"`` or ``"failed"``.
        text: What was found, and what to do.
    """

    check: str
    outcome: Outcome
    text: str

    def __str__(self) -> str:
        return f"{self.outcome:<8} {self.check:<12} {self.text}"


def doctor(
    *,
    call: Annotated[
        bool, Parameter(show_default=False, help="Send one chat of a few tokens, which is billed. [default: yes]")
    ] = True,
    asking: RequestFlags = ASKING,
    connecting: ConnectionFlags = CONNECTING,
    general: GeneralFlags = GENERAL,
) -> int:
    """Runs ``onellm-async doctor``.

    Args:
        call: Whether to send a chat.
        asking: The request flags.
        connecting: The connection flags.
        general: The environment, and how much is said.
    """

    async def examine() -> bool:
        failed = False
        async for finding in findings(asking, connecting, call=call):
            put(str(finding))
            failed = failed or finding.outcome == "failed"
        return failed

    with general.applied():
        return ExitCode.FAILED if asyncio.run(examine()) else ExitCode.OK


doctor_command: App = command(
    doctor,
    _EXAMPLES,
    {
        ExitCode.OK: "no check failed",
        ExitCode.FAILED: "a check failed",
    },
)


async def findings(asking: RequestFlags, connecting: ConnectionFlags, *, call: bool) -> AsyncIterator[Finding]:
    """Yields the result of each check. What depends on one that failed is left out.

    Args:
        asking: The request flags; the model of the call is theirs.
        connecting: The connection flags.
        call: Whether to send a chat.
    """
    yield _python()
    yield descriptors_finding(_descriptor_limit(), connecting.concurrency)
    settings = _settings(connecting)
    for finding in settings:
        yield finding
    if any(finding.outcome == "failed" for finding in settings):
        return
    if not connecting.local:
        async for finding in _network(connecting):
            yield finding
            if finding.outcome == "failed":
                return
    if call:
        async for finding in _call(asking, connecting):
            yield finding


def _python() -> Finding:
    from importlib.metadata import version

    return Finding("versions", "ok", f"onellm-async {version('onellm-async')}, Python {sys.version.split()[0]}")


def _descriptor_limit() -> int | None:
    try:
        from resource import RLIMIT_NOFILE, getrlimit
    except ImportError:  # Windows has no such limit
        return None
    return getrlimit(RLIMIT_NOFILE)[0]


def descriptors_finding(limit: int | None, concurrency: int | Literal["auto"]) -> Finding:
    """Whether there are enough file descriptors: each request in flight holds a connection.

    Args:
        limit: Of this process; None where there is none.
        concurrency: Maximum number of requests in flight.

    Example:
        >>> descriptors_finding(256, 400).outcome
        'failed'
    """
    needed = (512 if concurrency == "auto" else concurrency) + _SPARE_DESCRIPTORS
    if limit is None or limit < 0 or limit >= needed:
        return Finding("descriptors", "ok", f"enough for {pluralize(needed - _SPARE_DESCRIPTORS, 'request')} in flight")
    return Finding(
        "descriptors",
        "failed",
        f"{limit} files may be open, and {needed - _SPARE_DESCRIPTORS} requests in flight need {needed}: "
        "raise `ulimit -n`, or lower --concurrency.",
    )


def _settings(connecting: ConnectionFlags) -> list[Finding]:
    from onellm_async.settings import resolve_api_key, resolve_base_url, resolve_proxy, resolve_ssl_context, trust_only

    found: list[Finding] = []

    def check(name: str, value: "object") -> None:
        found.append(Finding(name, "ok", str(value)))

    try:
        if connecting.local:
            check("url", "a local server of this command")
            return found
        key = resolve_api_key(None)
        check("key", f"ONELLM_API_KEY is set, {len(key.authorization().removeprefix('Bearer '))} characters")
        url = resolve_base_url(connecting.base_url, allow_insecure=connecting.allow_insecure)
        check("url", url)
        proxy = resolve_proxy(connecting.proxy, url, trust_env=connecting.trust_env)
        check("proxy", "none" if proxy is None else f"{proxy.url} (from {proxy.source})")
        if connecting.ca_file is not None:
            trust_only(connecting.ca_file, "--ca-file")
        resolve_ssl_context(None)
        check("dialect", connecting.dialect_name)
        limits = connecting.limits()
        rate = "to be discovered" if limits.mode == "discover" else f"{limits.declared_rate:g} requests per minute"
        check("limits", f"{rate}, {connecting.concurrency} in flight")
    except OneLLMError as error:
        found.append(Finding("settings", "failed", told_in_flags(error)))
    return found


async def _network(connecting: ConnectionFlags) -> AsyncIterator[Finding]:
    from onellm_async.settings import resolve_base_url, resolve_proxy, resolve_ssl_context, trust_only

    url = urlsplit(resolve_base_url(connecting.base_url, allow_insecure=connecting.allow_insecure))
    host, port = url.hostname or "", url.port or (443 if url.scheme == "https" else 80)
    if resolve_proxy(connecting.proxy, url.geturl(), trust_env=connecting.trust_env) is not None:
        yield Finding("network", "ok", "left to the proxy")
        return
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(_SECONDS):
            addresses = sorted({address[4][0] for address in await loop.getaddrinfo(host, port)})
    except (OSError, TimeoutError, UnicodeError) as error:
        yield Finding("dns", "failed", f"{host} has no address: {_reason(error)}. Check --base-url and the network.")
        return
    yield Finding("dns", "ok", f"{host} is {', '.join(map(str, addresses))}")
    context = resolve_ssl_context(None) if connecting.ca_file is None else trust_only(connecting.ca_file, "--ca-file")
    begun = loop.time()
    try:
        async with asyncio.timeout(_SECONDS):
            date = await _date_of(host, port, context if url.scheme == "https" else None, tls=url.scheme == "https")
    except (OSError, TimeoutError) as error:
        yield Finding("connect", "failed", f"{host}:{port}: {_reason(error)}. {_advice(error)}")
        return
    yield Finding(
        "connect", "ok", f"{'TLS ' if url.scheme == 'https' else ''}to {host}:{port} in {loop.time() - begun:.2f} s"
    )
    yield clock_finding(date, _now())


async def _date_of(host: str, port: int, context: "SSLContext | None", *, tls: bool) -> str | None:
    """The ``Date`` of a reply; None if the server sends none. No chat is sent, and no key."""
    reader, writer = await asyncio.open_connection(host, port, ssl=(context or True) if tls else None)
    try:
        writer.write(f"HEAD / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        for _ in range(100):
            line = (await reader.readline()).decode("latin-1").strip()
            if not line:
                return None
            if line.lower().startswith("date:"):
                return line[5:].strip()
        return None
    finally:
        writer.close()


def _now() -> float:
    from time import time

    return time()


def clock_finding(date: str | None, now: float) -> Finding:
    """Whether this machine's clock agrees with that of the service.

    Args:
        date: The ``Date`` header of a reply; None without one.
        now: Seconds since 1970.

    Example:
        >>> print(clock_finding("Thu, 01 Jan 1970 00:20:00 GMT", 0.0))
        warning  clock        1200 s behind the service: set the clock of this machine.
    """
    from email.utils import parsedate_to_datetime

    try:
        skew = now - parsedate_to_datetime(date or "").timestamp()
    except (ValueError, TypeError):
        return Finding("clock", "ok", "the service does not say what time it is")
    if abs(skew) <= _MAX_SKEW:
        return Finding("clock", "ok", f"{abs(skew):.0f} s from that of the service")
    side = "behind" if skew < 0 else "ahead of"
    return Finding("clock", "warning", f"{abs(skew):.0f} s {side} the service: set the clock of this machine.")


async def _call(asking: RequestFlags, connecting: ConnectionFlags) -> AsyncIterator[Finding]:
    from attrs import evolve

    from onellm_async.cli.connection import connected, defaults_from
    from onellm_async.retry import RetryPolicy

    try:
        request = defaults_from(evolve(asking, max_tokens=asking.max_tokens or 16)).request("Say OK.")
        async with connected(connecting, retry=RetryPolicy(max_attempts=1, max_server_error_retries=0)) as client:
            begun = asyncio.get_running_loop().time()
            reply = await client.send(request, lane="interactive", deadline=connecting.timeout)
            seconds = asyncio.get_running_loop().time() - begun
            state = client.snapshot()
    except OneLLMError as error:
        yield Finding("call", "failed", told_in_flags(error))
        return
    cost = "unknown cost" if reply.cost is None else format_usd(reply.cost)
    yield Finding("call", "ok", f"{reply.model or request.model} answered in {seconds:.1f} s, {cost}")
    limited = f", {state.rate_limited} × 429" if state.rate_limited else ""
    rate = "not known yet" if state.rate is None else f"{state.rate:.0f} requests per minute"
    yield Finding("rate", "warning" if state.rate_limited else "ok", f"{rate}{limited}")


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return f"nothing came within {_SECONDS:g} s"
    return str(getattr(error, "verify_message", "") or getattr(error, "strerror", "") or error).rstrip(".")


def _advice(error: BaseException) -> str:
    from ssl import SSLCertVerificationError

    if isinstance(error, SSLCertVerificationError):
        return "Give the authority of the service by --ca-file, or check the clock."
    return "Check --base-url, --proxy and the firewall."
