"""Where the service is, with which key, and how long to wait for it.

A key is never visible: it lives in `ApiKey`, which shows itself only to the one line that builds the header.
"""

import ipaddress
import os
import re
from typing import NoReturn
from urllib.parse import SplitResult, urlsplit

from attrs import field, frozen

from onellm_async.errors import ConfigurationError
from onellm_async.validation import Checks, shown

__all__ = [
    "DEFAULT_BASE_URL",
    "ApiKey",
    "Timeout",
    "api_key_from",
    "base_url_from",
    "checked_url",
]

DEFAULT_PATH = "/api"
"""The path of the API, at the documented address and in the published backend."""
DEFAULT_BASE_URL = "https://onellm.dev/api"
"""The documented address (OneLLM API documentation). The hosted service has been shut down; see the README."""

_CONTROL = re.compile(r"[\x00-\x20\x7f]")


class ApiKey:
    """A key that cannot be printed, logged, compared into a log or pickled by accident.

    Args:
        secret: The key. Only visible ASCII can go into a header.

    Raises:
        ConfigurationError: If the key is empty or cannot be sent in a header. The message does not show it.
    """

    __slots__ = ("_secret",)

    def __init__(self, secret: str) -> None:
        if not isinstance(secret, str):
            raise ConfigurationError(f"The API key is a {type(secret).__name__}; it must be a string.")
        if not secret:
            raise ConfigurationError("The API key is empty.", advice="Pass api_key=… or set ONELLM_API_KEY.")
        if _CONTROL.search(secret) or not secret.isascii():
            raise ConfigurationError(
                "The API key holds white space, control or non-ASCII characters, which no HTTP header can carry.",
                advice="Check how it was copied; a trailing line break is the usual cause.",
            )
        self._secret = secret

    def authorization(self) -> str:
        """Returns the value of the ``Authorization`` header. Whoever calls this holds the secret."""
        return f"Bearer {self._secret}"

    def __repr__(self) -> str:
        return "ApiKey('***')"

    def __reduce__(self) -> NoReturn:
        raise TypeError("An ApiKey is not pickled: give each process its key through ONELLM_API_KEY.")


def api_key_from(api_key: str | ApiKey | None) -> ApiKey:
    """The key to use: the argument, else ``ONELLM_API_KEY``.

    Raises:
        ConfigurationError: If there is none, or it cannot be sent in a header.
    """
    if isinstance(api_key, ApiKey):
        return api_key
    return ApiKey(api_key if api_key is not None else os.environ.get("ONELLM_API_KEY", ""))


def base_url_from(base_url: str | None, *, allow_insecure: bool = False) -> str:
    """The address to post to: the argument, else ``ONELLM_BASE_URL``, else `DEFAULT_BASE_URL`.

    Args:
        base_url: Requests go to exactly this address. Only one without a path, or with ``/`` alone, gets ``/api``, the
            path of every OneLLM.
        allow_insecure: Accept plain http to a host other than this machine. Prompts and key then travel in the clear.

    Raises:
        ConfigurationError: If it is not an http(s) URL, carries user info, or would send the key in the clear.

    Example:
        >>> base_url_from("http://127.0.0.1:3000")
        'http://127.0.0.1:3000/api'
    """
    url = base_url if base_url is not None else os.environ.get("ONELLM_BASE_URL") or DEFAULT_BASE_URL
    parts = checked_url("base_url", url, advice="Pass the key as api_key=….")
    if parts.scheme == "http" and not allow_insecure and not _is_loopback(parts.hostname or ""):
        raise ConfigurationError(
            f"base_url {_shown_url(url)!r} would send the key and the prompts unencrypted.",
            advice="Use https, or allow_insecure=True (--allow-insecure) if the network in between is trusted.",
        )
    return url if parts.path not in {"", "/"} else parts._replace(path=DEFAULT_PATH).geturl()


def checked_url(name: str, url: str, *, advice: str = "") -> SplitResult:
    """The parts of `url`, which the setting called `name` holds.

    Args:
        name: Of the setting, for messages.
        url: What it holds.
        advice: What to do instead of putting a user name or a password into it.

    Raises:
        ConfigurationError: If it is not an http(s) URL or carries user info. The message does not show what may be
            secret in it.
    """
    if not isinstance(url, str):
        raise ConfigurationError(f"{name} is {shown(url)}; it must be a string.")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
        if host:
            host.encode("idna")  # what the resolver does with it
    except ValueError as error:
        reason = "" if "@" in url else f": {error}"
        raise ConfigurationError(f"{name} {_shown_url(url)!r} is not a URL{reason}.") from None
    if "@" in parts.netloc:
        raise ConfigurationError(f"{name} holds a user name or password.", advice=advice)
    if parts.scheme not in {"http", "https"} or not host or re.search(r"[\s\x00-\x1f\x7f]", url):
        raise ConfigurationError(f"{name} {_shown_url(url)!r} is not an http or https URL.")
    return parts


def _shown_url(url: str) -> str:
    """`url` without what may be secret in it: user info, and the values of its query."""
    return re.sub(r"\?.*", "?…", re.sub(r"^.*@", "…@", url, flags=re.DOTALL), flags=re.DOTALL)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


_positive = Checks(ConfigurationError, "Timeout.").number(0, above=True)


@frozen
class Timeout:
    """How long one attempt may take. Time spent in the queue does not count; see ``deadline`` for that.

    Attributes:
        connect: Seconds to resolve the name and open the connection. Default 10.
        total: Seconds from sending until the whole answer is read. Default 600: the API answers in one
            piece, so a long completion is a long silence.
    """

    connect: float = field(default=10.0, validator=_positive)
    total: float = field(default=600.0, validator=_positive)
