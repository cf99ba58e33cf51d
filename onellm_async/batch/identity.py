"""What makes a run that run: another input or another question is another run. Pure."""

import re
from collections.abc import Mapping, Sequence
from hashlib import blake2b

import attrs
from attrs import asdict, fields, frozen
from attrs.converters import optional

from onellm_async.chat import JSON
from onellm_async.errors import BatchError
from onellm_async.formatting import pluralize
from onellm_async.validation import truncated_repr

__all__ = ["RunIdentity", "endpoints_text", "redact_url"]

_DIGEST = re.compile("~[0-9a-f]{16}")


def redact_url(url: str) -> str:
    """`url` with digests in place of what may be secret: user info, values of the query, the fragment.

    Two redacted URLs are equal where the URLs are. One that is redacted stays as it is.

    Example:
        >>> redact_url("http://127.0.0.1:8080/api?key=secret&debug")
        'http://127.0.0.1:8080/api?key=~0ffde1ae45a58146&~ee20d54e2c61f0ea'
    """
    url, *fragments = url.split("#", 1)
    address, *queries = url.split("?", 1)
    text = re.sub("(?<=//)[^/@]*(?=@)", lambda user_info: _digest(user_info[0]), address, count=1)
    if queries:
        text += "?" + "&".join(map(_without_value, queries[0].split("&")))
    return text + "".join(f"#{_digest(fragment)}" for fragment in fragments)


def _without_value(parameter: str) -> str:
    name, equals, value = parameter.partition("=")
    return name + equals + _digest(value) if equals else _digest(name)


def _digest(text: str) -> str:
    if not text or _DIGEST.fullmatch(text):
        return text
    return "~" + blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def endpoints_text(endpoints: Mapping[str, str]) -> str | None:
    """`endpoints` as an identity holds them: in a fixed order, without secrets; None for none.

    Example:
        >>> endpoints_text({"openai": "http://10.0.0.7/v1", "google": "http://10.0.0.8"})
        'google=http://10.0.0.8, openai=http://10.0.0.7/v1'
    """
    return ", ".join(f"{name}={redact_url(url)}" for name, url in sorted(endpoints.items())) or None


@frozen(kw_only=True)
class RunIdentity:
    """What the answers of a run depend on. It holds no secrets: a journal keeps it in the clear.

    Attributes:
        input: Name of the input, as shown to the user.
        input_digest: Hexadecimal digest of its bytes; None where it can be read only once.
        lines: Its non-blank lines; None if they were not counted.
        format: How its lines are written; None if not given.
        field: The field that holds the prompt.
        template_digest: Digest of the template that makes a prompt of a line.
        model: The model asked of every prompt.
        fallback_model: The model asked where a line names none.
        system_digest: Digest of the instruction beside each prompt.
        max_tokens: Most tokens to generate per prompt.
        temperature: 0 to 2.
        schema_digest: Digest of the JSON Schema of each answer; None for any text.
        request_fields: Further fields of every request, as JSON in a fixed order; None for none.
        keep: The fields of the input that go beside the answer, as a text; None for what is usual.
        columns: Their names in an output that has columns; not compared, because they follow from the others.
        samples: How often each prompt is asked; None for once.
        base_url: Where the requests go, as `redact_url` shows it.
        dialect: How they are written.
        endpoints: Where a self-hosted backend forwards them to, as `endpoints_text` shows it.

    Example:
        >>> before = RunIdentity(input="in.jsonl", max_tokens=100)
        >>> RunIdentity(input="in.jsonl", max_tokens=200).differences(before)
        ['max_tokens was 100 and is now 200']
    """

    input: str
    input_digest: str | None = None
    lines: int | None = None
    format: str | None = None
    field: str | None = None
    template_digest: str | None = None
    model: str | None = None
    fallback_model: str | None = None
    system_digest: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    schema_digest: str | None = None
    request_fields: str | None = None
    keep: str | None = None
    columns: Sequence[str] | None = None
    samples: int | None = None
    base_url: str | None = attrs.field(default=None, converter=optional(redact_url))
    dialect: str | None = None
    endpoints: str | None = None

    @property
    def answers(self) -> int | None:
        """How many answers a complete run has where no line is bad: one for each sample; None if that is not known."""
        return None if self.lines is None else self.lines * (self.samples or 1)

    def as_json(self) -> dict[str, JSON]:
        """Its parts as a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: JSON) -> "RunIdentity":
        """The identity that `as_json` gave; parts of a later version are left out.

        Raises:
            BatchError: If it is none.
        """
        if not isinstance(value, Mapping) or not isinstance(value.get("input"), str):
            raise BatchError(f"{truncated_repr(value)} is not the identity of a run.")
        names = {attribute.name for attribute in fields(cls)}
        return cls(**{name: part for name, part in value.items() if name in names})

    def differences(self, earlier: "RunIdentity") -> list[str]:
        """What has changed since `earlier`, a phrase for each part; [] where it is the same run.

        An input that was moved or renamed is still the same; where it can be read only once, its name has to do.
        """
        phrases = []
        if self.input_digest is not None and earlier.input_digest is not None:
            if self.input_digest != earlier.input_digest:
                phrases.append(self._changed_input(earlier))
        elif self.input != earlier.input or self.input_digest != earlier.input_digest:
            phrases.append(f"the input was {earlier.input} and is now {self.input}{self._kinds(earlier)}")
        if self.format != earlier.format:
            phrases.append(f"the format {_change(earlier.format, self.format, secretive=False)}")
        return phrases + self.changed_options(earlier)

    def has_input_of(self, earlier: "RunIdentity") -> bool:
        """Whether the input is certainly that of `earlier`. One that has no digest may be another one."""
        known = self.input_digest is not None and self.input_digest == earlier.input_digest
        return known and self.format == earlier.format

    def changed_options(self, earlier: "RunIdentity") -> list[str]:
        """What has changed beside the input since `earlier`, a phrase for each part."""
        phrases = []
        mine, theirs = asdict(self), asdict(earlier)
        for name, (noun, secretive) in _PARTS.items():
            before, now = theirs[name], mine[name]
            if before != now:
                phrases.append(f"{noun} {_change(before, now, secretive=secretive)}")
        return phrases

    def _kinds(self, earlier: "RunIdentity") -> str:
        """What is to be said where both have one name."""
        if self.input != earlier.input:
            return ""
        return ", but a file then and a pipe now" if self.input_digest is None else ", but a pipe then and a file now"

    def _changed_input(self, earlier: "RunIdentity") -> str:
        phrase = "the input has changed"
        if self.input != earlier.input:
            phrase = f"the input was {earlier.input} and is now {self.input}, which holds something else"
        if self.lines is not None and earlier.lines is not None and self.lines != earlier.lines:
            phrase += f" (it had {pluralize(earlier.lines, 'line')} and has {self.lines:,})"
        return phrase


_PARTS = {
    "field": ("the field of the prompt", False),
    "template_digest": ("the template", True),
    "model": ("the model", False),
    "fallback_model": ("the fallback model", False),
    "system_digest": ("the system prompt", True),
    "max_tokens": ("max_tokens", False),
    "temperature": ("temperature", False),
    "schema_digest": ("the schema of the answers", True),
    "request_fields": ("the request options", False),
    "keep": ("the kept fields", False),
    "samples": ("samples", False),
    "base_url": ("the base URL", False),
    "dialect": ("the dialect", False),
    "endpoints": ("the endpoints", False),
}
"""What a part is called, and whether only a digest of it is known."""


def _change(before: object, now: object, *, secretive: bool) -> str:
    if before is None:
        return "was not given and is now" if secretive else f"was not given and is now {now}"
    if now is None:
        return "was given and is not any more" if secretive else f"was {before} and is not given any more"
    return "has changed" if secretive else f"was {before} and is now {now}"
