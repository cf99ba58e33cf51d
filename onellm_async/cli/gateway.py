"""``onellm-async gateway``: an OpenAI-compatible API in front of one key, and the keys of its users."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from attrs import frozen
from cyclopts import App, Parameter

from onellm_async.cli import groups
from onellm_async.cli.exit_codes import ExitCode, exit_codes_help
from onellm_async.cli.general import GENERAL, GeneralFlags
from onellm_async.cli.options import CONNECTING, ConnectionFlags, LaneName
from onellm_async.cli.terminal import print_error, put, require_output, say
from onellm_async.errors import BatchError, ConfigurationError

if TYPE_CHECKING:
    from onellm_async.gateway.keys import InboundKey
    from onellm_async.gateway.spending import KeySpending

_EXAMPLES = """\
Examples:
  onellm-async gateway --local
  onellm-async gateway --rpm 600 --burst 100 --quota host
  onellm-async gateway keys add alice --keys keys.toml --max-cost 5
  onellm-async gateway --keys keys.toml --host 0.0.0.0 --max-cost 50 --max-tokens 1000
  OPENAI_BASE_URL=http://127.0.0.1:8787/v1 OPENAI_API_KEY=any python program.py

It answers POST /v1/chat/completions, GET /v1/models, GET /healthz, and for
the operator GET /metrics (Prometheus) and GET / (a status page). Without
--keys it serves this machine alone, and any key is accepted. With --keys the
operator's pages need a key made with --admin; a browser asks for it.
SIGTERM and Ctrl-C stop it gracefully, with exit code 0: queued requests get a
503, requests in flight their answer. A second one ends it at once.
"""
_KEYS_EXAMPLES = """\
Examples:
  onellm-async gateway keys add alice --keys keys.toml --lane interactive
  onellm-async gateway keys list --keys keys.toml
  onellm-async gateway keys remove alice --keys keys.toml

A key is shown once, when it is made; the file has its SHA-256. A running
gateway follows the file. What a key has spent stays counted after it is
removed; to raise its cap, change max-cost in the file.
"""

KeysFlag = Annotated[
    Path | None,
    Parameter(name="--keys", help="File of the inbound keys (TOML). [env: ONELLM_GATEWAY_KEYS] [default: none]"),
]


@Parameter(name="*", group=groups.GATEWAY)
@frozen
class GatewayFlags:
    """Where the gateway listens, for whom, and for how much."""

    keys: KeysFlag = None
    ledger: Annotated[
        Path | None, Parameter(help="File that has what each key spent. [default: beside --keys, else none]")
    ] = None
    max_cost: Annotated[
        float | None, Parameter(help="Cost cap in USD over all keys; needs --keys or --ledger. [default: none]")
    ] = None
    max_tokens: Annotated[
        int | None,
        Parameter(help="max_tokens for requests that name none; keys with a cost cap need one. [default: none]"),
    ] = None
    max_wait: Annotated[float, Parameter(help="Maximum seconds for one request, queue included.")] = 540.0
    max_pending: Annotated[int, Parameter(help="Maximum number of requests that wait; more get a 503.")] = 1000
    lane: Annotated[
        LaneName, Parameter(help="Lane of requests without a key; the header x-onellm-lane names another.")
    ] = "default"
    host: Annotated[str, Parameter(help="Address to listen on; one that other machines reach needs --keys.")] = (
        "127.0.0.1"
    )
    port: Annotated[int, Parameter(help="Port to listen on; 0 takes a free one.")] = 8787


def gateway(
    *,
    flags: GatewayFlags = GatewayFlags(),
    connecting: ConnectionFlags = CONNECTING,
    general: GeneralFlags = GENERAL,
) -> int:
    """Serve an OpenAI-compatible API in front of one key, for clients in any language.

    Args:
        flags: Address, keys and caps.
        connecting: The connection flags.
        general: The environment, and how much is said.
    """
    with general.applied():
        return _gateway(flags, connecting)


def _gateway(flags: GatewayFlags, connecting: ConnectionFlags) -> int:
    import asyncio

    from onellm_async.gateway import GatewaySettings

    settings = GatewaySettings(
        keys=_keys_path(flags.keys),
        ledger=flags.ledger,
        max_cost=flags.max_cost,
        max_tokens=flags.max_tokens,
        max_wait=flags.max_wait,
        lane=flags.lane,
    )

    if flags.host not in {"127.0.0.1", "::1", "localhost"}:
        say(f"Listening on {flags.host} in plain HTTP: put a TLS proxy before it, or keys and prompts are readable.")

    async def serve() -> int:
        from onellm_async.cli.connection import connected
        from onellm_async.cli.signals import ending_on_signals
        from onellm_async.gateway import serve_gateway

        stop = asyncio.Event()
        async with connected(connecting, max_pending=flags.max_pending) as client:
            with ending_on_signals(stop, say) as caught:
                try:
                    await serve_gateway(
                        client, settings, host=flags.host, port=flags.port, stop=stop, on_ready=_announce
                    )
                except asyncio.CancelledError:
                    if caught.number is None:
                        raise
                    print_error("ended at once; requests in flight may be billed.")
                    return 128 + caught.number
                except OSError as error:
                    raise ConfigurationError(
                        f"Cannot listen on {flags.host}:{flags.port}: {error.strerror or error}.",
                        advice="Choose another --port, or 0 for any free one.",
                    ) from None
        return ExitCode.OK

    return asyncio.run(serve())


def add(
    name: str,
    /,
    *,
    keys: KeysFlag = None,
    lane: Annotated[LaneName, Parameter(help="Lane of its requests.")] = "default",
    max_cost: Annotated[float | None, Parameter(help="Cost cap in USD. [default: none]")] = None,
    admin: Annotated[
        bool, Parameter(negative="", show_default=False, help="It may see the status page and the metrics.")
    ] = False,
) -> int:
    """Make a key, print it once, and add its hash to the file.

    Args:
        name: Name of the key.
        keys: The file.
        lane: Lane of its requests.
        max_cost: Cost cap in USD.
        admin: It may see the status page and the metrics.
    """
    from secrets import token_urlsafe

    from onellm_async.gateway.key_file import lock_keys, read_text, replace_text
    from onellm_async.gateway.keys import KEY_PREFIX, InboundKey, add_key, hash_key

    path = _required(keys)
    require_output()  # the key is shown only once
    secret = KEY_PREFIX + token_urlsafe(32)
    made = InboundKey(name=name, sha256=hash_key(secret), lane=lane, max_cost=max_cost, admin=admin)
    with lock_keys(path):
        replace_text(path, add_key(read_text(path, missing=""), made))
    say(f"Added {name} to {path}. Its key is shown only now:")
    put(secret)
    return ExitCode.OK


def remove(name: str, /, *, keys: KeysFlag = None) -> int:
    """Remove a key from the file.

    Args:
        name: Name of the key.
        keys: The file.
    """
    from onellm_async.gateway.key_file import lock_keys, read_text, replace_text
    from onellm_async.gateway.keys import remove_key

    path = _required(keys)
    with lock_keys(path):
        replace_text(path, remove_key(read_text(path), name))
    say(f"Removed {name} from {path}.")
    return ExitCode.OK


def list_(
    *,
    keys: KeysFlag = None,
    ledger: Annotated[
        Path | None, Parameter(help="File that has what each key spent. [default: beside --keys]")
    ] = None,
    json: Annotated[bool, Parameter(negative="", show_default=False, help="Print it as JSON.")] = False,
) -> int:
    """List the keys with their lanes, cost caps and spending.

    Args:
        keys: The file.
        ledger: File that has what each key spent.
        json: Print it as JSON.
    """
    from onellm_async.gateway.key_file import load_keys
    from onellm_async.gateway.settings import default_ledger_path
    from onellm_async.gateway.spending import read_spending

    path = _required(keys)
    listed = {key.name: key for key in load_keys(path).values()}
    spending = read_spending(ledger or default_ledger_path(path))
    put(_as_json(listed, spending) if json else _as_text(listed, spending))
    return ExitCode.OK


_CODES = exit_codes_help(
    {
        ExitCode.OK: "stopped by Ctrl-C or SIGTERM",
        ExitCode.INTERRUPTED: "ended at once by a second Ctrl-C",
        ExitCode.TERMINATED: "ended at once by a second SIGTERM",
    }
)
gateway_command: App = App(name="gateway", help_format="plaintext", help_epilogue=f"{_EXAMPLES}\n{_CODES}")
gateway_command.default(gateway)
_keys_command: App = App(
    name="keys",
    help="Add, list and remove the keys of a gateway's users.",
    help_format="plaintext",
    help_epilogue=_KEYS_EXAMPLES,
)
_keys_command.command(add, help_epilogue=_KEYS_EXAMPLES)
_keys_command.command(list_, name="list", help_epilogue=_KEYS_EXAMPLES)
_keys_command.command(remove, help_epilogue=_KEYS_EXAMPLES)
gateway_command.command(_keys_command)


def _announce(url: str) -> None:
    try:
        put(f"OpenAI-compatible API at {url} (Ctrl-C stops it). Status page: {url.removesuffix('v1')}")
    except BatchError as error:  # the gateway itself needs no standard output
        print_error(str(error))


def _keys_path(given: Path | None) -> Path | None:
    if given is None and (named := os.environ.get("ONELLM_GATEWAY_KEYS")):
        return Path(named)
    return given


def _required(given: Path | None) -> Path:
    path = _keys_path(given)
    if path is None:
        raise ConfigurationError("No key file was named.", advice="Pass --keys FILE or set ONELLM_GATEWAY_KEYS.")
    return path


def _as_json(keys: "dict[str, InboundKey]", spending: "Mapping[str, KeySpending]") -> str:
    from attrs import asdict

    from onellm_async.gateway.budget import to_usd
    from onellm_async.gateway.spending import KeySpending
    from onellm_async.wire import dump_json

    rows = []
    for name in [*keys, *sorted(spending.keys() - keys)]:
        key, row = keys.get(name), asdict(spending.get(name, KeySpending()))
        for amount in ("billed", "at_risk", "reserved"):
            row[amount] = to_usd(row[amount])
        rows.append(
            {
                "name": name,
                "removed": key is None,
                "lane": None if key is None else key.lane,
                "max_cost": None if key is None else key.max_cost,
                "admin": key is not None and key.admin,
                **row,
            }
        )
    return dump_json(rows).decode()


def _as_text(keys: "dict[str, InboundKey]", spending: "Mapping[str, KeySpending]") -> str:
    from onellm_async.formatting import format_usd
    from onellm_async.gateway.budget import to_usd
    from onellm_async.gateway.spending import KeySpending

    if not keys and not spending:
        return "There are no keys."
    rows: list[tuple[str, ...]] = [("key", "lane", "cost cap", "billed", "at risk", "reserved", "answered")]
    for name in [*keys, *sorted(spending.keys() - keys)]:
        key, row = keys.get(name), spending.get(name, KeySpending())
        lane = "removed" if key is None else f"{key.lane}, admin" if key.admin else key.lane
        cap = "none" if key is None or key.max_cost is None else format_usd(key.max_cost, exact=True)
        money = (format_usd(to_usd(units)) for units in (row.billed, row.at_risk, row.reserved))
        rows.append((name, lane, cap, *money, f"{row.answered:,}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place < 2 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
