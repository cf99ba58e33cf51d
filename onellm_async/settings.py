"""API key, API URL, proxy, certificates and timeouts.

A key is never visible: it lives in `ApiKey`, which shows itself only to the one line that builds the header.
"""

import base64
import ipaddress
import os
import re
import urllib.request
from collections.abc import Mapping
from ssl import SSLContext, create_default_context
from typing import NoReturn
from urllib.parse import SplitResult, unquote, urlsplit

from attrs import field, frozen

from onellm_async.errors import ConfigurationError
from onellm_async.validation import Checks, truncated_repr

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
        """Returns the value of the ``Authorization`` header. The caller then holds the secret."""
        return f"Bearer {self._secret}"

    def __repr__(self) -> str:
        return "ApiKey('***')"

    def __reduce__(self) -> NoReturn:
        raise TypeError("An ApiKey is not pickled: give each process its key through ONELLM_API_KEY.")


def resolve_api_key(api_key: str | ApiKey | None) -> ApiKey:
    """Returns the API key: the argument, else ``ONELLM_API_KEY``.

    Raises:
        ConfigurationError: If there is none, or it cannot be sent in a header.
    """
    if isinstance(api_key, ApiKey):
        return api_key
    if api_key is None:
        api_key = os.environ.get("ONELLM_API_KEY", "")
        if not api_key:
            raise ConfigurationError("No API key was given.", advice="Pass api_key=… or set ONELLM_API_KEY.")
    return ApiKey(api_key)


def resolve_base_url(base_url: str | None, *, allow_insecure: bool = False) -> str:
    """Returns the API URL: the argument, else ``ONELLM_BASE_URL``, else `DEFAULT_BASE_URL`.

    Args:
        base_url: Requests go to exactly this address. Only one without a path, or with ``/`` alone, gets ``/api``, the
            path of every OneLLM.
        allow_insecure: Accept plain http to a host other than this machine. Prompts and key then travel in the clear.

    Raises:
        ConfigurationError: If it is not an http(s) URL, carries user info, or would send the key in the clear.

    Example:
        >>> resolve_base_url("http://127.0.0.1:3000")
        'http://127.0.0.1:3000/api'
    """
    url = base_url if base_url is not None else os.environ.get("ONELLM_BASE_URL") or DEFAULT_BASE_URL
    parts = check_url("base_url", url, advice="Pass the key as api_key=….")
    if parts.scheme == "http" and not allow_insecure and not _is_loopback(parts.hostname or ""):
        raise ConfigurationError(
            f"base_url {redacted_url(url)!r} would send the key and the prompts unencrypted.",
            advice="Use https, or allow_insecure=True (--allow-insecure) if the network in between is trusted.",
        )
    return url if parts.path not in {"", "/"} else parts._replace(path=DEFAULT_PATH).geturl()


def check_url(name: str, url: str, *, advice: str = "") -> SplitResult:
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
        raise ConfigurationError(f"{name} is {truncated_repr(url)}; it must be a string.")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
        if host:
            host.encode("idna")  # what the resolver does with it
    except ValueError as error:
        reason = "" if "@" in url else f": {error}"
        raise ConfigurationError(f"{name} {redacted_url(url)!r} is not a URL{reason}.") from None
    if "@" in parts.netloc:
        raise ConfigurationError(f"{name} holds a user name or password.", advice=advice)
    if parts.scheme not in {"http", "https"} or not host or re.search(r"[\s\x00-\x1f\x7f]", url):
        raise ConfigurationError(f"{name} {redacted_url(url)!r} is not an http or https URL.")
    return parts


def redacted_url(url: str) -> str:
    """`url` without what may be secret in it: user info, the values of its query, and its fragment.

    Example:
        >>> redacted_url("https://llm.example/api?key=secret&v=1")
        'https://llm.example/api?key=***&v=***'
    """
    if "@" in re.sub(r"^[^?#]*", "", url):  # of a password with such characters, or within the query
        return "…@…"
    shown = re.sub(r"^.*@", "…@", url, flags=re.DOTALL)
    shown, mark, query = shown.partition("#")[0].partition("?")
    return shown + mark + re.sub(r"([^&=]*=)?[^&]+", lambda part: (part[1] or "") + "***", query)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@frozen
class Proxy:
    """A forward proxy. Its user name and password are never shown.

    Attributes:
        url: Its URL without user info.
        source: The setting that named it, for messages.
        authorization: Value of the ``Proxy-Authorization`` header; None without user name.
    """

    url: str
    source: str
    authorization: str | None = field(default=None, repr=False)

    def secrets(self) -> set[str]:
        """What must not show: its password, and the same as the header spells it."""
        if self.authorization is None:
            return set()
        token = self.authorization.removeprefix("Basic ")
        return {token, base64.b64decode(token).decode().partition(":")[2]}


def resolve_proxy(proxy: str | None, base_url: str, *, trust_env: bool = False) -> Proxy | None:
    """The proxy to use: the argument, else ``ONELLM_PROXY``, else with `trust_env` the environment's usual one.

    Args:
        proxy: Its URL; ``""`` for none, whatever the environment says.
        base_url: Where the requests go. ``HTTPS_PROXY`` or ``HTTP_PROXY`` is for its scheme, ``NO_PROXY`` for its host.
        trust_env: Also heed ``HTTPS_PROXY``, ``HTTP_PROXY``, ``ALL_PROXY`` and ``NO_PROXY``, or the proxy settings of
            the operating system.

    Raises:
        ConfigurationError: If it is not the URL of an HTTP proxy. The message shows no user info.
    """
    if proxy is not None:
        return _parsed_proxy("proxy", proxy) if proxy != "" else None
    if own := os.environ.get("ONELLM_PROXY"):
        return _parsed_proxy("ONELLM_PROXY", own)
    if not trust_env:
        return None
    scheme, host = _scheme_and_host(base_url)
    usual = urllib.request.getproxies()
    found = usual.get(scheme) or usual.get("all")
    if not found or urllib.request.proxy_bypass(host):
        return None
    return _parsed_proxy(_usual_proxy_variable(scheme) or "the system's proxy", found)


def unused_proxy_variable(base_url: str) -> str | None:
    """The environment variable that names a proxy for `base_url` which only ``trust_env`` would use."""
    scheme, host = _scheme_and_host(base_url)
    variable = _usual_proxy_variable(scheme)
    return variable if variable is not None and not urllib.request.proxy_bypass(host) else None


def _scheme_and_host(base_url: str) -> tuple[str, str]:
    parts = urlsplit(base_url)
    return parts.scheme, parts.netloc.rpartition("@")[2].lower()


def _usual_proxy_variable(scheme: str) -> str | None:
    names = (f"{scheme}_proxy", f"{scheme}_proxy".upper(), "all_proxy", "ALL_PROXY")
    return next((name for name in names if os.environ.get(name)), None)


def _parsed_proxy(source: str, value: str) -> Proxy:
    if not isinstance(value, str):
        raise ConfigurationError(f"{source} is a {type(value).__name__}; it must be a string.")
    url = value if "://" in value else f"http://{value}"  # as usual in HTTPS_PROXY
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
        if host:
            host.encode("idna")
    except ValueError:
        raise ConfigurationError(f"{source} {redacted_url(url)!r} is not a URL.") from None
    if parts.scheme.startswith("socks"):
        raise ConfigurationError(
            f"{source} {redacted_url(url)!r} is a SOCKS proxy, and only HTTP proxies are supported.",
            advice="Pass a session of aiohttp whose connector knows SOCKS.",
        )
    usable = parts.scheme in {"http", "https"} and host and not _CONTROL.search(url)
    if not usable or parts.path not in {"", "/"} or parts.query or parts.fragment:
        raise ConfigurationError(
            f"{source} {redacted_url(url)!r} is not the URL of an HTTP proxy.",
            advice="It looks like http://proxy.example:3128 or http://user:password@proxy.example:3128.",
        )
    user_info, _, address = parts.netloc.rpartition("@")
    authorization = None
    if user_info:
        user, _, password = user_info.partition(":")
        token = base64.b64encode(f"{unquote(user)}:{unquote(password)}".encode()).decode("ascii")
        authorization = f"Basic {token}"
    return Proxy(f"{parts.scheme}://{address}", source, authorization)


def resolve_ssl_context(context: SSLContext | None) -> SSLContext | None:
    """How TLS is verified: the argument, else by ``ONELLM_CA_FILE``; None for the system's certificates.

    Raises:
        ConfigurationError: If it is no context, or the file cannot be read or holds no certificates.
    """
    if context is not None:
        if not isinstance(context, SSLContext):
            raise ConfigurationError(
                f"ssl is {truncated_repr(context)}; it must be an ssl.SSLContext.",
                advice="To trust a certificate authority of your own, set ONELLM_CA_FILE.",
            )
        return context
    path = os.environ.get("ONELLM_CA_FILE")
    return trust_only(path, "ONELLM_CA_FILE") if path else None


def trust_only(path: str | os.PathLike[str], source: str) -> SSLContext:
    """A TLS context that trusts the certificate authorities in a file, and no others.

    Args:
        path: A file of certificates in PEM form.
        source: The setting that named it, for messages.

    Raises:
        ConfigurationError: If the file cannot be read or holds no certificates.
    """
    try:
        context = create_default_context(cafile=path)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError; ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) if type(error).__module__ == "builtins" else None
        raise ConfigurationError(
            f"{source} {os.fspath(path)!r} cannot be used: {reason or 'it holds no certificates in PEM form'}."
        ) from None
    context.set_alpn_protocols(["http/1.1"])
    return context


_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e]*")
_OWN_HEADERS = {
    "authorization": "Pass the key as api_key=….",
    "proxy-authorization": "Put user name and password into the URL of proxy=….",
    "host": "Set base_url.",
    **dict.fromkeys(("content-type", "content-length", "content-encoding", "transfer-encoding", "connection"), ""),
}
"""Headers that the client sets itself, and what to do instead."""


def check_headers(headers: object) -> dict[str, str]:
    """Returns `headers` if they can be sent with each request.

    Raises:
        ConfigurationError: If a name or a value cannot be sent, or the client sets that header itself. The message
            shows no value.
    """
    if headers is None:
        return {}
    if not isinstance(headers, Mapping):
        raise ConfigurationError(f"headers is a {type(headers).__name__}; it must be a mapping of names to values.")
    found: dict[str, str] = {}
    seen: set[str] = set()
    for name, value in headers.items():
        if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name):
            raise ConfigurationError(f"headers names {truncated_repr(name)}, which is not the name of a header.")
        if name.lower() in _OWN_HEADERS:
            raise ConfigurationError(
                f"headers sets {name}, which the client sets itself.", advice=_OWN_HEADERS[name.lower()]
            )
        if name.lower() in seen:
            raise ConfigurationError(f"headers names {name} twice.")
        if not isinstance(value, str) or not _HEADER_VALUE.fullmatch(value) or value != value.strip():
            raise ConfigurationError(
                f"The value of the header {name} cannot be sent.",
                advice="It must be ASCII without line breaks, control characters or white space at its ends.",
            )
        seen.add(name.lower())
        found[name] = value
    return found


_positive = Checks(ConfigurationError, "Timeout.").number(0, above=True)


@frozen(kw_only=True)
class Timeout:
    """How long one attempt may take. Time spent in the queue does not count; see ``deadline`` for that.

    Neither does the time in which it waits for one of the few connections of a given HTTP session.

    Attributes:
        connect: Seconds to resolve the name and open the connection. Default 10.
        total: Seconds from sending until the whole answer is read. Default 600: the API answers in one
            piece, so a long completion is a long silence.
    """

    connect: float = field(default=10.0, validator=_positive)
    total: float = field(default=600.0, validator=_positive)
