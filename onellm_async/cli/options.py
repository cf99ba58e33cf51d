"""The flags that several commands share, in the words of the field."""

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast, get_args

from attrs import frozen
from cyclopts import Parameter

from onellm_async.cli import groups
from onellm_async.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onellm_async.chat import JSON
    from onellm_async.limits.policy import Limits

__all__ = [
    "ASKING",
    "ASKING_EACH",
    "CONNECTING",
    "ConnectionFlags",
    "LimitFlags",
    "Rate",
    "RequestFlags",
    "RunRequestFlags",
]


DialectName = Literal["documented", "backend"]
LaneName = Literal["interactive", "default", "batch"]
Concurrency = int | Literal["auto"]
Rate = float | Literal["auto"]
"""Requests per minute, or ``auto``: not known, to be found out."""


_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|min|h|d)?")
_SECONDS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def seconds_from(flag: str, text: str) -> float:
    """The seconds of a duration such as ``90``, ``90s``, ``10m`` or ``1.5h``.

    Raises:
        ConfigurationError: If it is none, or not above 0.

    Example:
        >>> seconds_from("--max-time", "10m")
        600.0
    """
    found = _DURATION.fullmatch(text.strip())
    seconds = 0.0 if found is None else float(found[1]) * _SECONDS[found[2] or "s"]
    if not seconds:
        raise ConfigurationError(f"{flag} is {text!r}; it must be seconds above 0, or a duration such as 90s, 10m, 2h.")
    return seconds


_first_separator = re.compile("([:=])")

_OWN_FLAGS = {
    "model": "model",
    "messages": "field",
    "system": "system",
    "max_tokens": "max-tokens",
    "temperature": "temperature",
    "top_p": "top-p",
    "stop_sequences": "stop",
    "seed": "seed",
    "response_format": "response-format",
}


@Parameter(name="*", group=groups.REQUEST)
@frozen
class RequestFlags:
    """What is asked of every prompt."""

    model: Annotated[
        str | None,
        Parameter(
            name=["--model", "-m"],
            help="Model to request; `onellm-async models` lists them. [env: ONELLM_MODEL] [default: GPT-5-Nano]",
        ),
    ] = None
    system: Annotated[str | None, Parameter(help="System prompt: an instruction that goes with each prompt.")] = None
    max_tokens: Annotated[
        int | None, Parameter(help="Maximum number of tokens of each answer. [default: the provider's]")
    ] = None
    temperature: Annotated[float | None, Parameter(help="Sampling temperature, 0 to 2. [default: the provider's]")] = (
        None
    )
    top_p: Annotated[float | None, Parameter(help="Nucleus sampling, 0 to 1. [default: the provider's]")] = None
    stop: Annotated[
        tuple[str, ...],
        Parameter(negative="", show_default=False, help="Text at which the model stops; repeatable."),
    ] = ()
    seed: Annotated[int | None, Parameter(help="Seed for repeatable answers, if the provider supports it.")] = None
    response_format: Annotated[
        Literal["json_object", "text"] | None, Parameter(help="Format of the answer, if the provider supports it.")
    ] = None
    option: Annotated[
        tuple[str, ...],
        Parameter(
            negative="",
            show_default=False,
            help="Another field of the request as KEY=JSON, such as top_k=40; repeatable. A value that is not JSON is "
            "sent as text.",
        ),
    ] = ()

    @property
    def extra(self) -> "dict[str, JSON] | None":
        """The fields that ``--option`` sets; None if there are none.

        Raises:
            ConfigurationError: If one is not KEY=JSON, or names a field that has a flag of its own.
        """
        found: dict[str, JSON] = {}
        for given in self.option:
            name, equals, value = given.partition("=")
            if not equals or not name.strip():
                raise ConfigurationError(f"--option {given!r} is not KEY=JSON.")
            if name in _OWN_FLAGS:
                raise ConfigurationError(f"--option {given!r} sets a field that has a flag: use --{_OWN_FLAGS[name]}.")
            if name in found:
                raise ConfigurationError(f"--option sets {name} twice.")
            try:
                found[name] = json.loads(value)
            except ValueError:
                found[name] = value
        return found or None

    def further_fields(self) -> "dict[str, JSON]":
        """All fields but model, system, max_tokens and temperature, by their names in a request."""
        given: dict[str, JSON] = {
            "top_p": self.top_p,
            "stop_sequences": self.stop or None,
            "seed": self.seed,
            "response_format": None if self.response_format is None else {"type": self.response_format},
        }
        return {**(self.extra or {}), **{name: value for name, value in given.items() if value is not None}}

    @property
    def response_model(self) -> "Mapping[str, JSON] | None":
        """The JSON Schema that each answer has to conform to; None for any text."""
        return None

    def fallback_model(self) -> str:
        """The model for prompts that name none, where no flag names one either."""
        from onellm_async.batch.inputs.defaults import DEFAULT_MODEL

        return os.environ.get("ONELLM_MODEL") or DEFAULT_MODEL


@Parameter(name="*", group=groups.REQUEST)
@frozen
class RunRequestFlags(RequestFlags):
    """What is asked of every prompt of a run."""

    schema: Annotated[
        str | None,
        Parameter(
            help="File with a JSON Schema: each answer has to be a JSON value that conforms, and has it as `parsed`. "
            "It replaces the response_format of lines."
        ),
    ] = None
    corrections: Annotated[
        int,
        Parameter(
            help="With --schema, how often an answer that does not conform is sent back, 0 to 5 times. Each is one "
            "more paid request; --max-cost reserves all of them."
        ),
    ] = 1

    @property
    def response_model(self) -> "Mapping[str, JSON] | None":
        """The JSON Schema in the file of ``--schema``; None without it.

        Raises:
            ConfigurationError: If it cannot be read, or holds none.
        """
        if self.schema is None:
            return None
        from onellm_async.structured_output import shape_of

        try:
            found = json.loads(Path(self.schema).read_bytes())
        except OSError as error:
            raise ConfigurationError(f"{self.schema} cannot be read: {error.strerror}.") from None
        except (ValueError, RecursionError) as error:
            raise ConfigurationError(f"{self.schema} is no JSON Schema, because it is no JSON: {error}.") from None
        if not isinstance(found, dict):
            raise ConfigurationError(f"{self.schema} is no JSON Schema, because it holds no object.")
        try:
            shape_of(found)
        except ConfigurationError as error:
            text = error.message.replace("response_model", self.schema, 1)
            raise ConfigurationError(text, advice=error.advice) from None
        return found


@Parameter(name="*", group=groups.LIMITS)
@frozen
class LimitFlags:
    """How much of the service may be used."""

    rpm: Annotated[
        Rate | None,
        Parameter(help="Requests per minute of your key; `auto` discovers the rate. [default: 40; 2400 with --local]"),
    ] = None
    rate: Annotated[
        tuple[str, ...],
        Parameter(
            negative="",
            show_default=False,
            help="Rate limit of your key as COUNT/DURATION, such as 40/60s; repeatable. It replaces the default, and "
            "all given ones hold at once. A rate per day is a window: never more in any 24 hours. Write "
            "window:COUNT/DURATION for another window.",
        ),
    ] = ()
    burst: Annotated[
        int | None,
        Parameter(
            help="Requests that the service accepts at once after a pause. [default: 40, or --rpm if that is less]"
        ),
    ] = None
    tpm: Annotated[float | None, Parameter(help="Tokens per minute of your key. [default: no limit]")] = None
    concurrency: Annotated[
        Concurrency,
        Parameter(help="Maximum number of requests in flight; `auto` discovers how many the service accepts."),
    ] = 48

    prices: Annotated[
        str | None,
        Parameter(
            group=groups.BUDGET,
            help="CSV file of own prices, with the columns model, input_usd_per_million_tokens and "
            "output_usd_per_million_tokens; model * is any other one. [default: OneLLM's list prices]",
        ),
    ] = None

    @property
    def requests_per_minute(self) -> Rate | None:
        """Requests per minute; ``"auto"`` to discover the rate, None if other rates are given."""
        return 40.0 if self.rpm is None and not self.rate else self.rpm

    def limits(self) -> "Limits":
        """Returns the limits that the flags describe; `Limits` has the defaults of the others.

        Raises:
            ConfigurationError: If a value is out of range.
        """
        from onellm_async.limits import policy

        given = {"burst": self.burst, "tokens_per_minute": self.tpm}
        return policy.Limits(
            max_concurrency=self.concurrency,
            requests_per_minute=self.requests_per_minute,
            rates=[policy.Rate.parse(text) for text in self.rate],
            **{name: value for name, value in given.items() if value is not None},  # type: ignore[arg-type]
        )


@Parameter(name="*", group=groups.CONNECTION)
@frozen
class ConnectionFlags(LimitFlags):
    """Where the service is, and how much of it may be used."""

    base_url: Annotated[
        str | None,
        Parameter(help="API URL; without a path, /api is added. [env: ONELLM_BASE_URL] [default: the documented one]"),
    ] = None
    allow_insecure: Annotated[
        bool,
        Parameter(
            negative="",
            show_default=False,
            help="Accept plain HTTP to other machines. Key and prompts can then be read on the way.",
        ),
    ] = False
    dialect: Annotated[
        DialectName | None,
        Parameter(
            help="API dialect: as documented, or that of the self-hosted backend. [env: ONELLM_DIALECT] "
            "[default: documented]"
        ),
    ] = None
    endpoint: Annotated[
        tuple[str, ...],
        Parameter(
            negative="",
            show_default=False,
            help="PROVIDER=URL: API to which a self-hosted backend forwards requests for OpenAI, Anthropic, DeepSeek, "
            "Gemini or Mistral; repeatable.",
        ),
    ] = ()
    header: Annotated[
        tuple[str, ...],
        Parameter(
            negative="",
            show_default=False,
            help="HTTP header of each request, as NAME=VALUE or 'NAME: VALUE'; repeatable.",
        ),
    ] = ()
    proxy: Annotated[
        str | None,
        Parameter(help="URL of an HTTP proxy. [env: ONELLM_PROXY] [default: none]"),
    ] = None
    trust_env: Annotated[
        bool,
        Parameter(negative="", show_default=False, help="Use HTTPS_PROXY and NO_PROXY of the environment."),
    ] = False
    ca_file: Annotated[
        str | None,
        Parameter(
            help="PEM file of the certificate authorities to trust. [env: ONELLM_CA_FILE] [default: the system's]"
        ),
    ] = None
    quota: Annotated[
        str | None,
        Parameter(
            help="Share the rate limit among all processes that use this key: `host` for those of this machine, "
            "`redis://HOST:PORT` for those of several, or `off`. [env: ONELLM_QUOTA] [default: off]"
        ),
    ] = None
    timeout: Annotated[
        float, Parameter(help="Timeout of one attempt in seconds. Time in the queue does not count.")
    ] = 600.0
    local: Annotated[
        bool,
        Parameter(
            negative="",
            show_default=False,
            help="Use a local server that echoes prompts, started for this command. Needs no key.",
        ),
    ] = False

    def __attrs_post_init__(self) -> None:
        if self.local and self.base_url is not None:
            raise ConfigurationError("--local and --base-url exclude each other: --local asks its own server.")

    @property
    def headers(self) -> dict[str, str]:
        """The headers of each request.

        Raises:
            ConfigurationError: If a flag is no header, or names one that an earlier one has named. It shows no value.
        """
        found: dict[str, str] = {}
        for number, given in enumerate(self.header, 1):
            name, separator, value = (
                _first_separator.split(given, maxsplit=1) if _first_separator.search(given) else (given, "", "")
            )
            if not separator or not name.strip():
                raise ConfigurationError(f"--header number {number} is neither NAME=VALUE nor 'NAME: VALUE'.")
            if name.strip().lower() in map(str.lower, found):
                raise ConfigurationError(f"--header sets {name.strip()} twice.")
            found[name.strip()] = value.strip()
        return found

    @property
    def dialect_name(self) -> DialectName:
        """How requests are written: the flag, else ``ONELLM_DIALECT``, else as documented.

        Raises:
            ConfigurationError: If the variable holds anything else.
        """
        found = self.dialect or os.environ.get("ONELLM_DIALECT") or "documented"
        if found not in get_args(DialectName):
            raise ConfigurationError(f"ONELLM_DIALECT is {found!r}; it must be documented or backend.")
        return cast("DialectName", found)

    @property
    def endpoints(self) -> dict[str, str]:
        """Where a self-hosted backend forwards to, by provider.

        Raises:
            ConfigurationError: If a flag is not PROVIDER=URL, or names a provider that an earlier one has named.
        """
        found: dict[str, str] = {}
        for given in self.endpoint:
            provider, equals, url = given.partition("=")
            if not equals or not provider.strip():
                raise ConfigurationError(f"--endpoint {given!r} is not PROVIDER=URL.")
            if provider in found:
                raise ConfigurationError(f"--endpoint names the provider {provider} twice.")
            found[provider] = url
        return found

    @property
    def requests_per_minute(self) -> Rate | None:
        """As `LimitFlags.requests_per_minute`, with the default of a local run."""
        return 2400.0 if self.local and self.rpm is None and not self.rate else super().requests_per_minute


ASKING = RequestFlags()
ASKING_EACH = RunRequestFlags()
CONNECTING = ConnectionFlags()
"""Nothing but defaults."""
