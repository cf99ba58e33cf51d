import pytest
from attrs import asdict
from sample_reports import span

from onellm_async.limits.snapshot import Snapshot
from onellm_async.report.bottlenecks import analyze_sessions

T = 1_767_258_000.0


def sample(at: float, **known: object) -> tuple[float, dict[str, object]]:
    snapshot = Snapshot(max_concurrency=48, at=5.0, **known)  # type: ignore[arg-type]
    return at, {"progress": {}, "snapshot": asdict(snapshot)}


def test_sessions_count_as_one_run_although_each_has_a_clock_and_counters_of_its_own() -> None:
    sessions = (span(T, T + 30), span(T + 9000, T + 9010))
    samples = [
        sample(T, bottleneck="rate", rate=40.0),
        sample(T + 30, bottleneck="rate", rate=40.0, answered=90, retried=30),
        sample(T + 9000, in_flight=2),
        sample(T + 9010, in_flight=2, answered=8),
    ]
    told = analyze_sessions(sessions, samples)
    assert told is not None
    assert told.shares == {"rate": pytest.approx(0.75), "service": pytest.approx(0.25)}
    assert told.summary.startswith("75 % of the time the rate limit of 40.0 requests per minute was")
    assert told.summary.endswith("30 % of the requests were retries.")


def test_too_few_or_unreadable_samples_give_no_verdict() -> None:
    sessions = (span(T, T + 30),)
    assert analyze_sessions(sessions, []) is None
    assert analyze_sessions(sessions, [sample(T)]) is None
    assert analyze_sessions(sessions, [(T, None), (T + 1, {"snapshot": 3}), (T + 2, {"snapshot": {"rate": 1}})]) is None


def test_what_a_later_version_adds_to_a_snapshot_is_left_out() -> None:
    at, body = sample(T + 10, bottleneck="concurrency", in_flight=48)
    told = analyze_sessions(
        (span(T, T + 30),),
        [(T, body), (at, {"snapshot": {**body["snapshot"], "mood": "good"}})],  # type: ignore[dict-item]
    )
    assert told is not None
    assert list(told.shares) == ["concurrency"]
