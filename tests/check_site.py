"""The built documentation holds what people and programs look for: ``python tests/check_site.py docs/_build/html``."""

import importlib
import json
import re
import sys
from pathlib import Path

from sphinx.search.en import SearchEnglish

HEADINGS = {
    "backoff": "how-to/errors",
    "jitter": "how-to/errors",
    "retries": "how-to/errors",
    "proxy": "how-to/proxies",
    "logging": "how-to/recipes",
    "jupyter": "how-to/recipes",
    "pandas": "how-to/recipes",
    "tqdm": "how-to/recipes",
    "semaphore": "how-to/from-gather-and-semaphore",
    "litellm": "how-to/from-litellm",
    "openai": "how-to/from-openai-python",
    "deprecated": "contributing",
}
"""Words that people search for, and the page with such a heading: search shows it first."""
TEXT = {
    "concurrency": "how-to/limits",
    "prometheus": "reference/integrations",
    "opentelemetry": "reference/integrations",
    "langchain": "reference/integrations",
    "structured": "how-to/structured-output",
    "timeout": "reference/client",
    "redis": "how-to/quota",
    "resume": "how-to/durable-runs",
    "stream": "how-to/gateway",
}
"""Words, and a page whose text has to have them."""


def pages_with(index: dict[str, object], key: str, word: str) -> set[str]:
    terms = index[key]
    names = index["docnames"]
    assert isinstance(terms, dict)
    assert isinstance(names, list)
    found = terms.get(SearchEnglish({}).stem(word.lower()), [])
    return {names[number] for number in (found if isinstance(found, list) else [found])}


def check(site: Path) -> list[str]:
    """Returns what is missing."""
    script = (site / "searchindex.js").read_text("utf-8")
    index = json.loads(script.removeprefix("Search.setIndex(").rstrip().removesuffix(")"))
    missing = [
        f"search for {word}: no heading on {page}, but on {sorted(pages_with(index, 'titleterms', word))}"
        for word, page in HEADINGS.items()
        if page not in pages_with(index, "titleterms", word)
    ]
    missing += [
        f"search for {word}: not on {page}"
        for word, page in TEXT.items()
        if page not in pages_with(index, "terms", word) | pages_with(index, "titleterms", word)
    ]
    full = (site / "llms-full.txt").read_text("utf-8")
    links = re.findall(r"\]\(([^)]+)\)", (site / "llms.txt").read_text("utf-8"))
    missing += [f"llms.txt: {link} does not exist" for link in links if not (site / link).exists()]
    if len(links) < 40:
        missing.append(f"llms.txt has {len(links)} links")
    wanted = ["gather_chats(", "onellm-async run", "--max-cost", "class Limits(", "cancel_on_disconnect"]
    missing += [f"llms-full.txt has no {text}" for text in wanted if text not in full]
    objects = (site / "genindex.html").read_text("utf-8")
    for module in ("onellm_async", "onellm_async.batch", "onellm_async.report", "onellm_async.testing"):
        names = importlib.import_module(module).__all__
        missing += [
            f"{module}.{name} is not in the reference"
            for name in names
            if name != "__version__" and name not in objects
        ]
    inherited = ("AsyncOneLLM.snapshot", "AsyncOneLLM.pause", "AsyncOneLLM.chat", "OneLLM.run")
    html = "".join(page.read_text("utf-8") for page in (site / "reference").glob("*.html"))
    missing += [f"the reference has no {name}" for name in inherited if f'id="onellm_async.{name}"' not in html]
    return missing


if __name__ == "__main__":
    problems = check(Path(sys.argv[1]))
    print("\n".join(problems) or "The site has what it must have.")
    sys.exit(1 if problems else 0)
