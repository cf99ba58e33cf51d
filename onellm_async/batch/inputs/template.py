"""One prompt out of the fields of a line or row, by a Jinja2 template. The only file that knows Jinja2.

Templates are sandboxed and strict: what a line does not have, and null where text is wanted, make it a bad line,
since a prompt with a hole in it is paid for all the same.
"""

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path

from onellm_async.chat import JSON
from onellm_async.errors import BatchError
from onellm_async.validation import truncated_repr

__all__ = ["PromptTemplate", "TemplateError"]


class TemplateError(Exception):
    """A template cannot be filled from a line; the message says why."""


class PromptTemplate:
    """A compiled template.

    Its variables are the fields of a JSON object, or the columns of a row; ``row`` is all of them, for names that are
    no identifiers. In a line of text, and for a JSON string, there is ``prompt``.

    Args:
        text: The template.
        name: Its name in messages.

    Attributes:
        digest: 32 hexadecimal digits that tell two templates apart.
        fields: The fields that it uses.

    Raises:
        BatchError: If Jinja2 is not installed, or the template is no valid one.

    Example:
        >>> PromptTemplate("Translate into {{ language }}: {{ text }}").render({"language": "German", "text": "Hi"})
        'Translate into German: Hi'
    """

    def __init__(self, text: str, name: str = "template") -> None:
        try:
            from jinja2 import StrictUndefined, TemplateSyntaxError  # noqa: PLC0415  # an extra
            from jinja2.meta import find_undeclared_variables  # noqa: PLC0415
            from jinja2.sandbox import ImmutableSandboxedEnvironment  # noqa: PLC0415
        except ImportError:
            raise BatchError(
                "Templates need Jinja2, which is not installed.", advice="pip install 'onellm-async[template]'"
            ) from None
        environment = ImmutableSandboxedEnvironment(
            undefined=StrictUndefined, autoescape=False, finalize=_not_null, cache_size=0
        )
        try:
            self._template = environment.from_string(text)
        except TemplateSyntaxError as error:
            raise BatchError(f"{name} is not a template: line {error.lineno}: {error.message}") from None
        self.fields: frozenset[str] = frozenset(find_undeclared_variables(environment.parse(text)))
        self.digest: str = blake2b(text.encode(errors="surrogatepass"), digest_size=16).hexdigest()

    @classmethod
    def open(cls, file_or_text: str) -> "PromptTemplate":
        """The template in a file; or the one that `file_or_text` is, where it has braces or more than one line.

        Raises:
            BatchError: If the file cannot be read, or does not hold a template.
        """
        if any(mark in file_or_text for mark in ("{{", "{%", "{#", "\n")):
            return cls(file_or_text)
        try:
            text = Path(file_or_text).read_text(encoding="utf-8-sig")
        except UnicodeDecodeError:
            raise BatchError(f"The template {file_or_text} is not UTF-8.") from None
        except (OSError, ValueError) as error:
            raise BatchError(
                f"The template {file_or_text} cannot be read: {getattr(error, 'strerror', error)}.",
                advice="Name a file, or write the template itself, with fields as in '{{ question }}'.",
            ) from None
        return cls(text, name=file_or_text)

    def check_columns(self, source: str, columns: Sequence[str]) -> None:
        """Refuses a table that has none of the columns which the template uses.

        Raises:
            BatchError: If a misspelled column is the likely reason.
        """
        if self.fields and not self.fields & {*columns, "row"}:
            there = ", ".join(map(truncated_repr, columns[:8]))
            wanted = ", ".join(sorted(self.fields))
            raise BatchError(f"{source} has none of the columns that the template uses: {wanted} (columns: {there}).")

    def render(self, fields: Mapping[str, JSON]) -> str:
        """The prompt for one line or row.

        Raises:
            TemplateError: If a variable is undefined or null, or the template fails otherwise.
        """
        try:
            return self._template.render(fields if "row" in fields else {**fields, "row": fields})
        except _NullError:
            nulls = ", ".join(truncated_repr(name) for name, value in fields.items() if value is None)
            raise TemplateError(f"The template inserts a null (null here: {nulls or 'something inside'}).") from None
        except Exception as error:  # whatever an expression of the template's author can raise
            there = ", ".join(truncated_repr(name) for name in list(fields)[:5]) or "none"
            what = str(error).rstrip(".") or type(error).__name__
            raise TemplateError(f"The template cannot be filled: {what} (fields: {there}).") from None


class _NullError(Exception):
    """Inside this file only: a null would become the text "None"."""


def _not_null(value: object) -> object:
    if value is None:
        raise _NullError
    return value
