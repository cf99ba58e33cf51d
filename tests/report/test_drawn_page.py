"""What a browser makes of a report: pixels, widths, colours; and that it asks for nothing."""

from collections.abc import AsyncIterator, Iterator
from datetime import UTC
from pathlib import Path

import pytest
import pytest_asyncio
from browser import CHROMIUM, Browser, Page, chromium, connected
from sample_reports import HOSTILE, START, a_report, span

from onellm_async.report.model import Latency, Report, TimeSlice
from onellm_async.report.page import render_page

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (apt-get install chromium)")

PLOTS = ("throughput", "latency", "queue", "trouble", "spending")
PIXELS = """((key, name) => {
    const hex = getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
    const wanted = [1, 3, 5].map(at => parseInt(hex.slice(at, at + 2), 16));
    const canvas = document.querySelector(`#plot-${key} canvas`);
    const {width, height} = canvas;
    const {data} = canvas.getContext("2d").getImageData(0, 0, width, height);
    const found = [];
    for (let at = 0; at < data.length; at += 4)
        if (data[at + 3] > 200 && wanted.every((value, part) => Math.abs(value - data[at + part]) < 12))
            found.push([at / 4 % width, Math.floor(at / 4 / width)]);
    return {width, height, found};
})"""
CONTRAST = """(() => {
    const luminance = colour => {
        const [red, green, blue] = colour.match(/[\\d.]+/g).slice(0, 3).map(part => part / 255)
            .map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
    };
    const page = luminance(getComputedStyle(document.body).backgroundColor);
    const told = {};
    for (const element of document.querySelectorAll("main *")) {
        if (![...element.childNodes].some(node => node.nodeType === 3 && node.data.trim())) continue;
        const ink = luminance(getComputedStyle(element).color);
        const ratio = (Math.max(ink, page) + 0.05) / (Math.min(ink, page) + 0.05);
        if (ratio < 4.5) told[element.tagName + "." + element.className] = ratio;
    }
    return told;
})()"""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a browser that all tests share: it takes longer to start than all that a test does with it."""
    with chromium(tmp_path_factory.mktemp("profile")) as address:
        yield address


@pytest_asyncio.fixture
async def browser(address: str) -> AsyncIterator[Browser]:
    async with connected(address) as browser:
        yield browser


def written(report: Report, folder: Path) -> Path:
    path = folder / "a report.html"
    path.write_text(render_page(report, zone=UTC), "utf-8")
    return path


async def pixels(page: Page, plot: str, colour: str) -> dict[int, list[int]]:
    """Where a plot has pixels of a colour: the heights above its lower edge, by column, highest first."""
    told = await page.run(f"{PIXELS}({plot!r}, {colour!r})")
    assert isinstance(told, dict)
    columns: dict[int, list[int]] = {}
    for x, y in told["found"]:
        columns.setdefault(x, []).append(told["height"] - y)
    return {x: sorted(heights, reverse=True) for x, heights in sorted(columns.items())}


def steady() -> Report:
    """A minute at 30 answers a minute under a limit of 60, an hour's break, and a minute of nothing."""
    parts = [
        TimeSlice(
            session=session,
            start=60.0 * session + at,
            clock=START + 3660 * session + at,
            width=10,
            answered=0 if session else 5,
            limit=60,
            in_flight=1,
            cost=0.05 + (0 if session else at / 1200),
            rate_limited=0,
        )
        for session in (0, 1)
        for at in range(0, 60, 10)
    ]
    return a_report(
        sessions=(span(START, START + 60), span(START + 3660, START + 3720)),
        slices=tuple(parts),
        latency=Latency(edges=(1.0, 2.0, 4.0, 8.0), counts=(10, 40, 20), p50=3.0),
    )


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [375, 1100], ids=["phone", "desktop"])
async def test_every_plot_is_drawn_and_nothing_is_asked_for_complained_of_or_too_wide(
    width: int, dark: bool, browser: Browser, tmp_path: Path
) -> None:
    path = written(a_report(), tmp_path)
    page = await browser.open(path, width=width, dark=dark)
    assert page.complaints == []
    assert page.requests == [path.as_uri()]
    assert await page.run("document.documentElement.scrollWidth") == width
    assert await page.run("document.querySelectorAll('canvas').length") == len(PLOTS)
    for plot, colour in zip(PLOTS, ("blue", "blue", "amber", "red", "green"), strict=True):
        assert len(await pixels(page, plot, colour)) > 20, plot
    assert await page.run(CONTRAST) == {}
    background = await page.run("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(18, 20, 23)" if dark else "rgb(255, 255, 255)")


async def dashed_line(page: Page, plot: str) -> tuple[int, int]:
    """Where the only dashed line across a plot stands, and the height of its foot, which is that of the axis."""
    columns = await pixels(page, plot, "grey")
    lines = [(x, heights[-1]) for x, heights in columns.items() if len(heights) > 60]
    assert len(lines) == 1
    return lines[0]


async def test_curves_are_as_high_and_as_far_as_the_numbers_say(browser: Browser, tmp_path: Path) -> None:
    page = await browser.open(written(steady(), tmp_path))
    _, axis = await dashed_line(page, "throughput")
    answered = await pixels(page, "throughput", "blue")
    ink = await pixels(page, "throughput", "ink")
    left, right = min(ink), max(ink)
    (allowed,) = {heights[0] - axis for x, heights in ink.items() if x < left + 100}
    assert (max(heights[0] for heights in answered.values()) - axis) / allowed == pytest.approx(0.5, abs=0.01)
    blue = [x for x, heights in answered.items() if heights[0] - axis > 20]
    assert (min(blue), max(blue)) == (pytest.approx(left, abs=2), pytest.approx((left + right) / 2, abs=8))


async def test_the_break_between_sessions_is_a_line_across_where_it_was(browser: Browser, tmp_path: Path) -> None:
    page = await browser.open(written(steady(), tmp_path))
    for plot in ("throughput", "queue", "trouble", "spending"):
        drawn = sorted(await pixels(page, plot, {"queue": "blue", "trouble": "red"}.get(plot, "ink")))
        x, _ = await dashed_line(page, plot)
        assert (x - drawn[0]) / (drawn[-1] - drawn[0]) == pytest.approx(0.5, abs=0.02), plot


async def test_the_bars_of_the_histogram_have_the_ratios_of_the_counts(browser: Browser, tmp_path: Path) -> None:
    page = await browser.open(written(steady(), tmp_path))
    percentile, axis = await dashed_line(page, "latency")
    columns = await pixels(page, "latency", "blue")
    left, right = min(columns), max(columns)
    tops = [columns[round(left + (right - left) * share)][0] - axis for share in (1 / 6, 4 / 9, 5 / 6)]
    assert (tops[0] / tops[1], tops[2] / tops[1]) == (pytest.approx(0.25, abs=0.01), pytest.approx(0.5, abs=0.01))
    assert (percentile - left) / (right - left) == pytest.approx(0.5, abs=0.01)


async def test_plots_are_drawn_again_when_the_colour_scheme_changes(browser: Browser, tmp_path: Path) -> None:
    page = await browser.open(written(a_report(), tmp_path), dark=False)
    light = await pixels(page, "throughput", "blue")
    await page.dark(True)
    await page.drawn()
    dark = await pixels(page, "throughput", "blue")
    assert dark.keys() == light.keys()
    assert await page.run("getComputedStyle(document.documentElement).getPropertyValue('--blue')") == "#82aaff"
    assert page.complaints == []


async def test_a_plot_becomes_as_wide_as_its_place(browser: Browser, tmp_path: Path) -> None:
    page = await browser.open(written(a_report(), tmp_path), width=1100)
    before = max(await pixels(page, "throughput", "blue"))
    await page.call("Emulation.setDeviceMetricsOverride", width=375, height=800, deviceScaleFactor=1, mobile=True)
    await page.drawn()
    assert max(await pixels(page, "throughput", "blue")) < 343 < before
    assert await page.run("document.documentElement.scrollWidth") == 375


async def test_paper_is_light_whatever_the_screen_is(browser: Browser, tmp_path: Path) -> None:
    page = await browser.open(written(a_report(), tmp_path), dark=True)
    await page.run("dispatchEvent(new Event('beforeprint'))")
    await page.drawn()
    assert await page.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert await pixels(page, "throughput", "blue")
    await page.run("dispatchEvent(new Event('afterprint'))")
    assert await page.run("getComputedStyle(document.body).backgroundColor") == "rgb(18, 20, 23)"


async def test_without_scripts_the_tables_are_there_and_the_plots_take_no_room(
    browser: Browser, tmp_path: Path
) -> None:
    page = await browser.open(written(a_report(), tmp_path), scripts=False)
    for domain in ("DOM", "CSS"):
        await page.call(f"{domain}.enable")
    root = (await page.call("DOM.getDocument"))["root"]["nodeId"]
    for selector, shown in ((".plot", False), (".no-script", True), ("summary", True), ("#slowest td", True)):
        node = (await page.call("DOM.querySelector", nodeId=root, selector=selector))["nodeId"]
        style = (await page.call("CSS.getComputedStyleForNode", nodeId=node))["computedStyle"]
        assert (next(part["value"] for part in style if part["name"] == "display") != "none") is shown, selector


async def test_hostile_words_are_shown_and_not_run(browser: Browser, tmp_path: Path) -> None:
    page = await browser.open(written(a_report(name=HOSTILE, subtitle=HOSTILE), tmp_path))
    assert await page.run("window.hacked === undefined")
    assert await page.run("document.querySelector('h1').textContent") == HOSTILE
    assert await page.run("document.images.length") == 0


async def test_a_script_that_slipped_in_would_not_run(browser: Browser, tmp_path: Path) -> None:
    path = written(a_report(), tmp_path)
    path.write_text(path.read_text("utf-8").replace("</h1>", "</h1><script>window.hacked = true</script>"), "utf-8")
    page = await browser.open(path)
    assert await page.run("window.hacked === undefined")
    assert any("Content Security Policy" in complaint for complaint in page.complaints)
