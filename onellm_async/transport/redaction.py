"""Hides secrets in replies and in local variables, which crash reporters print."""

import html
import json
from collections.abc import Iterable, Mapping
from urllib.parse import quote

from multidict import CIMultiDict

from onellm_async.transport.protocol import RawReply

_MIN_SECRET = 8
"""Characters; what is shorter is no secret but a placeholder such as "key", which any answer may contain."""


_SECRET_NAMES = ("auth", "cookie", "key", "password", "secret", "token")
"""Parts of the names of headers whose values are hidden in replies, too."""


def secrets_in(headers: Mapping[str, str]) -> set[str]:
    """The values of those `headers` that look like credentials by their names.

    Args:
        headers: Headers of a request. The value of any other header may be a word that answers contain.
    """
    return {
        part
        for name, value in headers.items()
        if any(word in name.lower() for word in _SECRET_NAMES)
        for part in {value, value.rpartition(" ")[2]}
    }


class HiddenValue(str):
    """The value of a header, sent as it is, and hidden where headers are shown with their values."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


class Redactor:
    """Replaces secrets by ``***`` in replies of the service, in every escaped form.

    Args:
        secrets: Texts that must not show. Those shorter than eight characters are ignored.
        phrases: Texts that are replaced whatever their length.
    """

    __slots__ = ("_needles", "_phrases", "_secrets", "_texts")

    def __init__(self, secrets: Iterable[str], phrases: Iterable[str] = ()) -> None:
        self._secrets = frozenset(secret for secret in secrets if len(secret) >= _MIN_SECRET)
        self._phrases = frozenset(phrases)
        found = {spelling for secret in self._secrets | self._phrases for spelling in _spellings(secret)}
        shortest = {text for text in found if not any(other in text for other in found - {text})}
        self._texts = tuple(sorted(shortest, key=len, reverse=True))
        self._needles = tuple(text.encode() for text in self._texts)

    def hiding(self, secret: str, phrase: str) -> "Redactor":
        """One that also replaces another secret and another phrase.

        Args:
            secret: The secret.
            phrase: The phrase.
        """
        return Redactor(self._secrets | {secret}, self._phrases | {phrase})

    def text(self, text: str) -> str:
        """`text` without the secrets."""
        for secret in self._texts:
            text = text.replace(secret, "***")
        return text

    def excerpt(self, body: bytes, length: int) -> str:
        """The first `length` characters of `body`, without the secrets."""
        return self.text(body[: length * 8].decode("utf-8", "replace"))[:length]

    def reply(self, status: int, headers: Mapping[str, str], body: bytes) -> RawReply:
        """An answer without the secrets, whether a header or the body repeats them."""
        for needle in self._needles:
            if needle in body:
                body = body.replace(needle, b"***")
        for value in headers.values():
            for secret in self._texts:
                if secret in value:
                    headers = CIMultiDict((name, self.text(value)) for name, value in headers.items())
                    break
        return RawReply(status, headers, body)

    def shows_in(self, error: BaseException, outer: BaseException | None = None) -> bool:
        """Whether `error`, or what caused it short of `outer`, shows a secret."""
        shown = "".join(f"{link!s}{link!r}" for link in _chain(error, outer))
        return any(secret in shown for secret in self._texts)


def without_frames(error: BaseException, outer: BaseException | None = None) -> None:
    """Takes from `error` the frames of aiohttp, whose local variables hold the request and sometimes the reply.

    Args:
        error: What aiohttp raised.
        outer: What was being handled when aiohttp was called; it and its causes stay as they are.
    """
    for link in _chain(error, outer):
        link.__traceback__ = None


def _chain(error: BaseException, outer: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    todo: list[BaseException | None] = [error]
    while todo:
        link = todo.pop()
        if link is not None and link is not outer and link not in found:
            found.append(link)
            todo += [link.__cause__, link.__context__]
            todo += link.exceptions if isinstance(link, BaseExceptionGroup) else ()
    return found


def _spellings(secret: str) -> set[str]:
    """`secret` as JSON, HTML and URLs may write it."""
    in_json = json.dumps(secret)[1:-1]
    for_html = in_json
    for character in "<>&'":
        for_html = for_html.replace(character, f"\\u{ord(character):04x}")
    return {secret, in_json, in_json.replace("/", "\\/"), for_html, html.escape(secret), quote(secret, safe="")}
