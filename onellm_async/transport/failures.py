"""aiohttp's errors, and the operating system's, as ours: what became of the attempt, and what the user can do."""

import errno
import ssl

import aiohttp

from onellm_async.errors import APIConnectionError, APIError, APITimeoutError, ConfigurationError, FailureKind

__all__ = ["translated"]

_DESCRIPTORS_USED_UP = {errno.EMFILE, errno.ENFILE, 10024, 10055}  # the last two: Windows' WSAEMFILE, WSAENOBUFS


def translated(error: Exception, host: str) -> APIError | ConfigurationError:
    """Our error for one of aiohttp's (or the operating system's). The only place where foreign errors are known.

    Args:
        error: What was raised while posting.
        host: For the message.
    """
    if isinstance(error, aiohttp.InvalidURL | aiohttp.NonHttpUrlClientError):
        return ConfigurationError(f"base_url is not a usable URL: {error}.")
    if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ServerFingerprintMismatch):
        return APIConnectionError(
            f"The certificate of {host} was not accepted: {_words(error)}.",
            kind=FailureKind.NOT_TRUSTED,
            advice="Check base_url and the certificates of this machine; nothing was sent.",
        )
    if isinstance(error, OSError) and error.errno in _DESCRIPTORS_USED_UP:
        return APIConnectionError(
            "This process has no file descriptor left for another connection.",
            kind=FailureKind.LOCAL,
            advice="Raise `ulimit -n` or lower Limits.max_concurrency.",
        )
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return APITimeoutError(f"No connection to {host} in time (Timeout.connect).", kind=FailureKind.CANNOT_CONNECT)
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ClientProxyConnectionError):
        return APIConnectionError(
            f"No connection to {host}: {_words(error)}.",
            kind=FailureKind.CANNOT_CONNECT,
            advice="Check base_url and the network.",
        )
    if isinstance(error, TimeoutError):
        return APITimeoutError(
            f"No complete answer from {host} in time (Timeout.total).",
            advice="It may still be billed. Raise Timeout.total if answers usually take that long.",
        )
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return APIConnectionError(f"The proxy refused: {_words(error)}.", kind=_proxy_kind(error))
    return APIConnectionError(f"The connection to {host} broke: {_words(error)}.")


def _proxy_kind(error: aiohttp.ClientHttpProxyError) -> FailureKind:
    """A proxy that refuses this client refuses every prompt; any other answer may pass."""
    return FailureKind.NOT_TRUSTED if error.status in {403, 407} else FailureKind.CANNOT_CONNECT


def _words(error: BaseException) -> str:
    reason = getattr(error, "os_error", None) or getattr(error, "certificate_error", None) or error
    if isinstance(reason, ssl.SSLCertVerificationError):
        return reason.verify_message
    if isinstance(reason, OSError) and reason.strerror:
        return reason.strerror
    return str(reason).rstrip(".")[:300] or type(error).__name__
