"""Errors of the library in the words of the command line: who types flags has no ``Timeout.total`` to raise."""

import re

from onellm_async.errors import APIError, ConfigurationError, OneLLMError

__all__ = ["arguments_in_flags", "in_flags", "told_in_flags"]

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
    "ExpectedService.requests_per_minute": "--service-rpm",
    "RunPolicy.first": "--limit",
    "Budget.max_cost": "--max-cost",
    "Budget.max_tokens": "--max-tokens-total",
}
_OWN_NAMES = ("ServerSettings", "Faults", "GatewaySettings", "ExpectedService", "RunPolicy")
"""Settings of which each field has a flag of the same name."""
_ARGUMENTS = {
    "stop_sequences": "--stop",
    "input_format": "--format",
    "response_model": "--schema",
    "max_failure_share": "--keep-going",
    "extra": "--option",
    "endpoints": "--endpoint",
    "headers": "--header",
    "fallback_model": "--model",
} | {
    name: f"--{name.replace('_', '-')}"
    for name in (
        *("model", "system", "max_tokens", "temperature", "top_p", "seed", "response_format", "corrections"),
        *("field", "template", "id_field", "keep", "strict", "samples", "limit", "deduplicate", "cache"),
        *("journal", "force", "max_cost", "max_tokens_total", "ambiguous", "retry_failed", "accept_removed"),
        *("stall_after", "max_time", "lane", "dialect", "quota", "prices", "proxy", "port"),
    )
}
"""Arguments of the client and of its methods, and their flags."""
_ARGUMENT = re.compile(
    rf"""(?<![\w./'"=-])({"|".join(_ARGUMENTS)})=(?:(True\b|1\b|…)|'([^']*)'|"([^"]*)"|(?=[\s.,;:)]|$))"""
)
"""How the library names an argument: ``force=True``, ``field=``, ``keep=…``, ``input_format='csv'``."""
_NAME = re.compile(rf"\b(?:{'|'.join(map(re.escape, _FLAGS))})\b")
_VALUE = re.compile(
    rf"((?:Limits|Timeout|Budget|{'|'.join(_OWN_NAMES)})\.\w+|{'|'.join(_ARGUMENTS)})(?= (?:is|names) )"
)
"""How the library begins to tell of a value that it refuses."""
_PHRASES = (
    (re.compile(r', or extra=\{"endpoint": [^}]*\} for a single request'), ""),
    (re.compile(r"Pass api_key=… or set ONELLM_API_KEY"), "Set ONELLM_API_KEY"),
    (re.compile(r"Pass the key as api_key=…"), "Set ONELLM_API_KEY"),
    (re.compile(r"\bapi_key=… or ONELLM_API_KEY"), "ONELLM_API_KEY"),
    (re.compile(r"^A journal needs an output file\b"), "A journal needs an output file (-o)"),
    (re.compile(r"use gather_chats or iter_chats, which wait by themselves"), "use `run`, which waits by itself"),
)
"""What the library names without its flag."""


def in_flags(text: str) -> str:
    """`text` of the library with flags in place of arguments and settings.

    Example:
        >>> in_flags('set dialect="backend" (on the command line --dialect backend).')
        'set --dialect backend.'
        >>> in_flags("Timeout.total is 0; it must be a finite number above 0.")
        '--timeout: Timeout.total is 0; it must be a finite number above 0.'
        >>> in_flags("Faults.latency is -1; it must be a finite number of at least 0.")
        '--latency is -1; it must be a finite number of at least 0.'
    """
    value = _VALUE.match(text)
    if value is not None and value[1].startswith(("Limits.", "Timeout.")) and value[1] in _FLAGS:
        return f"{_FLAGS[value[1]]}: {text}"
    text = arguments_in_flags(text)
    for pattern, words in _PHRASES:
        text = pattern.sub(words, text)
    return _NAME.sub(lambda name: _FLAGS[name[0]], text)


def arguments_in_flags(text: str) -> str:
    """`text` of the library, which may quote an input, with flags in place of arguments.

    Example:
        >>> arguments_in_flags("Move it away, or replace it with force=True.")
        'Move it away, or replace it with --force.'
        >>> arguments_in_flags("limit is -1; it must be an integer of at least 0.")
        '--limit is -1; it must be an integer of at least 0.'
        >>> arguments_in_flags("'field=' and data/model=GPT-5/in.csv stay as they are.")
        "'field=' and data/model=GPT-5/in.csv stay as they are."
    """
    value = _VALUE.match(text)
    if value is not None and (flag := _flag_of(value[1])) is not None:
        text = flag + text[value.end() :]
    return _ARGUMENT.sub(_flag_with_value, _PAIR.sub(r"\1", text))


def _flag_of(name: str) -> str | None:
    """The flag of a setting or an argument; None for one without, or whose name is told beside its flag."""
    if name in _FLAGS or name in _ARGUMENTS:
        return _FLAGS.get(name) or _ARGUMENTS.get(name)
    owner, _, field = name.partition(".")
    return f"--{field.replace('_', '-')}" if owner in _OWN_NAMES else None


def _flag_with_value(found: re.Match[str]) -> str:
    given = found[3] or found[4]
    return f"{_ARGUMENTS[found[1]]} {given}" if given else _ARGUMENTS[found[1]]


def told_in_flags(error: OneLLMError) -> str:
    """`error` as the terminal shows it. What the service said stays as it is; what the client says names flags."""
    text = str(error)
    if isinstance(error, ConfigurationError):
        return in_flags(text)
    said = text.removesuffix(error.advice) if error.advice else text
    if not isinstance(error, APIError):
        said = arguments_in_flags(said)
    return said + in_flags(error.advice)
