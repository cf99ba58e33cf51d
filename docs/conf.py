"""Configuration of Sphinx. Build with ``nox -s docs``."""

import re
from importlib import metadata
from typing import Any

from sphinx.application import Sphinx

project = "onellm-async"
author = "The onellm-async authors"
copyright = "2026, the onellm-async authors"
release = version = metadata.version("onellm-async")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"onellm-async {release}"

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

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


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-signature", _shorten)
