"""Configuration of Sphinx. Build with ``nox -s docs``."""

import re
from importlib import metadata
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.writers import text as text_writer

project = "onellm-async"
author = "The onellm-async authors"
copyright = "2026, the onellm-async authors"
release = version = metadata.version("onellm-async")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
copybutton_prompt_text = "$ "
smartquotes = False  # they turn the dashes of flags into one
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"onellm-async {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4

default_role = "py:obj"  # docstrings put names into single backticks
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_type_aliases = {"Model": "onellm_async.catalog.Model"}  # for overloads, which pass by _shorten
autodoc_default_options = {
    "members": True,
    "show-inheritance": True,
    # Without the members of these: they would hide our own.
    "inherited-members": "object, Exception, BaseException, Enum, IntEnum, StrEnum, int, str, dict, tuple, Protocol",
}
napoleon_numpy_docstring = False
napoleon_use_ivar = True

_MODEL = re.compile(r"(?:~?typing\.)?Literal\['GPT-5',[^\]]*\] \| str")


def _shorten(app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str, returns: str) -> Any:  # noqa: PLR0917  # as Sphinx calls it
    """Writes the type alias of model ids by its name, instead of all 48 ids in every signature."""
    return _MODEL.sub("Model", signature or "") or signature, _MODEL.sub("Model", returns or "") or returns


def _write_command_line(_: Sphinx) -> None:
    """Writes the page on the command line, from the code that reads the flags."""
    from onellm_async.cli.app import app as command_line

    text = command_line.generate_docs()
    before, _, rest = text.partition("## Table of Contents")
    text = before + rest[rest.index("**Commands**") :]
    title = "# Command line\n\n`pip install 'onellm-async[cli]'` installs it. `--help` of a command has examples, too.\n"
    page = Path(__file__).parent / "reference" / "command-line.md"
    text = text.replace("# onellm-async\n", title, 1)
    if not page.exists() or page.read_text("utf-8") != text:
        page.write_text(text, "utf-8")


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    # For llms.txt: names and flags are not broken at their hyphens.
    text_writer.MAXWIDTH = 100
    text_writer.TextWrapper.wordsep_re = re.compile(r"(\s+)")
    app.connect("builder-inited", _write_command_line)
    app.connect("autodoc-process-signature", _shorten)
