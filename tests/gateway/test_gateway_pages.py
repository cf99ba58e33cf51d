"""What the operator looks at: the metrics, and the status page in a browser."""

import base64
import re
import sys
from pathlib import Path

import pytest
from attrs import evolve
from prometheus_client.parser import text_string_to_metric_families

from onellm_async import Limits
from onellm_async.gateway import GatewaySettings
from onellm_async.gateway.keys import InboundKey
from onellm_async.gateway.metrics import Metrics, render_metrics
from onellm_async.gateway.spending import KeySpending
from onellm_async.gateway.status_page import GatewayStatus, render_status
from onellm_async.limits.snapshot import empty_snapshot

sys.path.append(str(Path(__file__).parents[1] / "report"))
from browser import CHROMIUM, chromium, connected

SPENDING = {"alice": KeySpending(requests=3, answered=2, billed=10**10, at_risk=5 * 10**9, possibly_billed=1)}
SAMPLE = re.compile(r'onellm_gateway_[a-z_]+(\{([a-z]+="(\\.|[^"\\])*",?)+\})? -?[0-9.e+-]+|.*\+Inf.*')


def metrics() -> Metrics:
    counted = Metrics()
    counted.record("alice", 200, 0.3)
    counted.record("alice", 200, 700.0)
    counted.record('o"dd\n\\', 503, 0.1)
    return counted


def test_the_metrics_are_text_that_prometheus_reads():
    text = render_metrics(metrics(), evolve(empty_snapshot(Limits()), rate=40.0, participants=2), SPENDING)
    lines = text.splitlines()
    assert all(line.startswith("# ") or SAMPLE.fullmatch(line) for line in lines)
    assert 'onellm_gateway_requests_total{key="alice",status="200"} 2' in lines
    assert 'onellm_gateway_requests_total{key="o\\"dd\\n\\\\",status="503"} 1' in lines
    assert 'onellm_gateway_request_seconds_bucket{le="0.5"} 1' in lines
    assert 'onellm_gateway_request_seconds_bucket{le="+Inf"} 2' in lines
    assert "onellm_gateway_request_seconds_count 2" in lines
    assert 'onellm_gateway_cost_usd_total{key="alice"} 1' in lines
    assert 'onellm_gateway_at_risk_usd_total{key="alice"} 0.5' in lines
    assert "onellm_gateway_rate_limit 40" in lines
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert families["onellm_gateway_requests"].samples[1].labels == {"key": 'o"dd\n\\', "status": "503"}
    assert families["onellm_gateway_request_seconds"].type == "histogram"
    names = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert len(names) == len(set(names))


def test_the_metrics_of_a_gateway_without_ledger_and_limit_leave_them_out():
    text = render_metrics(Metrics(), empty_snapshot(Limits.unlimited()), {})
    assert "cost_usd" not in text
    assert "rate_limit " not in text


def status(**fields: object) -> GatewayStatus:
    snapshot = evolve(
        empty_snapshot(Limits()),
        queued={"interactive": 1, "default": 12, "batch": 0},
        waiting_for={"interactive": "rate", "default": "lane", "batch": "idle"},
        longest_wait={"interactive": 0.5, "default": 70.0, "batch": 0.0},
        bottleneck="rate",
        rate=40.0,
        last_error='503 <script>alert("x")</script>',
    )
    keys = [
        InboundKey(name="alice", sha256="0" * 64, lane="interactive", max_cost=5.0),
        InboundKey(name="bob", sha256="1" * 64),
    ]
    spending = {**SPENDING, "carol": KeySpending(requests=1, answered=1, billed=1)}
    return evolve(
        GatewayStatus(snapshot=snapshot, metrics=metrics(), keys=keys, spending=spending, max_cost=50, uptime=3700),
        **fields,
    )


def test_the_page_shows_queue_money_and_keys_and_escapes_what_others_wrote():
    page = render_status(status())
    assert "Requests wait for: rate limit." in page
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    for text in ("1 min 10 s", "$1.50 of $50.00", "removed", "$5.00", "$0.50", "1 h 1 min"):
        assert text in page, text
    assert "0" * 64 not in page


def test_the_page_says_what_holds_everything_back():
    snapshot = status().snapshot
    assert "Circuit open. Next attempt in 12 s." in render_status(status(snapshot=evolve(snapshot, trial_in=12.0)))
    assert "Paused." in render_status(status(snapshot=evolve(snapshot, paused=True)))
    assert "Nothing waits." in render_status(GatewayStatus(snapshot=empty_snapshot(Limits()), metrics=Metrics()))


async def test_the_pages_of_the_operator_need_an_admin_key(serving, key_file):
    keys = key_file(alice={}, root={"admin": True})
    basic = "Basic " + base64.b64encode(b"anyone:key-of-root").decode()
    async with serving(settings=GatewaySettings(keys=keys)) as visitor:
        for path in ("/", "/metrics"):
            none = await visitor.get(path)
            broken = await visitor.get(path, Authorization="Basic !!!")
            user = await visitor.get(path, Authorization="Bearer key-of-alice")
            bearer = await visitor.get(path, Authorization="Bearer key-of-root")
            browser = await visitor.get(path, Authorization=basic)
            statuses = [each.status for each in (none, broken, user, bearer, browser)]
            assert statuses == [401, 401, 403, 200, 200]
            assert none.headers["WWW-Authenticate"].startswith("Basic ")
        assert (await visitor.get("/healthz")).status == 200


CONTRAST = """(() => {
    const luminance = color => {
        const [red, green, blue] = color.match(/[\\d.]+/g).slice(0, 3).map(part => part / 255)
            .map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
    };
    const page = luminance(getComputedStyle(document.body).backgroundColor);
    return [...document.querySelectorAll("main *")]
        .filter(element => [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim()))
        .map(element => {
            const ink = luminance(getComputedStyle(element).color);
            return [element.tagName, (Math.max(ink, page) + 0.05) / (Math.min(ink, page) + 0.05)];
        })
        .filter(([, ratio]) => ratio < 4.5);
})()"""
WIDTH = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (apt-get install chromium)")
async def test_a_browser_draws_the_page_and_asks_for_nothing_else(tmp_path: Path):
    path = tmp_path / "status.html"
    path.write_text(render_status(status()), "utf-8")
    with chromium(tmp_path / "profile") as address:
        async with connected(address) as browser:
            for width, dark in ((1100, False), (360, True)):
                page = await browser.open(path, width=width, dark=dark)
                assert [url for url in page.requests if not url.startswith("data:")] == [path.as_uri()]
                assert page.complaints == []
                assert await page.run(WIDTH) == 0
                assert await page.run(CONTRAST) == []
                assert await page.run("document.querySelectorAll('h1, h2').length") == 4
