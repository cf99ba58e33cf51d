"""Writes ``llms.txt`` and ``llms-full.txt`` into the built site: ``python docs/llms_txt.py HTML TEXT``.

A guide is given as it is written, with the files that it includes. A page of the reference is that of Sphinx's text
builder, because only a builder has the signatures; `TEXT` is its output. Both are written beside the HTML.
"""

import re
import sys
from pathlib import Path

DOCS = Path(__file__).parent
TITLE = "# onellm-async"
CHAPTERS = ("Start", "How to", "Moving from", "Reference", "The project")


def chapters() -> dict[str, list[str]]:
    """Names of the pages by the chapter of the table of contents, in its order."""
    index = (DOCS / "index.md").read_text("utf-8")
    trees = re.findall(r"```\{toctree\}\n(.*?)```", index, re.DOTALL)
    return dict(zip(CHAPTERS, (re.findall(r"^[a-z][\w/-]+$", tree, re.MULTILINE) for tree in trees), strict=True))


def page_text(page: str, text: Path) -> tuple[str, str]:
    """The content of a page, and the ending of its file."""
    source = DOCS / f"{page}.md"
    content = source.read_text("utf-8")
    if "{eval-rst}" in content:
        return (text / f"{page}.txt").read_text("utf-8"), "txt"
    content = re.sub(r"```\{raw\} html\n.*?```\n", "", content, flags=re.DOTALL)

    def included(directive: re.Match[str]) -> str:
        file = (source.parent / directive[2]).resolve()
        body = file.read_text("utf-8")
        return body if directive[1] == "include" else f"`{file.name}`:\n\n```{file.suffix[1:]}\n{body}```"

    return re.sub(r"```\{(include|literalinclude)\} (\S+)\n.*?```", included, content, flags=re.DOTALL), "md"


def heading_and_first_sentence(content: str) -> tuple[str, str]:
    """The title of a page, and the first sentence that says what it is about."""
    title, _, rest = content.lstrip().partition("\n")
    rest = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", rest)  # links would be relative to the page
    paragraphs = (" ".join(part.split()) for part in rest.split("\n\n"))
    sentences = (sentence for part in paragraphs for sentence in re.split(r"(?<=[.:]) (?=[A-Z`])", part))
    told = (
        sentence
        for sentence in sentences
        if re.match(r"[A-Z`\"*].*[.:]$", sentence) and not re.match(r"Install the client|`pip install|Bases:", sentence)
    )
    return title.strip("#* "), next(told, "").rstrip(":")


def summary() -> str:
    """The first sentences of the entry page."""
    lead = (DOCS / "index.md").read_text("utf-8").partition(":::{container} lead\n")[2].partition(":::")[0]
    return " ".join(lead.replace("**", "").split())


def main(html: Path, text: Path) -> None:
    """Writes both files."""
    lines = [TITLE, "", f"> {summary()}", "", "`pip install 'onellm-async[cli]'`. Python 3.11 or later.", ""]
    full = [f"{TITLE}\n\n{summary()}\n"]
    for chapter, pages in chapters().items():
        lines += [f"## {chapter}", ""]
        for page in pages:
            content, ending = page_text(page, text)
            title, sentence = heading_and_first_sentence(content)
            lines.append(f"- [{title}]({page}.{ending}): {sentence}".rstrip(": "))
            full.append(f"<!-- {page} -->\n\n{content}")
            (html / f"{page}.{ending}").write_text(content, "utf-8")
        lines.append("")
    (html / "llms.txt").write_text("\n".join(lines), "utf-8")
    (html / "llms-full.txt").write_text("\n".join(full), "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
