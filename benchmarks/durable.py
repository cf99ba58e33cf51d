"""What a run costs that survives a crash: prompts per second with a journal, without, and beside its peer."""

from collections.abc import Sequence

from benchmarks.overhead import IN_FLIGHT, compared
from benchmarks.peers import Contender
from benchmarks.processes import FastServer
from benchmarks.repetitions import Found, shortfall, spread
from benchmarks.report import Section

BASELINE = Contender("onellm-async, run_batch without a journal", "onellm", {"call": "run_batch"})
CONTENDERS = (
    BASELINE,
    Contender("onellm-async, run_batch with its journal", "onellm", {"call": "run_batch", "journal": True}),
    Contender("async-batch-llm without a store", "async_batch"),
    Contender("async-batch-llm with its SQLite store, balanced", "async_batch", {"durability": "balanced"}),
    Contender("async-batch-llm with its SQLite store, full", "async_batch", {"durability": "full"}),
)


def run(server: FastServer, contenders: Sequence[Contender], *, repetitions: int, seconds: float) -> Section:
    """Compares the contenders; the ratios are to our own run without a journal in the same repetition."""
    table, baseline = compared(server, contenders, BASELINE, repetitions=repetitions, seconds=seconds)
    return Section(
        "A run that survives a crash",
        f"As above, {IN_FLIGHT} in flight. `run_batch` writes an output in the order of its input. Its journal makes "
        "an intent durable (fsync) before each request leaves and its result before it is shown; async-batch-llm's "
        "store keeps results, `balanced` (its default) without an fsync for each commit, `full` with one.",
        ("client", "prompts/s", "CPU µs/prompt", "prompts/s / without a journal"),
        [_row(contender, found, baseline) for contender, found in table],
        charted="prompts/s",
    )


def _row(contender: Contender, found: Sequence[Found], baseline: Sequence[Found]) -> Sequence[str]:
    if missing := shortfall(found):
        return (contender.name, missing, "", "")
    rates, cpus = ([each[figure] for each in found] for figure in ("rate", "cpu"))
    ratio = ""
    if baseline and not shortfall(baseline):
        ratio = spread((own["rate"] / base["rate"] for own, base in zip(found, baseline, strict=True)), 2)
    return (contender.name, spread(rates), spread(cpus), ratio)
