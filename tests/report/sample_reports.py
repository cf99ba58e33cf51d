"""Reports as real runs give them, to draw and to read."""

import math
import random

from onellm_async.report.model import (
    BadLine,
    FailedPrompt,
    Figures,
    Latency,
    Report,
    RunSession,
    RunStatus,
    Share,
    SlowPrompt,
    TimeSlice,
    Verdict,
)

START = 1_767_258_000.0
HOSTILE = "</script><script>window.hacked = true</script><img src=x onerror='window.hacked = true'>"


def a_report(**changes: object) -> Report:
    """1,319 prompts at 40 a minute in two sessions, with some of everything that can go wrong."""
    values: dict[str, object] = {
        "name": "answers.jsonl",
        "subtitle": "gsm8k.jsonl, asked of GPT-5-Nano",
        "made_at": START + 50_000,
        "standing": RunStatus.COMPLETE,
        "identity": (
            ("Input", "gsm8k.jsonl"),
            ("Lines", "1,319"),
            ("Digest", "9f2c5d0e6b7a4c1f8e3d2b1a0c9d8e7f"),
            ("Model", "GPT-5-Nano"),
            ("Address", "http://127.0.0.1:8080/api/chat"),
        ),
        "sessions": (
            RunSession(started=START, ended=START + 900, version="0.1.0", requests_per_minute=40, burst=40),
            RunSession(
                started=START + 44_100,
                ended=START + 45_147,
                end_reason="complete",
                version="0.1.0",
                requests_per_minute=40,
                burst=40,
            ),
        ),
        "figures": Figures(
            total=1321,
            answered=1307,
            failed=12,
            bad_lines=2,
            possibly_billed=3,
            at_risk=0.00042,
            cost=0.4213,
            budget=0.5,
            input_tokens=131_204,
            output_tokens=402_877,
            rate_limited=9,
            retries=31,
            possible=1378,
        ),
        "verdict": Verdict(
            "Most of the time, 91 %, the rate limit set the pace: 40 requests a minute. A higher limit would make it "
            "shorter; more requests at once would not.",
            (
                Share("rate limit", 0.91),
                Share("waiting for the last answers", 0.05),
                Share("retries", 0.03),
                Share("slow output", 0.01),
            ),
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
            SlowPrompt(
                index=index,
                line=index + 1,
                custom_id=f"gsm8k-{index}",
                elapsed=1800 - 40 * place,
                latency=22.1 - place,
                attempts=1 + place % 3,
            )
            for place, index in enumerate((1300, 877, 12, 404, 5))
        ),
        "failures": (
            FailedPrompt(
                index=12, line=13, custom_id=HOSTILE, kind="BadRequestError", message=HOSTILE, status_code=400
            ),
            FailedPrompt(
                index=404,
                line=405,
                custom_id="gsm8k-404",
                kind="APITimeoutError",
                message="No reply within 600 s; the request may have been billed.",
                attempts=4,
                possibly_billed=3,
            ),
        ),
        "bad_lines": (BadLine(77, "Not JSON: unexpected end of data."), BadLine(901, f"prompt is {HOSTILE!r}.")),
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
