"""The status page of a gateway: one HTML document without scripts and without anything from elsewhere. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from attrs import frozen

from onellm_async.formatting import format_duration, format_usd
from onellm_async.gateway.budget import to_usd
from onellm_async.gateway.keys import InboundKey
from onellm_async.gateway.metrics import Metrics
from onellm_async.gateway.spending import KeySpending
from onellm_async.limits.bottleneck import BOTTLENECK_LABELS
from onellm_async.limits.snapshot import Snapshot

_REFRESH = 5
"""Seconds until a browser loads the page again."""
_NOTHING = "\N{EN DASH}"
_STYLE = """
:root { color-scheme: light dark; --ink: #1b1d21; --soft: #565b64; --page: #fbfbfa; --line: #d9dbde; --bad: #a3230f }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e9eb; --soft: #a4aab4; --page: #16181b; --line: #373b41; --bad: #ff9b85 }
}
* { box-sizing: border-box }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif }
main { max-width: 60rem; margin: 0 auto; padding: 1.5rem 1rem 3rem }
h1 { font-size: 1.4rem; margin: 0 }
h2 { font-size: 1.05rem; margin: 2rem 0 .5rem }
p { margin: .25rem 0; color: var(--soft) }
.bad { color: var(--bad) }
dl { display: grid; gap: .75rem 1.5rem; margin: 1rem 0 0 }
dl { grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)) }
dt { color: var(--soft); font-size: .85rem }
dd { margin: 0; font-size: 1.25rem; font-variant-numeric: tabular-nums }
.wide { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { padding: .35rem .75rem .35rem 0; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap }
th { color: var(--soft); font-weight: normal; font-size: .85rem }
th:first-child, td:first-child { text-align: left }
"""


@frozen(kw_only=True)
class GatewayStatus:
    """What the page shows.

    Attributes:
        snapshot: The client.
        metrics: The counters since the start.
        keys: The inbound keys.
        spending: What each key has spent; it may have names whose keys were removed.
        max_cost: Cost cap in USD over all keys; None for no cap.
        uptime: Seconds since the start.
        waiting_for_budget: Requests that wait until reservations of others are settled.
    """

    snapshot: Snapshot
    metrics: Metrics
    keys: Sequence[InboundKey] = ()
    spending: Mapping[str, KeySpending] = {}
    max_cost: float | None = None
    uptime: float = 0.0
    waiting_for_budget: int = 0


def render_status(status: GatewayStatus) -> str:
    """The page as HTML."""
    body = [_head(status), _tiles(status), _lanes(status.snapshot), _keys(status), _statuses(status.metrics)]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="refresh" content="{_REFRESH}">\n<link rel="icon" href="data:,">\n'
        f"<title>onellm-async gateway</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{''.join(body)}</main>\n</body>\n</html>\n"
    )


def _head(status: GatewayStatus) -> str:
    snapshot = status.snapshot
    if snapshot.trial_in is not None:
        state, kind = f"Circuit open. Next attempt in {format_duration(snapshot.trial_in)}.", ' class="bad"'
    elif snapshot.paused:
        state, kind = "Paused.", ' class="bad"'
    elif any(snapshot.queued.values()):
        state, kind = f"Requests wait for: {BOTTLENECK_LABELS[snapshot.bottleneck]}.", ""
    else:
        state, kind = "Nothing waits.", ""
    error = ""
    if snapshot.last_error:
        error = f'<p class="bad">Last error: {escape(snapshot.last_error)}</p>\n'
    running = f"<p>Running for {format_duration(status.uptime)}. This page reloads every {_REFRESH} s.</p>"
    return f"<h1>onellm-async gateway</h1>\n<p{kind}>{escape(state)}</p>\n{error}{running}\n"


def _tiles(status: GatewayStatus) -> str:
    snapshot, spending = status.snapshot, status.spending.values()
    tiles = [
        ("In flight", f"{snapshot.in_flight:,} of {snapshot.concurrency or snapshot.max_concurrency:,}"),
        ("Queued", f"{sum(snapshot.queued.values()) + status.waiting_for_budget:,}"),
        ("Rate limit", "none" if snapshot.rate is None else f"{snapshot.rate:,.4g} per minute"),
        ("Answered", f"{snapshot.answered:,}"),
        ("Rate-limited (429)", f"{snapshot.rate_limited:,}"),
        ("Retries", f"{snapshot.retried:,}"),
        ("Clients that left", f"{status.metrics.disconnected:,}"),
    ]
    if snapshot.participants is not None:
        tiles.append(("Processes sharing the key", f"{snapshot.participants:,}"))
    if status.spending or status.max_cost is not None:
        spent = format_usd(to_usd(sum(row.spent for row in spending)))
        cap = "" if status.max_cost is None else f" of {format_usd(status.max_cost, exact=True)}"
        tiles.append(("Spent, all keys", spent + cap))
    cells = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>\n" for name, value in tiles)
    return f"<dl>\n{cells}</dl>\n"


def _lanes(snapshot: Snapshot) -> str:
    rows = [
        (
            lane,
            f"{count:,}",
            format_duration(snapshot.longest_wait[lane]) if count else _NOTHING,
            BOTTLENECK_LABELS[snapshot.waiting_for[lane]] if count else _NOTHING,
        )
        for lane, count in snapshot.queued.items()
    ]
    return _table("Lanes", ("lane", "queued", "longest wait", "waits for"), rows)


def _keys(status: GatewayStatus) -> str:
    keys = {key.name: key for key in status.keys}
    names = [*keys, *sorted(status.spending.keys() - keys)]
    rows = []
    for name in names:
        key, row = keys.get(name), status.spending.get(name, KeySpending())
        cap = None if key is None else key.max_cost
        rows.append(
            (
                name,
                key.lane if key is not None else "removed" if status.keys else _NOTHING,
                f"{row.answered:,}",
                f"{row.input_tokens:,} + {row.output_tokens:,}",
                format_usd(to_usd(row.billed)),
                format_usd(to_usd(row.at_risk)),
                format_usd(to_usd(row.reserved)),
                "none" if cap is None else format_usd(cap, exact=True),
            )
        )
    header = ("key", "lane", "answered", "tokens", "billed", "at risk", "reserved", "cost cap")
    note = "<p>At risk: attempts without an answer, counted with the most that they can have cost.</p>\n"
    return _table("Keys", header, rows) + note if rows else ""


def _statuses(metrics: Metrics) -> str:
    rows = [(key, str(status), f"{count:,}") for (key, status), count in sorted(metrics.requests.items())]
    return _table("Replies since the start", ("key", "status", "replies"), rows) if rows else ""


def _table(title: str, header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>\n" for row in rows)
    return (
        f'<h2>{escape(title)}</h2>\n<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}</tbody>\n</table></div>\n"
    )
