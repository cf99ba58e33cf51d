"""The figures in the limiter's page are those of the runs that its plots show."""

import json
import re
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def test_the_page_quotes_the_figures_that_the_plots_were_drawn_from() -> None:
    text = " ".join((DOCS / "limiter.md").read_text("utf-8").split())
    figures = json.loads((DOCS / "_static/limiter.json").read_text("utf-8"))
    often, seldom = figures["trade"]["40"], figures["trade"]["300"]
    assert f"{figures['answered']:,} prompts were answered, and {figures['rate_limited']} requests rate-limited" in text
    assert f"a doubled limit within {often[0]} s and has {often[1]} % rate-limited" in text
    assert f"every 300, {seldom[0]} s and {seldom[1]} %" in text
    for run in figures["kinds"].values():
        accepted, rate_limited = f"{run['accepted']:,}", run["rate_limited"]
        assert re.search(rf"\b{accepted} accepted\b[^:]*?\b{rate_limited} 429s", text), run
    assert f"{figures['interactive chats']} interactive chats come by" in text
    assert f"keeps at most {figures['batch queue']} in it" in text
    assert f"waited: {figures['longest interactive wait']} s at most" in text


def test_the_plots_carry_no_date_and_no_background() -> None:
    for name in ("rate", "lanes", "probes", "kinds"):
        drawing = (DOCS / f"_static/limiter-{name}.svg").read_text("utf-8")
        assert "<dc:date>" not in drawing
        assert "fill: #ffffff" not in drawing
