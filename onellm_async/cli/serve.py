"""``onellm-async serve``: a local OneLLM to try things against, faults included."""

import os
import shlex
from math import isfinite
from typing import TYPE_CHECKING, Annotated, Literal

from attrs import asdict, frozen
from cyclopts import App, Group, Parameter

from onellm_async.cli.command import command
from onellm_async.cli.exit_codes import ExitCode
from onellm_async.cli.terminal import complain, put
from onellm_async.errors import BatchError, ConfigurationError

if TYPE_CHECKING:
    from onellm_async.server import ServerSettings

__all__ = ["serve", "serve_command"]

_EXAMPLES = """\
Examples:
  onellm-async serve
  onellm-async serve --rpm 600 --burst 100 --key alice=5.00 --key bob
  onellm-async serve --latency 6 --server-error-rate 0.02 --reset-after-rate 0.01 --seed 7
  onellm-async serve --upstream http://127.0.0.1:9090/v1/chat/completions


Without --key any key is accepted and has a balance of 100 USD. Beside the API
the server answers GET /healthz, GET /ledger (counters) and GET /openapi.json.
A key for --upstream is read from ONELLM_UPSTREAM_API_KEY. Answers of an
upstream cost no balance: its prices are not known here.
It exits with 0 when it is stopped by Ctrl-C, SIGTERM or SIGHUP.
"""

_SERVICE = Group.create_ordered("Service")
_FAULTS = Group.create_ordered("Faults")


@Parameter(name="*", group=_SERVICE)
@frozen
class Serving:
    """What the server pretends to be."""

    rpm: Annotated[
        float | None,
        Parameter(help="Requests per minute of each key. [default: 40; with --upstream that of the upstream alone]"),
    ] = None
    burst: Annotated[int, Parameter(help="Requests taken at once after a pause, if there is a limit.")] = 40
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
        Parameter(help="Behave as documented, or as the self-hosted backend with its envelope."),
    ] = "documented"
    upstream: Annotated[
        str | None, Parameter(help="OpenAI-compatible URL that really answers. [default: echo the prompt]")
    ] = None
    upstream_model: Annotated[str | None, Parameter(help="Model to ask there. [default: the one asked for]")] = None
    upstream_timeout: Annotated[float, Parameter(help="Seconds that the upstream may take for one answer.")] = 600.0
    host: Annotated[
        str, Parameter(help="Address to listen on. Any but this machine's own needs --key with --upstream.")
    ] = "127.0.0.1"
    port: Annotated[int, Parameter(help="Port to listen on; 0 takes a free one.")] = 8080

    @property
    def requests_per_minute(self) -> float | None:
        """The limit of each key; None: only the upstream has one."""
        return 40.0 if self.rpm is None and self.upstream is None else self.rpm


@Parameter(name="*", group=_FAULTS)
@frozen
class Troubles:
    """What goes wrong."""

    latency: Annotated[float, Parameter(help="Median seconds that an answer takes.")] = 0.0
    latency_sigma: Annotated[
        float, Parameter(help="Spread of its logarithm; 0.5 puts the 95th percentile at 2.3 times the median.")
    ] = 0.0
    server_error_rate: Annotated[float, Parameter(help="Share of requests, 0 to 1, that end in a 500.")] = 0.0
    reset_before_rate: Annotated[float, Parameter(help="Share cut off before they are processed.")] = 0.0
    reset_after_rate: Annotated[float, Parameter(help="Share cut off after they are processed and billed.")] = 0.0
    truncate_rate: Annotated[float, Parameter(help="Share billed whose reply ends half-way.")] = 0.0
    html_502_rate: Annotated[float, Parameter(help="Share answered by a gateway's HTML page with status 502.")] = 0.0
    server_error_text: Annotated[
        str | None, Parameter(help="What a 500 says. [default: as the backend when a provider fails]")
    ] = None
    database_places: Annotated[
        int | None, Parameter(help="Requests processed at once; others wait for a place. [default: any number]")
    ] = None
    database_wait: Annotated[
        float, Parameter(help="Seconds that they wait before the backend's 401 of a database.")
    ] = 30.0
    retry_after: Annotated[
        float | None, Parameter(help="Seconds that refusals name in Retry-After. [default: they name none]")
    ] = None
    seed: Annotated[int, Parameter(help="The same seed gives the same faults.")] = 0


def serve(
    *,
    serving: Serving = Serving(),
    troubles: Troubles = Troubles(),
) -> int:
    """Runs ``onellm-async serve``.

    Args:
        serving: What it pretends to be.
        troubles: What goes wrong.
    """
    import asyncio

    from onellm_async.server import Faults, ServerSettings

    settings = ServerSettings(
        dialect=serving.dialect,
        requests_per_minute=serving.requests_per_minute,
        burst=serving.burst,
        keys=_keys(serving.key),
        any_model=serving.upstream is not None,
        faults=Faults(**{name: value for name, value in asdict(troubles).items() if value is not None}),
    )
    asyncio.run(_serve(settings, serving))
    return ExitCode.OK


serve_command: App = command(serve, _EXAMPLES)


def _keys(given: tuple[str, ...]) -> dict[str, float] | None:
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


async def _serve(settings: "ServerSettings", serving: Serving) -> None:
    import asyncio

    from onellm_async.cli.signals import ending_on_signals
    from onellm_async.server import LocalServer, UpstreamBackend

    backend = None
    if serving.upstream is not None:
        upstream_key = os.environ.get("ONELLM_UPSTREAM_API_KEY")
        backend = UpstreamBackend(
            serving.upstream,
            api_key=upstream_key,
            model=serving.upstream_model,
            timeout=serving.upstream_timeout,
        )
    stop = asyncio.Event()
    with ending_on_signals(stop):
        try:
            async with LocalServer(settings, backend=backend, host=serving.host, port=serving.port) as server:
                try:
                    put(_welcome(server.url, serving))
                except BatchError as error:  # the server itself needs no standard output
                    complain(str(error))
                await stop.wait()
        except OSError as error:
            raise ConfigurationError(
                f"Cannot listen on {serving.host}:{serving.port}: {error.strerror or error}.",
                advice="Choose another --port, or 0 for any free one.",
            ) from None


def _welcome(url: str, serving: Serving) -> str:
    key = serving.key[0].partition("=")[0] if serving.key else "anything"
    rate = serving.requests_per_minute
    flags = "".join(
        f" --{name} {value}"
        for name, value, usual in (
            ("rpm", "auto" if rate is None else f"{rate:g}", "40"),
            ("burst", str(serving.burst), "40"),
            ("dialect", serving.dialect, "documented"),
        )
        if value != usual
    )
    return (
        f"OneLLM is at {url} (Ctrl-C stops it). Try:\n"
        f"  ONELLM_API_KEY={shlex.quote(key)} ONELLM_BASE_URL={url} onellm-async chat 'Say hello'{flags}"
    )
