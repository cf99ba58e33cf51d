# ruff: noqa: PLR0911  # one way to make each kind
import errno
import inspect
import socket
import ssl

import aiohttp
import pytest
from aiohttp import client_exceptions
from aiohttp.client_reqrep import ConnectionKey, RequestInfo
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from onellm_async.cli.flag_words import in_flags
from onellm_async.errors import APIConnectionError, APIError, APITimeoutError, Billing, ConfigurationError, FailureKind
from onellm_async.settings import Proxy
from onellm_async.transport import translate_exception

CANARY = "sk-canary-51c0"
KEY = ConnectionKey("host.example", 443, True, True, None, None, None)
REFUSED = OSError(errno.ECONNREFUSED, "Connection refused")
INFO = RequestInfo(
    URL("https://host.example/api"),
    "POST",
    CIMultiDictProxy(CIMultiDict({"Authorization": f"Bearer {CANARY}"})),
    URL("https://host.example/api"),
)
CERTIFICATE = ssl.SSLCertVerificationError(1, "certificate verify failed")
CERTIFICATE.verify_message = "self-signed certificate"


def subclasses(cls: type) -> set[type]:
    return {cls}.union(*(subclasses(child) for child in cls.__subclasses__()))


CLASSES = sorted(
    (cls for cls in subclasses(aiohttp.ClientError) if cls.__module__.startswith("aiohttp.")),
    key=lambda cls: cls.__name__,
)


def instance_of(cls: type) -> Exception:
    if issubclass(cls, aiohttp.ClientResponseError):
        return cls(INFO, (), status=400, message="Bad")
    if issubclass(cls, client_exceptions.UnixClientConnectorError):
        return cls("/run/x.sock", KEY, REFUSED)
    if issubclass(cls, aiohttp.ClientConnectorCertificateError):
        return cls(KEY, CERTIFICATE)
    if issubclass(cls, aiohttp.ClientConnectorSSLError):
        return cls(KEY, ssl.SSLError(1, "wrong version number"))
    if issubclass(cls, aiohttp.ClientConnectorError):
        return cls(KEY, REFUSED)
    if issubclass(cls, aiohttp.ServerFingerprintMismatch):
        return cls(b"1" * 32, b"2" * 32, "host.example", 443)
    if issubclass(cls, aiohttp.InvalidURL | aiohttp.NonHttpUrlClientError):
        return cls("ftp://x")
    if issubclass(cls, aiohttp.ClientOSError):
        return cls(errno.ECONNRESET, "Connection reset by peer")
    return cls("it broke")


# What is known to have failed before the request left; everything else may have been billed.
UNSENT = {
    "ClientConnectorCertificateError",
    "ClientConnectorDNSError",
    "ClientConnectorError",
    "ClientConnectorSSLError",
    "ClientHttpProxyError",
    "ClientProxyConnectionError",
    "ClientSSLError",
    "ConnectionTimeoutError",
    "ServerFingerprintMismatch",
    "UnixClientConnectorError",
}
HOPELESS = {"ClientConnectorCertificateError", "ServerFingerprintMismatch"}
MISCONFIGURED = {
    "InvalidURL",
    "InvalidUrlClientError",
    "InvalidUrlRedirectClientError",
    "NonHttpUrlClientError",
    "NonHttpUrlRedirectClientError",
}


def test_all_of_aiohttps_errors_are_walked() -> None:
    declared = {
        cls for cls in vars(client_exceptions).values() if inspect.isclass(cls) and issubclass(cls, aiohttp.ClientError)
    }
    assert declared <= set(CLASSES)
    assert {cls.__name__ for cls in CLASSES} >= UNSENT | MISCONFIGURED


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_each_of_aiohttps_errors_is_translated_with_its_fate(cls: type) -> None:
    error = translate_exception(instance_of(cls), "host.example")
    if cls.__name__ in MISCONFIGURED:
        assert type(error) is ConfigurationError
        return
    assert isinstance(error, APIConnectionError)
    assert error.billing is (Billing.NOT_PROCESSED if cls.__name__ in UNSENT else Billing.POSSIBLY_BILLED)
    assert error.retryable is (cls.__name__ not in HOPELESS)
    assert isinstance(error, APITimeoutError) is issubclass(cls, TimeoutError)
    assert CANARY not in f"{error!s} {error!r} {error.__dict__}"
    assert error.message.endswith(".")


OS_ERRORS = [
    ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
    ConnectionAbortedError(errno.ECONNABORTED, "Software caused connection abort"),
    BrokenPipeError(errno.EPIPE, "Broken pipe"),
    OSError(errno.EHOSTUNREACH, "No route to host"),
    OSError("no errno at all"),
    ssl.SSLError(1, "bad record"),
    socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"),
    OSError(),
]


@pytest.mark.parametrize("error", OS_ERRORS, ids=repr)
def test_each_error_of_the_operating_system_is_translated_as_possibly_billed(error: OSError) -> None:
    found = translate_exception(error, "host.example")
    assert type(found) is APIConnectionError
    assert (found.billing, found.retryable) == (Billing.POSSIBLY_BILLED, True)
    assert "host.example" in found.message


@pytest.mark.parametrize("error", [TimeoutError(), TimeoutError(errno.ETIMEDOUT, "timed out")])
def test_each_timeout_after_connecting_is_possibly_billed(error: OSError) -> None:
    found = translate_exception(error, "host.example")
    assert isinstance(found, APITimeoutError)
    assert found.billing is Billing.POSSIBLY_BILLED
    assert "Raise Timeout.total" in found.advice


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, 10024, 10055])
@pytest.mark.parametrize("wrapped", [True, False])
def test_used_up_descriptors_are_named_however_they_come(number: int, wrapped: bool) -> None:
    error: OSError = OSError(number, "Too many open files")
    if wrapped:
        error = aiohttp.ClientConnectorError(KEY, error)
    found = translate_exception(error, "host.example")
    assert isinstance(found, APIError)
    assert (found.billing, found.retryable) == (Billing.NOT_PROCESSED, False)
    assert "ulimit -n" in found.advice


def test_the_reason_is_short_even_when_the_error_is_long() -> None:
    found = translate_exception(aiohttp.ClientPayloadError("x" * 10_000), "host.example")
    assert len(found.message) < 400


def test_a_certificate_failure_says_what_is_wrong_with_it() -> None:
    found = translate_exception(aiohttp.ClientConnectorCertificateError(KEY, CERTIFICATE), "host.example")
    assert "self-signed certificate" in found.message


def test_an_error_without_words_is_named_by_its_class() -> None:
    assert "SimpleOSError" in translate_exception(type("SimpleOSError", (OSError,), {})(), "h").message


def test_advice_names_a_proxy_that_is_not_used_and_the_service_that_is_gone_in_arguments_and_in_flags() -> None:
    found = translate_exception(aiohttp.ClientConnectorError(KEY, REFUSED), "onellm.dev", unused_proxy="HTTPS_PROXY")
    assert found.advice == (
        "The hosted service has been shut down. Set ONELLM_BASE_URL or base_url=… (--base-url) to another backend. "
        "HTTPS_PROXY is not used: set ONELLM_PROXY, proxy=… (--proxy) or trust_env=True (--trust-env)."
    )
    assert in_flags(found.advice) == (
        "The hosted service has been shut down. Set ONELLM_BASE_URL or --base-url to another backend. "
        "HTTPS_PROXY is not used: set ONELLM_PROXY, --proxy or --trust-env."
    )
    certificate = translate_exception(aiohttp.ClientConnectorCertificateError(KEY, CERTIFICATE), "host.example")
    assert in_flags(certificate.advice).endswith(
        "ONELLM_CA_FILE or --ca-file names certificate authorities of your own."
    )


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_what_was_never_sent_is_not_billed_whatever_failed(cls: type) -> None:
    error = translate_exception(instance_of(cls), "host.example", sent=False)
    if cls.__name__ in MISCONFIGURED:
        assert type(error) is ConfigurationError
        return
    assert isinstance(error, APIConnectionError)
    assert error.billing is Billing.NOT_PROCESSED
    assert "host.example" in error.message or "proxy" in error.message


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (403, FailureKind.NOT_TRUSTED),
        (407, FailureKind.NOT_TRUSTED),
        (400, FailureKind.CANNOT_CONNECT),
        (500, FailureKind.CANNOT_CONNECT),
        (503, FailureKind.CANNOT_CONNECT),
    ],
)
def test_an_answer_of_a_proxy_is_told_by_its_status(status: int, kind: FailureKind) -> None:
    refused = aiohttp.ClientHttpProxyError(INFO, (), status=status, message="Reason")
    proxy = Proxy("http://proxy.example:3128", "ONELLM_PROXY", "Basic c2VjcmV0")
    found = translate_exception(refused, "host.example", sent=False, proxy=proxy)
    assert isinstance(found, APIConnectionError)
    assert found.kind is kind
    assert found.message == f"The proxy http://proxy.example:3128 (ONELLM_PROXY) refused: {status} Reason."


def test_secrets_in_the_words_of_aiohttp_are_hidden() -> None:
    found = translate_exception(
        aiohttp.ClientPayloadError(f"at {CANARY}"), "h", redact=lambda text: text.replace(CANARY, "***")
    )
    assert found.message == "The connection to h broke: at ***."
