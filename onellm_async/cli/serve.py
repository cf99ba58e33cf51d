"""``onellm-async serve``: a local OneLLM server for testing, with optional faults."""

import os
import shlex
from math import isfinite
from typing import TYPE_CHECKING, Annotated, Literal

from attrs import asdict, frozen
from cyclopts import App, Parameter

from onellm_async.cli import groups
from onellm_async.cli.command import command
from onellm_async.cli.exit_codes import ExitCode
from onellm_async.cli.general import GENERAL, GeneralFlags
from onellm_async.cli.terminal import print_error, put
from onellm_async.errors import BatchError, ConfigurationError

if TYPE_CHECKING:
    from onellm_async.server import ServerSettings, ServiceLimit

_EXAMPLES = """\
Examples:
  onellm-async serve
  onellm-async serve --rpm 600 --burst 100 --key alice=5.00 --key bob
  onellm-async serve --latency 6 --server-error-rate 0.02 --seed 7
  onellm-async serve --window 40/60s --retry-after seconds
  onellm-async serve --window sliding:10/1s --window 200/1m --rate-headers
  onellm-async serve --max-concurrent 8 --latency 2
  onellm-async serve --upstream http://127.0.0.1:9090/v1/chat/completions


All limits that are given hold at once, for each key. The first fixed window
begins with the first request of its key.
Without --key the server accepts any key, with a balance of 100 USD each.
Beside the API it answers GET /healthz, GET /ledger (counters) and
GET /openapi.json. The key of --upstream is read from ONELLM_UPSTREAM_API_KEY.
Answers of an upstream cost no balance, because its prices are not known.
Ctrl-C, SIGTERM and SIGHUP stop the server, with exit code 0.
"""


@Parameter(name="*", group=groups.SERVER)
@frozen
class ServerFlags:
    """Flags for limits, keys, dialect and upstream of the server."""

    rpm: Annotated[
        float | None,
        Parameter(
            help="Requests per minute of each key. [default: 40; no limit with --upstream, --window, --max-concurrent]"
        ),
    ] = None
    burst: Annotated[int, Parameter(help="Requests of each key accepted at once after a pause.")] = 40
    window: Annotated[
        tuple[str, ...],
        Parameter(
            negative="",
            show_default=False,
            help="At most COUNT requests of each key in a fixed window of DURATION: COUNT/DURATION, as 40/60s. "
            "sliding:COUNT/DURATION for any window of that length. Repeatable.",
        ),
    ] = ()
    max_concurrent: Annotated[
        int | None, Parameter(help="Requests of each key in flight; a further one gets a 429. [default: no limit]")
    ] = None
    background_rate: Annotated[
        float, Parameter(help="Requests per second of other clients of each key, which use up its limits.")
    ] = 0.0
    rate_headers: Annotated[
        bool,
        Parameter(
            negative="",
            help="Send x-ratelimit-limit-requests, x-ratelimit-remaining-requests and x-ratelimit-reset-requests.",
        ),
    ] = False
    rate_headers_form: Annotated[
        Literal["openai", "seconds", "epoch"] | None,
        Parameter(
            help="Form of --rate-headers, which it implies: as OpenAI (resets like 1m26.4s); or x-ratelimit-limit, "
            "-remaining and -reset, in seconds or as a Unix time. [default: openai]"
        ),
    ] = None
    key: Annotated[
        tuple[str, ...],
        Parameter(
            negative="",
            show_default=False,
            help="KEY or KEY=BALANCE in USD; repeatable. [default: any key, with 100 USD]",
        ),
    ] = ()
    dialect: Annotated[
        Literal["documented", "backend"],
        Parameter(help="API to serve: as documented, or as the self-hosted backend, with its envelope."),
    ] = "documented"
    upstream: Annotated[
        str | None, Parameter(help="URL of an OpenAI-compatible endpoint to forward to. [default: echo the prompt]")
    ] = None
    upstream_model: Annotated[
        str | None, Parameter(help="Model to request from the upstream. [default: the requested model]")
    ] = None
    upstream_timeout: Annotated[float, Parameter(help="Maximum seconds for one answer of the upstream.")] = 600.0
    host: Annotated[
        str, Parameter(help="Address to listen on. With --upstream, an address that other machines reach needs --key.")
    ] = "127.0.0.1"
    port: Annotated[int, Parameter(help="Port to listen on; 0 takes a free one.")] = 8080

    @property
    def requests_per_minute(self) -> float | None:
        """Refill of each key's bucket; None means no bucket: other limits are given, or the upstream has its own."""
        has_others = self.upstream is not None or bool(self.window) or self.max_concurrent is not None
        return 40.0 if self.rpm is None and not has_others else self.rpm

    def limits(self) -> "list[ServiceLimit]":
        """All limits of each key.

        Raises:
            ConfigurationError: If one of them is out of range or no window.
        """
        from onellm_async.server import BucketLimit, ConcurrencyLimit, WindowLimit

        limits: list[ServiceLimit] = []
        if self.requests_per_minute is not None:
            limits.append(BucketLimit(self.requests_per_minute, self.burst))
        limits += [WindowLimit.parse(text) for text in self.window]
        if self.max_concurrent is not None:
            limits.append(ConcurrencyLimit(self.max_concurrent))
        return limits


@Parameter(name="*", group=groups.FAULTS)
@frozen
class FaultFlags:
    """Flags for faults."""

    latency: Annotated[float, Parameter(help="Median seconds until an answer.")] = 0.0
    latency_sigma: Annotated[
        float, Parameter(help="Spread of the latency: with 0.5 its 95th percentile is 2.3 times the median.")
    ] = 0.0
    server_error_rate: Annotated[float, Parameter(help="Share of requests (0 to 1) answered with 500.")] = 0.0
    reset_before_rate: Annotated[float, Parameter(help="Share reset before they are processed.")] = 0.0
    reset_after_rate: Annotated[float, Parameter(help="Share reset after they are processed and billed.")] = 0.0
    truncate_rate: Annotated[float, Parameter(help="Share processed and billed whose reply is truncated.")] = 0.0
    unfit_rate: Annotated[
        float, Parameter(help="Share processed and billed whose answer is no JSON, of requests with a schema.")
    ] = 0.0
    html_502_rate: Annotated[float, Parameter(help="Share answered with a gateway's 502 HTML page.")] = 0.0
    server_error_text: Annotated[
        str | None, Parameter(help="Text of each 500. [default: the self-hosted backend's if a provider fails]")
    ] = None
    database_places: Annotated[
        int | None, Parameter(help="Database connections: requests processed at once; others wait. [default: no limit]")
    ] = None
    database_wait: Annotated[float, Parameter(help="Maximum seconds to wait for a database connection; then 401.")] = (
        30.0
    )
    overload_status: Annotated[
        Literal[401, 503, 529], Parameter(help="Status if no database connection is free: 503 and 529 say Overloaded.")
    ] = 401
    retry_after: Annotated[
        float | Literal["seconds", "fraction", "milliseconds", "date"] | None,
        Parameter(
            help="Seconds in the Retry-After of each 429; or how it says the time until the limit has room: in whole "
            "seconds, with a fraction, as a date, or as retry-after-ms. [default: no Retry-After]"
        ),
    ] = None
    seed: Annotated[int, Parameter(help="Seed of the faults: the same seed gives the same faults.")] = 0


def serve(
    *,
    flags: ServerFlags = ServerFlags(),
    faults: FaultFlags = FaultFlags(),
    general: GeneralFlags = GENERAL,
) -> int:
    """Runs ``onellm-async serve``.

    Args:
        flags: Limits, keys, dialect and upstream.
        faults: Faults.
        general: The environment, and how much is said.
    """
    with general.applied():
        return _run(flags, faults)


def _run(flags: ServerFlags, faults: FaultFlags) -> int:
    import asyncio

    from onellm_async.server import Faults, ServerSettings

    settings = ServerSettings(
        dialect=flags.dialect,
        limits=flags.limits(),
        background_rate=flags.background_rate,
        rate_headers=flags.rate_headers_form or ("openai" if flags.rate_headers else None),
        keys=_parse_keys(flags.key),
        any_model=flags.upstream is not None,
        faults=Faults(**{name: value for name, value in asdict(faults).items() if value is not None}),
    )
    asyncio.run(_serve(settings, flags))
    return ExitCode.OK


serve_command: App = command(
    serve,
    _EXAMPLES,
    {
        ExitCode.OK: "stopped by Ctrl-C, SIGTERM or SIGHUP",
    },
)


def _parse_keys(given: tuple[str, ...]) -> dict[str, float] | None:
    keys = {}
    for text in given:
        key, equals, balance = text.partition("=")
        try:
            keys[key] = float(balance) if equals else 100.0
        except ValueError:
            raise ConfigurationError(f"The balance of --key is {balance!r}; it must be a number of USD.") from None
        if not key or not isfinite(keys[key]):
            raise ConfigurationError("--key needs a key, and a finite balance if any.")
    return keys or None


async def _serve(settings: "ServerSettings", flags: ServerFlags) -> None:
    import asyncio

    from onellm_async.cli.signals import ending_on_signals
    from onellm_async.server import LocalServer, UpstreamBackend

    backend = None
    if flags.upstream is not None:
        upstream_key = os.environ.get("ONELLM_UPSTREAM_API_KEY")
        backend = UpstreamBackend(
            flags.upstream,
            api_key=upstream_key,
            model=flags.upstream_model,
            timeout=flags.upstream_timeout,
        )
    stop = asyncio.Event()
    with ending_on_signals(stop):
        try:
            async with LocalServer(settings, backend=backend, host=flags.host, port=flags.port) as server:
                try:
                    put(_welcome(server.url, flags))
                except BatchError as error:  # the server itself needs no standard output
                    print_error(str(error))
                await stop.wait()
        except OSError as error:
            raise ConfigurationError(
                f"Cannot listen on {flags.host}:{flags.port}: {error.strerror or error}.",
                advice="Choose another --port, or 0 for any free one.",
            ) from None


def _welcome(url: str, flags: ServerFlags) -> str:
    key = flags.key[0].partition("=")[0] if flags.key else "anything"
    rate = flags.requests_per_minute
    chat_flags = "".join(
        f" --{name} {value}"
        for name, value, default in (
            ("rpm", "auto" if rate is None else f"{rate:g}", "40"),
            ("burst", str(flags.burst), "40"),
            ("dialect", flags.dialect, "documented"),
        )
        if value != default
    )
    return (
        f"OneLLM is at {url} (Ctrl-C stops it). Try:\n"
        f"  ONELLM_API_KEY={shlex.quote(key)} ONELLM_BASE_URL={url} onellm-async chat 'Say hello'{chat_flags}"
    )
