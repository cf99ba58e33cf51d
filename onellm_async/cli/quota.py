"""``onellm-async quota``: the board on which the processes of a key share its rate."""

import os
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from onellm_async.cli.exit_codes import ExitCode, exit_codes_help
from onellm_async.cli.general import GENERAL, GeneralFlags
from onellm_async.cli.terminal import put, say
from onellm_async.errors import ConfigurationError

if TYPE_CHECKING:
    from onellm_async.limits.quota import Quota
    from onellm_async.quota.status import BoardStatus, ParticipantStatus

__all__ = ["quota_command", "status"]

_EXAMPLES = """\
Examples:
  onellm-async quota status --quota host
  onellm-async quota status --quota redis://10.0.0.5:6379
  ONELLM_QUOTA=host watch -n 1 onellm-async quota status
  onellm-async quota status --json | jq .participants

The board belongs to a key and an API URL, so both are needed to find it. Only
a hash of them is on the host or in Redis. Looking at it changes nothing.
"""


def status(
    *,
    quota: Annotated[
        str | None,
        Parameter(help="Place of the board: `host` or `redis://HOST:PORT`. [env: ONELLM_QUOTA] [default: host]"),
    ] = None,
    base_url: Annotated[
        str | None, Parameter(help="API URL. [env: ONELLM_BASE_URL] [default: the documented one]")
    ] = None,
    json: Annotated[bool, Parameter(negative="", show_default=False, help="Print it as JSON.")] = False,
    general: GeneralFlags = GENERAL,
) -> int:
    """Show the participants of a shared quota, their demand and shares, and the rate.

    Args:
        quota: host or redis://HOST:PORT.
        base_url: API URL.
        json: Print it as JSON.
        general: The environment, and how much is said.
    """
    with general.applied():
        return _status(quota, base_url, json=json)


def _status(quota: str | None, base_url: str | None, *, json: bool) -> int:
    import asyncio

    from onellm_async.quota.names import board_name
    from onellm_async.quota.status import board_status
    from onellm_async.settings import resolve_api_key, resolve_base_url

    found = _quota(quota)
    name = board_name(resolve_base_url(base_url, allow_insecure=True), resolve_api_key(None).authorization())
    image = asyncio.run(_read(found, name))
    if image is None:
        say(f"No client has used this key and URL with the quota in {found.place} (board {name}).")
        return ExitCode.FAILED
    shown = board_status(image)
    put(_as_json(shown, found, name) if json else _text(shown, found, name))
    return ExitCode.OK


_EPILOGUE = f"""{_EXAMPLES}
{exit_codes_help({ExitCode.OK: "the board was shown", ExitCode.FAILED: "no client has used this key and URL"})}"""

quota_command: App = App(
    name="quota",
    help="Show the board on which the processes of a key share its rate.",
    help_format="plaintext",
    help_epilogue=_EPILOGUE,
)
quota_command.command(status, help_epilogue=_EPILOGUE)


def _quota(text: str | None) -> "Quota":
    from onellm_async.quota import quota_of_text

    given = text or os.environ.get("ONELLM_QUOTA") or "host"
    found = quota_of_text(given)
    if found is None:
        raise ConfigurationError("The quota is off, so there is no board.", advice="Name one with --quota.")
    return found


async def _read(quota: "Quota", name: str) -> "dict[str, object] | None":
    from onellm_async.quota import HostQuota, RedisQuota

    if isinstance(quota, RedisQuota):
        found = await quota.read(name)
    else:
        assert isinstance(quota, HostQuota)  # noqa: S101  # the words of a quota name no others
        found = quota.read(name)
    return None if found is None else dict(found)


def _as_json(found: "BoardStatus", quota: "Quota", name: str) -> str:
    from attrs import asdict

    from onellm_async.wire import dump_json

    return dump_json({"quota": quota.kind, "place": quota.place, "board": name, **asdict(found)}).decode()


def _text(found: "BoardStatus", quota: "Quota", name: str) -> str:
    from onellm_async.cli.run_display import clock_time
    from onellm_async.formatting import pluralize

    declared = found.declared_rate
    if declared is None:
        origin = f"discovered, confidence {found.confidence:.0%}"
    elif found.confidence < 1:
        origin = f"declared {declared:g}, lowered by 429s"
    else:
        origin = "declared"
    burst = "" if found.burst is None else f" of {found.burst:.0f}"
    lines = [
        f"Quota {quota.kind}: {quota.place}, board {name}",
        f"  rate             {found.rate:.1f} requests per minute ({origin})",
        f"  level            {max(0, int(found.level))}{burst} requests could be sent at once",
    ]
    if found.tokens_level is not None:
        lines.append(f"  tokens           {found.tokens_level:,.0f} could be used at once")
    if found.retry_in is not None:
        lines.append(f"  Retry-After      the service accepts requests again in {clock_time(found.retry_in)}")
    lines.append(
        f"  participants     {pluralize(len(found.participants), 'client')}, "
        f"{pluralize(found.granted, 'request')} granted"
    )
    if found.participants:
        width = max(len(each.name) for each in found.participants)
        head = f"  {'client':{width}}  {'last minute':>11}  {'share':>5}  interactive  default  batch  next visit"
        lines += ["", head, *(_row(each, width) for each in found.participants)]
    return "\n".join(lines)


def _row(each: "ParticipantStatus", width: int) -> str:
    share = "" if each.share is None else f"{each.share:.0%}"
    interactive, default, batch = each.waiting.values()
    if each.next_visit_in is None:
        visit = f"idle for {each.seen_ago:.0f} s"
    elif each.is_late:
        visit = f"late by {-each.next_visit_in:.1f} s"
    else:
        visit = f"in {max(0.0, each.next_visit_in):.2f} s"
    counts = f"{interactive:>11}  {default:>7}  {batch:>5}"
    return f"  {each.name:{width}}  {each.granted:>11.0f}  {share:>5}  {counts}  {visit}"
