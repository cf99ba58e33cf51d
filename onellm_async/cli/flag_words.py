"""Errors of the library in the words of the command line: who types flags has no ``Timeout.total`` to raise."""

import re

from onellm_async.errors import ConfigurationError, OneLLMError

__all__ = ["in_flags", "told_in_flags"]

_PAIR = re.compile(r"(?:[\w.]*[=_]\S*|Limits) \((?:on the command line )?(--[^)]*)\)")
"""How the library names an argument and its flag: ``dialect="backend" (--dialect backend)``."""

_FLAGS = {
    "Limits.requests_per_minute": "--rpm",
    "Limits.burst": "--burst",
    "Rate.count": "the COUNT of --rate",
    "Rate.per": "the DURATION of --rate",
    "Limits.tokens_per_minute": "--tpm",
    "Limits.max_concurrency": "--concurrency",
    "Timeout.total": "--timeout",
    "base_url": "--base-url",
    "BucketLimit.per_minute": "--rpm",
    "BucketLimit.burst": "--burst",
    "WindowLimit.count": "the COUNT of --window",
    "WindowLimit.seconds": "the DURATION of --window",
    "ConcurrencyLimit.count": "--max-concurrent",
    "ServerSettings.background_rate": "--background-rate",
}
_NAME = re.compile(rf"\b(?:{'|'.join(map(re.escape, _FLAGS))})\b")
_VALUE = re.compile(r"((?:Limits|Timeout)\.\w+) is ")
"""How the library begins to tell of a value that it refuses."""
_PHRASES = (
    (re.compile(r', or extra=\{"endpoint": [^}]*\} for a single request'), ""),
    (re.compile(r"Pass api_key=… or set ONELLM_API_KEY"), "Set ONELLM_API_KEY"),
    (re.compile(r"Pass the key as api_key=…"), "Set ONELLM_API_KEY"),
    (re.compile(r"\bapi_key=… or ONELLM_API_KEY"), "ONELLM_API_KEY"),
    (re.compile(r"use gather_chats or iter_chats, which wait by themselves"), "use `run`, which waits by itself"),
)
"""What the library names without its flag."""


def in_flags(text: str) -> str:
    """`text` of the library with flags in place of arguments.

    Example:
        >>> in_flags('set dialect="backend" (on the command line --dialect backend).')
        'set --dialect backend.'
        >>> in_flags("Timeout.total is 0; it must be a finite number above 0.")
        '--timeout: Timeout.total is 0; it must be a finite number above 0.'
    """
    value = _VALUE.match(text)
    if value is not None and value[1] in _FLAGS:
        return f"{_FLAGS[value[1]]}: {text}"
    text = _PAIR.sub(r"\1", text)
    for pattern, words in _PHRASES:
        text = pattern.sub(words, text)
    return _NAME.sub(lambda name: _FLAGS[name[0]], text)


def told_in_flags(error: OneLLMError) -> str:
    """`error` as the terminal shows it. What the service said stays as it is; what the client says names flags."""
    text = str(error)
    if isinstance(error, ConfigurationError):
        return in_flags(text)
    said = text.removesuffix(error.advice)
    return said + in_flags(error.advice) if error.advice else text
