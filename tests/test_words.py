"""The words that the project does not use, because readers of the field would have to translate them."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "onellm_async"
DEAD = (
    "nobody",
    "somebody",
    "whoever",
    "everybody",
    "under way",
    "sitting",
    "foretell",
    "foretold",
    "purse",
    "ballast",
    "passage",
    "sprint",
    "haste",
    "in good order",
    "back-off",
    "time-out",
)
# `_` belongs to a name, so that the parts of names count; a line break and a comment sign may part two words.
ALTERNATIVES = "|".join(word.replace(" ", r"[\s#]+") for word in DEAD)
WORDS = re.compile(rf"(?<![a-z])({ALTERNATIVES})", re.IGNORECASE)
TEXTS = {".py", ".lua", ".md", ".html", ".j2", ".css", ".csv", ".txt", ".jsonl"}


def texts(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and path.suffix in TEXTS)


def folders(top: Path) -> list[Path]:
    below = (path for path in top.rglob("*") if path.is_dir())
    return [top, *sorted(path for path in below if not {"vendor", "_build", "__pycache__"} & set(path.parts))]


ROOMS = {
    folder.relative_to(ROOT).as_posix(): texts(folder)
    for top in (PACKAGE, ROOT / "docs", ROOT / "examples")
    for folder in folders(top)
} | {"the top": [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")]}


def dead_words(path: Path) -> list[str]:
    text = path.read_text("utf-8")
    return [
        f"{path.relative_to(ROOT)}:{text.count(chr(10), 0, found.start()) + 1}: {found.group()}"
        for found in WORDS.finditer(text)
    ]


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_a_room_has_none_of_the_dead_words(room: str) -> None:
    assert [found for path in ROOMS[room] for found in dead_words(path)] == []


@pytest.mark.parametrize("text", ["Nobody", "under\n    # way", "_purse", "LEAST_HASTE", "two sittings", "Back-off"])
def test_a_dead_word_is_found_in_sentences_and_names(text: str) -> None:
    assert WORDS.search(text)


@pytest.mark.parametrize("text", ["babysitting", "timeout", "backoff", "in order"])
def test_other_words_are_let_alone(text: str) -> None:
    assert not WORDS.search(text)
