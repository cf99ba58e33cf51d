"""Translates exceptions of aiohttp and the operating system: the billing of the attempt, and what the user can do."""

import errno
import ssl
from collections.abc import Callable

import aiohttp

from onellm_async.errors import APIConnectionError, APIError, APITimeoutError, ConfigurationError, FailureKind
from onellm_async.settings import Proxy, redacted_url

_SOCKETS_USED_UP = {errno.EMFILE, errno.ENFILE, 10024, 10055}  # the last two: Windows' WSAEMFILE, WSAENOBUFS
_HOSTED_SERVICE = "onellm.dev"
_REFUSALS_OF_A_PROXY = {403, 407}
"""Statuses of a proxy that refuses this client, and so every prompt."""


def translate_exception(
    error: Exception,
    host: str,
    *,
    sent: bool = True,
    proxy: Proxy | None = None,
    unused_proxy: str | None = None,
    redact: Callable[[str], str] = str,
) -> APIError | ConfigurationError:
    """Returns our error for an exception of aiohttp or the operating system. The only place that knows them.

    Args:
        error: What was raised while posting.
        host: For the message.
        sent: Whether anything of the request may have been written to a connection.
        proxy: The proxy in use.
        unused_proxy: The environment variable of a proxy that is not in use.
        redact: Hides secrets in a text.
    """
    words = redact(_words(error))
    if isinstance(error, aiohttp.InvalidURL | aiohttp.NonHttpUrlClientError):
        return ConfigurationError(f"base_url is not a usable URL: {redacted_url(words)}.")
    if isinstance(error, OSError) and error.errno in _SOCKETS_USED_UP:
        return APIConnectionError(
            "This process has no file descriptor left for another connection.",
            kind=FailureKind.LOCAL,
            advice="Raise `ulimit -n` or lower Limits.max_concurrency.",
        )
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return error_of_proxy(error.status, error.message, proxy)
    name, advice = _other_side(error, host, proxy, unused_proxy)
    if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ServerFingerprintMismatch):
        return APIConnectionError(
            f"The certificate of {name} was not accepted: {words}.",
            kind=FailureKind.NOT_TRUSTED,
            advice="Check base_url and the certificates of this machine; nothing was sent. "
            "ONELLM_CA_FILE or ssl=… (--ca-file) names certificate authorities of your own.",
        )
    if isinstance(error, aiohttp.ConnectionTimeoutError) or (isinstance(error, TimeoutError) and not sent):
        return APITimeoutError(
            f"No connection to {name} in time (Timeout.connect).", kind=FailureKind.CANNOT_CONNECT, advice=advice
        )
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ClientProxyConnectionError) or not sent:
        return APIConnectionError(
            f"No connection to {name}: {words}.",
            kind=FailureKind.CANNOT_CONNECT,
            advice=advice or "Check base_url and the network.",
        )
    if isinstance(error, TimeoutError):
        return APITimeoutError(
            f"No complete answer from {host} in time (Timeout.total).",
            advice="It may still be billed. Raise Timeout.total if answers usually take that long.",
        )
    return APIConnectionError(f"The connection to {host} broke: {words}.")


def error_of_proxy(status: int, reason: str, proxy: Proxy | None) -> APIConnectionError:
    """The error for an answer of the proxy itself. With 403 or 407 it refuses every prompt; anything else may pass.

    Args:
        status: Of its answer.
        reason: The words beside the status.
        proxy: The proxy in use; None for one of the session.
    """
    named = f"The proxy {proxy.url} ({proxy.source})" if proxy is not None else "The proxy"
    advice = {
        403: "It does not let this client reach the service.",
        407: "Put user name and password into its URL: http://user:password@proxy.example:3128.",
    }.get(status, "")
    kind = FailureKind.NOT_TRUSTED if status in _REFUSALS_OF_A_PROXY else FailureKind.CANNOT_CONNECT
    return APIConnectionError(f"{named} refused: {status} {reason}".rstrip(". ") + ".", kind=kind, advice=advice)


def _other_side(error: Exception, host: str, proxy: Proxy | None, unused_proxy: str | None) -> tuple[str, str]:
    """Whom there is no connection to, and what to do; "" where there is nothing special to say."""
    if isinstance(error, aiohttp.ClientProxyConnectionError) or (
        proxy is not None and getattr(error, "host", host) != host
    ):
        named = f"the proxy {proxy.url} ({proxy.source})" if proxy is not None else "the proxy of the session"
        return named, "Check its URL and the network."
    advice = []
    if host == _HOSTED_SERVICE:
        advice.append(
            "The hosted service has been shut down. Set ONELLM_BASE_URL or base_url=… (--base-url) to another backend."
        )
    if proxy is None and unused_proxy is not None:
        advice.append(
            f"{unused_proxy} is not used: set ONELLM_PROXY, proxy=… (--proxy) or trust_env=True (--trust-env)."
        )
    return host, " ".join(advice)


def _words(error: BaseException) -> str:
    reason = getattr(error, "os_error", None) or getattr(error, "certificate_error", None) or error
    if isinstance(reason, ssl.SSLCertVerificationError):
        return reason.verify_message
    if isinstance(reason, OSError) and reason.strerror:
        return reason.strerror
    return str(reason).rstrip(".")[:300] or type(error).__name__
