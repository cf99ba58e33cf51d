"""``python -m benchmarks``: measures, prints the report, and writes it when all of it was measured."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import (
    bulk,
    closed_loop,
    durable,
    goodput,
    import_time,
    journal,
    latency,
    memory,
    overhead,
    quota,
    scaling,
    sockets,
    targets,
)
from benchmarks.charts import draw
from benchmarks.peers import Contender
from benchmarks.processes import fast_server
from benchmarks.report import Section, markdown, with_parts

SUBJECTS = (
    "overhead",
    "bulk",
    "latency",
    "scaling",
    "imports",
    "goodput",
    "targets",
    "closed_loop",
    "sockets",
    "quota",
    "memory",
    "durable",
    "journal",
)
RESULTS = Path(__file__).with_name("RESULTS.md")


def _arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measures this client beside its peers.")
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help=f"{', '.join(SUBJECTS)}; default all")
    parser.add_argument("--repetitions", type=int, help=f"of each measurement; default 3, of quota {quota.REPETITIONS}")
    parser.add_argument("--seeds", type=int, default=50, help="of each simulated target; default 50")
    parser.add_argument("--quick", action="store_true", help="a smoke run of minutes, whose figures mean little")
    parser.add_argument("--only", action="append", default=[], metavar="TEXT", help="clients whose name starts so")
    parser.add_argument("--output", type=Path, help=f"write the report there, in place of {RESULTS.name} or its parts")
    parsed = parser.parse_args(arguments)
    if unknown := set(parsed.subjects) - set(SUBJECTS):
        parser.error(f"no such subject: {', '.join(sorted(unknown))}")
    if (parsed.repetitions is not None and parsed.repetitions < 1) or parsed.seeds < 1:
        parser.error("at least one repetition and one seed are needed")
    return parsed


def _sections(chosen: argparse.Namespace) -> list[Section]:
    subjects = chosen.subjects or SUBJECTS
    repetitions = 1 if chosen.quick else chosen.repetitions or 3
    found: dict[str, Section | list[Section]] = {}
    if {"overhead", "bulk", "latency", "memory", "durable"} & set(subjects):
        found |= _on_the_fast_server(chosen, subjects, repetitions)
    if "scaling" in subjects:
        size = {"number": 200, "most": 10} if chosen.quick else {"number": 20_000, "most": 1_000_000}
        found["scaling"] = scaling.run(repetitions=repetitions, **size)
    if "imports" in subjects:
        found["imports"] = import_time.run(repetitions=1 if chosen.quick else max(5, repetitions))
    if "goodput" in subjects:
        number = 100 if chosen.quick else goodput.SCENE.number
        found["goodput"] = goodput.run(_wanted(chosen, goodput.CONTENDERS), repetitions=repetitions, number=number)
    if "journal" in subjects:
        share = 0.05 if chosen.quick else 1.0
        found["journal"] = journal.run(_wanted(chosen, journal.CONTENDERS), repetitions=repetitions, share=share)
    found |= _simulated(chosen, subjects)
    if "sockets" in subjects:
        settings = sockets.QUICK if chosen.quick else sockets.SETTINGS
        found["sockets"] = sockets.run(repetitions=repetitions, settings=settings)
    if "quota" in subjects:
        size = {"settings": quota.QUICK} if chosen.quick else {}
        few = repetitions if chosen.quick or chosen.repetitions else quota.REPETITIONS
        found["quota"] = quota.run(repetitions=few, **size)
    ordered = [found[subject] for subject in SUBJECTS if subject in found]
    return [section for sections in ordered for section in (sections if isinstance(sections, list) else [sections])]


def _wanted(chosen: argparse.Namespace, contenders: Sequence[Contender]) -> list[Contender]:
    return [each for each in contenders if not chosen.only or each.name.startswith(tuple(chosen.only))]


def _on_the_fast_server(chosen: argparse.Namespace, subjects: Sequence[str], repetitions: int) -> dict[str, Section]:
    seconds = 0.2 if chosen.quick else 3.0
    found: dict[str, Section] = {}
    with fast_server(seconds) as server:
        if "overhead" in subjects:
            peers = _wanted(chosen, overhead.CONTENDERS)
            found["overhead"] = overhead.run(server, peers, repetitions=repetitions, seconds=seconds)
        if "bulk" in subjects:
            number = 2_000 if chosen.quick else 100_000
            found["bulk"] = bulk.run(server, repetitions=repetitions, number=number)
        if "latency" in subjects:
            found["latency"] = latency.run(server, repetitions=repetitions, seconds=seconds)
        if "durable" in subjects:
            peers = _wanted(chosen, durable.CONTENDERS)
            found["durable"] = durable.run(server, peers, repetitions=repetitions, seconds=seconds)
        if "memory" in subjects:
            found["memory"] = memory.run(server, number=5_000 if chosen.quick else 200_000)
    return found


def _simulated(chosen: argparse.Namespace, subjects: Sequence[str]) -> dict[str, Section]:
    found: dict[str, Section] = {}
    if "targets" in subjects:
        sizes = (
            {"seeds": 2, "numbers": (50, 100, 250), "minutes": 2, "waiters": 1_000}
            if chosen.quick
            else {"seeds": chosen.seeds}
        )
        found["targets"] = targets.run(**sizes)
    if "closed_loop" in subjects:
        size = {"seeds": 1, "prompts": 16} if chosen.quick else {}
        found["closed_loop"] = closed_loop.run(**size)
    return found


def main(arguments: Sequence[str]) -> None:
    chosen = _arguments(arguments)
    command = shlex.join(["python", "-m", "benchmarks", *arguments])
    whole = not (chosen.quick or chosen.only or chosen.subjects)
    sections = _sections(chosen)
    text = markdown(sections, command, draw(sections, RESULTS.with_name("charts")) if whole else None)
    print(text)
    if output := chosen.output or (RESULTS if whole else None):
        output.write_text(text, encoding="utf-8")
    elif not (chosen.quick or chosen.only):
        before = RESULTS.read_text(encoding="utf-8")
        RESULTS.write_text(with_parts(before, sections, command), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
