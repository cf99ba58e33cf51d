"""Reports as real runs give them, to draw and to read."""

import math
import random

from onellm_async.batch.inputs.entry import LineError
from onellm_async.batch.journal.reader import RunSession
from onellm_async.batch.journal.record import JournalRecord, RecordState, RunCounts
from onellm_async.limits.bottleneck_analysis import BottleneckAnalysis
from onellm_async.report.model import Latency, Report, RunStatus, RunTotals, SessionSpan, TimeSlice
from onellm_async.wire import dump_json

START = 1_767_258_000.0
HOSTILE = "</script><script>window.hacked = true</script><img src=x onerror='window.hacked = true'>"


def span(started: float, ended: float, *, end_reason: str | None = None, **changes: object) -> SessionSpan:
    """A session of the journal, and the time of it."""
    session = RunSession(started, ended, end_reason, "0.1.0", None)
    return SessionSpan(session=session, ended=ended, **changes)  # type: ignore[arg-type]


def bad_line(line: int, message: str) -> LineError:
    return LineError("gsm8k.jsonl", line, message)


def failure(index: int, custom_id: str, kind: str, message: str, **changes: object) -> JournalRecord:
    error = {"type": kind, "message": message, "status_code": changes.pop("status_code", None)}
    values: dict[str, object] = {"attempts": 1} | changes
    return JournalRecord(
        index,
        index + 1,
        0,
        b"",
        custom_id,
        state=RecordState.FAILED,
        result=dump_json(error),
        **values,  # type: ignore[arg-type]
    )


def a_report(**changes: object) -> Report:
    """1,319 prompts at 40 a minute in two sessions, with some of everything that can go wrong."""
    values: dict[str, object] = {
        "name": "answers.jsonl",
        "subtitle": "gsm8k.jsonl, sent to GPT-5-Nano",
        "created_at": START + 50_000,
        "status": RunStatus.COMPLETE,
        "parameters": (
            ("Input", "gsm8k.jsonl"),
            ("Lines", "1,319"),
            ("Digest", "9f2c5d0e6b7a4c1f8e3d2b1a0c9d8e7f"),
            ("Model", "GPT-5-Nano"),
            ("API URL", "http://127.0.0.1:8080/api/chat"),
        ),
        "sessions": (
            span(START, START + 900, requests_per_minute=40, burst=40),
            span(
                START + 44_100,
                START + 45_147,
                end_reason="complete",
                requests_per_minute=40,
                burst=40,
            ),
        ),
        "totals": RunTotals(
            counts=RunCounts(
                answered=1307,
                failed=12,
                possibly_billed=3,
                at_risk=0.00042,
                cost=0.4213,
                input_tokens=131_204,
                output_tokens=402_877,
                rate_limited=9,
            ),
            total=1321,
            bad_lines=2,
            budget=0.5,
            retries=31,
            allowed=1378,
        ),
        "bottlenecks": BottleneckAnalysis(
            1947.0,
            {"rate": 0.91, "service": 0.05, "backoff": 0.03, "idle": 0.01},
            rate_limited_share=0.01,
            retried_share=0.02,
            summary="91 % of the time the rate limit of 40.0 requests per minute was the bottleneck. More requests per "
            "minute would make this run shorter; more concurrency would not.",
        ),
        "slices": slices(),
        "latency": Latency(
            edges=(0.5, 0.71, 1.0, 1.41, 2.0, 2.83, 4.0, 5.66, 8.0, 11.3, 16.0, 22.6),
            counts=(3, 12, 61, 170, 301, 342, 235, 121, 44, 13, 5),
            p50=2.9,
            p90=6.2,
            p99=12.4,
        ),
        "slowest": tuple(
            JournalRecord(
                index,
                index + 1,
                0,
                b"",
                f"gsm8k-{index}",
                state=RecordState.ANSWERED,
                elapsed=1800.0 - 40 * place,
                latency=22.1 - place,
                attempts=1 + place % 3,
            )
            for place, index in enumerate((1300, 877, 12, 404, 5))
        ),
        "failures": (
            failure(12, HOSTILE, "BadRequestError", HOSTILE, status_code=400),
            failure(
                404,
                "gsm8k-404",
                "APITimeoutError",
                "No reply within 600 s; the request may have been billed.",
                attempts=4,
                possibly_billed=3,
            ),
        ),
        "bad_lines": (bad_line(77, "Not JSON: unexpected end of data."), bad_line(901, f"prompt is {HOSTILE!r}.")),
    }
    return Report(**(values | changes))  # type: ignore[arg-type]


def slices(width: float = 15.0) -> tuple[TimeSlice, ...]:
    chance = random.Random(7)
    made: list[TimeSlice] = []
    done, start = 0, 0.0
    for session, (begun, length) in enumerate(((START, 900.0), (START + 44_100, 1047.0))):
        at = 0.0
        while at < length:
            this = min(width, length - at)
            answered = round(this / 60 * 40 + (30 * math.exp(-at / 15) if at < 60 else 0) + chance.uniform(-2, 2))
            done += answered
            made.append(
                TimeSlice(
                    session=session,
                    start=start,
                    clock=begun + at,
                    width=this,
                    answered=answered,
                    failed=chance.random() < 0.1,
                    limit=40.0,
                    queued={"batch": max(0, min(200, 1319 - done)), "interactive": 0, "default": 0},
                    in_flight=max(0.0, chance.gauss(2.4, 0.6)),
                    rate_limited=chance.random() < 0.08,
                    retries=chance.choice((0, 0, 0, 1, 0, 2)),
                    cost=done * 0.4213 / 1319,
                    input_tokens=done * 99,
                    output_tokens=done * 305,
                )
            )
            at += this
            start += this
    return tuple(made)
