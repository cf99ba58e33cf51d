"""A plan as people and as machines read it. Pure."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attrs import asdict

from onellm_async.cli.run_display import clock_time
from onellm_async.formatting import format_usd, pluralize
from onellm_async.limits.bottleneck import BOTTLENECK_LABELS, Bottleneck

if TYPE_CHECKING:
    from onellm_async.batch.work_list import WorkList
    from onellm_async.simulation.plan import Plan, Spread, Suggestion

__all__ = ["plan_json", "plan_text", "progress_chart"]

_FLAGS = {"max_concurrency": "--concurrency", "requests_per_minute": "--rpm", "tokens_per_minute": "--tpm"}
_BOTTLENECKS: Mapping[Bottleneck, str] = {
    "rate": "the next request waits for requests per minute",
    "concurrency": "all slots are in use",
    "tokens": "the next request waits for tokens per minute",
    "service": "every request is in flight",
}
_BLOCKS = " ▁▂▃▄▅▆▇█"
_WIDTH, _HEIGHT = 60, 8


def plan_text(plan: "Plan", name: str, end: str, listed: "WorkList | None" = None) -> str:
    """The plan in a few lines, each a label and what there is to say.

    Args:
        plan: The plan.
        name: Of the input.
        end: When the run would end if it started now.
        listed: What the run would send, and what it would not.
    """
    work = plan.workload
    models = ", ".join(model for model, _ in work.models[:3]) + (", …" if len(work.models) > 3 else "")
    rows = [("prompts", f"{pluralize(work.prompts, 'prompt')} in {name}" + (f" for {models}" if models else ""))]
    if listed is not None and (unsent := _not_sent(listed)):
        rows.append(("not sent", ", ".join(f"{number:,} {why}" for why, number in unsent.items())))
    rows.append(("tokens", f"about {work.input_tokens:,} of input"))
    if not work.prompts:
        return _lines(rows)
    rows.append(("duration", f"{_duration(plan.duration)}; started now, it would end {end}"))
    bottleneck, share = plan.bottleneck, plan.bottleneck_shares[plan.bottleneck]
    label, what = BOTTLENECK_LABELS[bottleneck], _BOTTLENECKS[bottleneck]
    rows.append(("bottleneck", f"{label}: {share:.0%} of the time {what}"))
    rows.extend(("suggestion", _suggestion(suggestion)) for suggestion in plan.suggestions)
    rows.append(("in flight", f"{plan.mean_in_flight:.1f} on average, {plan.max_in_flight:,} at most"))
    rows.append(("rate-limited", f"{_spread(plan.rate_limited)} requests, at no cost"))
    if plan.failed.high:
        rows.append(("failed", f"{_spread(plan.failed)} in spite of retries"))
    rows.append(("cost", _cost(plan)))
    rows.append(("basis", _basis(plan)))
    return _lines(rows)


def _not_sent(listed: "WorkList") -> dict[str, int]:
    counts = {
        "identical to another": listed.duplicates,
        "completed in earlier sessions": listed.completed,
        "answered from a cache": listed.cached,
    }
    return {why: number for why, number in counts.items() if number}


def plan_json(plan: "Plan", listed: "WorkList") -> dict[str, Any]:
    """The plan as JSON: seconds, USD, and counts."""
    work, price = plan.workload, plan.price
    return {
        "prompts": work.prompts,
        "duplicates": listed.duplicates,
        "completed": listed.completed,
        "cached": listed.cached,
        "bad_lines": listed.bad_lines,
        "models": dict(work.models),
        "input_tokens": work.input_tokens,
        "duration": asdict(plan.duration),
        "bottleneck": plan.bottleneck,
        "bottleneck_shares": dict(plan.bottleneck_shares),
        "suggestions": [asdict(suggestion) | {"flag": _FLAGS[suggestion.limit]} for suggestion in plan.suggestions],
        "requests_per_second": plan.requests_per_second,
        "in_flight": {"mean": plan.mean_in_flight, "max": plan.max_in_flight},
        "rate_limited": asdict(plan.rate_limited),
        "failed": asdict(plan.failed),
        "cost": asdict(price),
        "progress": [{"seconds": seconds, "done": done} for seconds, done in plan.progress],
        "simulated_prompts": plan.simulated,
        "seeds": plan.seeds,
    }


def progress_chart(progress: Sequence[tuple[float, int]]) -> str:
    """Prompts answered over time, as an area of block characters.

    Args:
        progress: Pairs of seconds and prompts answered by then.
    """
    end, total = progress[-1]
    heights = []
    position = done = 0
    for column in range(1, _WIDTH + 1):
        while position < len(progress) and progress[position][0] <= end * column / _WIDTH:
            done = progress[position][1]
            position += 1
        heights.append(round(done / total * _HEIGHT * 8))
    margin = len(f"{total:,}")
    lines = []
    for row in range(_HEIGHT - 1, -1, -1):
        label = f"{total:,}" if row == _HEIGHT - 1 else ""
        cells = "".join(_BLOCKS[min(8, max(0, height - row * 8))] for height in heights)
        lines.append(f"{label:>{margin}} {cells}".rstrip())
    last = clock_time(end)
    lines.append(f"{'0':>{margin}} 0 s{last:>{_WIDTH - 3}}")
    return "\n".join(lines)


def _lines(rows: Sequence[tuple[str, str]]) -> str:
    width = max(len(label) for label, _ in rows)
    return "\n".join(f"{label:<{width}}  {text}" for label, text in rows)


def _duration(spread: "Spread") -> str:
    low, median, high = (clock_time(value) for value in (spread.low, spread.median, spread.high))
    return median if low == high else f"{median} ({low} to {high})"


def _suggestion(suggestion: "Suggestion") -> str:
    shorter = f"{clock_time(suggestion.saved)} shorter"
    if suggestion.limit == "requests_per_minute":
        return f"{shorter} if the service allowed {suggestion.value:,.6g} requests per minute"
    if suggestion.limit == "tokens_per_minute":
        return f"{shorter} if the service allowed {suggestion.value:,.6g} tokens per minute"
    return f"{shorter} with {_FLAGS[suggestion.limit]} {suggestion.value:g}"


def _spread(spread: "Spread") -> str:
    low, median, high = (f"{round(value):,}" for value in (spread.low, spread.median, spread.high))
    return median if low == high else f"{median} ({low} to {high})"


def _cost(plan: "Plan") -> str:
    price, prompts = plan.price, plan.workload.prompts
    if price.unpriced == prompts:
        return "unknown: no price is listed for the model"
    bounded = "" if price.high is None else f"at most {format_usd(price.high)}"
    highest = bounded or "without --max-tokens there is no upper bound"
    unpriced = f"; {pluralize(price.unpriced, 'prompt')} of unknown price not included" if price.unpriced else ""
    return f"about {format_usd(price.typical)}; at least {format_usd(price.low)}, {highest}{unpriced}"


def _basis(plan: "Plan") -> str:
    runs = pluralize(plan.seeds, "simulated run")
    if plan.simulated == plan.workload.prompts:
        return runs
    return f"{runs} of the first {plan.simulated:,} prompts, extrapolated"
