# ruff: noqa: S301  # our own pickles
import contextlib
import copy
import math
import pickle

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from onellm_async.errors import ConfigurationError
from onellm_async.settings import (
    DEFAULT_BASE_URL,
    ApiKey,
    Proxy,
    Timeout,
    redacted_url,
    resolve_api_key,
    resolve_base_url,
    resolve_proxy,
    unused_proxy_variable,
)
from onellm_async.transport import AiohttpTransport
from onellm_async.transport.addresses import parse_url

CANARY = "sk-canary-7f3a"


@pytest.mark.parametrize("unsendable", ["\n", "\r\nX-Evil: 1", " ", "\t", "\x00", "\x7f", "ä", "\u2028", "\ud800"])
def test_a_key_no_header_can_carry_is_refused_without_showing_it(unsendable: str) -> None:
    for secret in (CANARY + unsendable, unsendable + CANARY, CANARY + unsendable + CANARY):
        with pytest.raises(ConfigurationError, match="no HTTP header can carry") as caught:
            ApiKey(secret)
        assert CANARY not in str(caught.value) + repr(caught.value)


@pytest.mark.parametrize("secret", ["", None, 5, b"abc", ["x"]])
def test_a_key_that_is_no_text_is_refused(secret: object) -> None:
    with pytest.raises(ConfigurationError, match="API key is"):
        ApiKey(secret)  # type: ignore[arg-type]


def test_a_key_shows_itself_only_in_the_header() -> None:
    key = ApiKey(CANARY)
    assert key.authorization() == f"Bearer {CANARY}"
    assert CANARY not in f"{key!r} {key!s} {[key]} {vars(type(key))}"
    assert not hasattr(key, "__dict__")


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_key_is_never_pickled(again) -> None:
    with pytest.raises(TypeError, match="not pickled"):
        again(ApiKey(CANARY))


def test_the_key_comes_from_the_argument_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONELLM_API_KEY", "from-environment")
    assert resolve_api_key(None).authorization() == "Bearer from-environment"
    assert resolve_api_key("given").authorization() == "Bearer given"
    key = ApiKey("mine")
    assert resolve_api_key(key) is key


def test_an_empty_key_does_not_fall_back_to_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONELLM_API_KEY", "from-environment")
    with pytest.raises(ConfigurationError, match="empty"):
        resolve_api_key("")


@pytest.mark.parametrize("variable", [None, ""])
def test_a_missing_key_says_where_it_belongs(variable: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if variable is not None:
        monkeypatch.setenv("ONELLM_API_KEY", variable)
    with pytest.raises(ConfigurationError, match="No API key was given") as caught:
        resolve_api_key(None)
    assert caught.value.advice == "Pass api_key=… or set ONELLM_API_KEY."


def test_the_address_comes_from_the_argument_the_environment_or_the_documentation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert resolve_base_url(None) == DEFAULT_BASE_URL == "https://onellm.dev/api"
    monkeypatch.setenv("ONELLM_BASE_URL", "https://self.example/api")
    assert resolve_base_url(None) == "https://self.example/api"
    assert resolve_base_url("https://given.example/x") == "https://given.example/x"
    monkeypatch.setenv("ONELLM_BASE_URL", "")
    assert resolve_base_url(None) == DEFAULT_BASE_URL


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8000/api",
        "http://127.8.9.1/v1",
        "http://localhost:1/x",
        "http://[::1]:8000/x/",
        "HTTP://LOCALHOST/x",
    ],
)
def test_plain_http_to_this_machine_is_fine(url: str) -> None:
    assert resolve_base_url(url) == url


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/api",
        "http://10.0.0.1/api",
        "http://0.0.0.0/api",
        "http://127.0.0.1.example.com/x",
        "http://localhost.example.com/x",
        "http://127.1/x",
        "http://2130706433/x",
        "http://[::ffff:10.0.0.1]/x",
        "http://127.0.0.1\\.example.com/x",
    ],
)
def test_plain_http_elsewhere_is_refused_unless_allowed(url: str) -> None:
    with pytest.raises(ConfigurationError, match="unencrypted"):
        resolve_base_url(url)
    assert resolve_base_url(url, allow_insecure=True) == url


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://127.0.0.1:3000", "http://127.0.0.1:3000/api"),
        ("http://127.0.0.1:3000/", "http://127.0.0.1:3000/api"),
        ("https://llm.example", "https://llm.example/api"),
        ("https://llm.example?a=b", "https://llm.example/api?a=b"),
        ("https://llm.example/?a=b", "https://llm.example/api?a=b"),
        ("http://[::1]:3000", "http://[::1]:3000/api"),
        *((url, url) for url in ("https://llm.example/v1", "https://llm.example/api/", "https://llm.example//")),
    ],
)
def test_an_address_without_a_path_gets_that_of_the_api_and_any_path_stays(
    url: str, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert resolve_base_url(url) == address
    monkeypatch.setenv("ONELLM_BASE_URL", url)
    assert resolve_base_url(None) == address


def test_the_query_of_an_address_that_is_refused_is_not_shown() -> None:
    for url in ("http://llm.example/api?key=hunter2", "ftp://llm.example?key=hunter2", "https://[::1?key=hunter2"):
        with pytest.raises(ConfigurationError) as caught:
            resolve_base_url(url)
        assert "hunter2" not in str(caught.value)


def test_the_flag_for_plain_http_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"allow_insecure=True \(--allow-insecure\)"):
        resolve_base_url("http://llm.example/api")


@pytest.mark.parametrize(
    "url",
    [
        "https://user:hunter2@example.com/",
        "https://hunter2@example.com/",
        "https://user:hunter2@example.com:port/",
        "https://user:hunter2@[::1",
        "https:/user:hunter2@example.com/",
        "ftp://user:hunter2@example.com/",
        "http://localhost@example.com:hunter2@/",
        "http://localhost\\@hunter2@example.com/",
        "https://user:hunter2\n@example.com",
    ],
)
@pytest.mark.parametrize("allow_insecure", [True, False])
def test_user_info_in_the_address_is_refused_and_not_echoed(url: str, allow_insecure: bool) -> None:
    with pytest.raises(ConfigurationError) as caught:
        resolve_base_url(url, allow_insecure=allow_insecure)
    assert "hunter2" not in f"{caught.value} {caught.value!r} {caught.value.__cause__!r} {caught.value.advice}"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "onellm.dev/api",
        "//onellm.dev/api",
        "ftp://onellm.dev/api",
        "file:///etc/passwd",
        "https://",
        "https:///api",
        "https://:443/api",
        "https://onellm.dev:99999/",
        "https://onellm.dev:x/",
        "https://[::1/",
        "https://onellm.dev/a b",
        "https://onellm.dev/\n",
        " https://onellm.dev/",
        "https://one\x00llm.dev/",
        "https://a..b/",
        "https://" + "a" * 64 + ".dev/",
        "https://\ud800/",
        "https://\u2100/",
    ],
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="base_url"):
        resolve_base_url(url)


@pytest.mark.parametrize("url", [5, b"https://onellm.dev/api", ["https://onellm.dev"], object()])
def test_an_address_that_is_no_text_is_refused(url: object) -> None:
    with pytest.raises(ConfigurationError, match="must be a string"):
        resolve_base_url(url)  # type: ignore[arg-type]


URL_TEXT = st.text("htps:/@[].%#?\\-_aA0159\x00\x1f\x7f \nüß\ud800\u2100") | st.text()


@given(URL_TEXT, st.sampled_from(["", "https://", "http://", "https://x.example/", "http://127.0.0.1:", "https://["]))
@example("a" * 300, "https://")
@example("0", "https://x:")
@example("xn--ls8h.la", "https://")
def test_any_text_is_refused_as_configuration_or_is_an_address_that_can_be_posted_to(text: str, start: str) -> None:
    with contextlib.suppress(ConfigurationError):
        AiohttpTransport(resolve_base_url(start + text, allow_insecure=True), ApiKey("k"), Timeout())


@pytest.mark.parametrize("seconds", [0, -1, math.nan, math.inf, "5", None, True])
@pytest.mark.parametrize("name", ["connect", "total"])
def test_a_timeout_that_would_mean_none_at_all_is_refused(name: str, seconds: object) -> None:
    with pytest.raises(ConfigurationError, match=rf"Timeout\.{name} is .*; it must be a finite number above 0"):
        Timeout(**{name: seconds})  # type: ignore[arg-type]


def test_timeouts_are_frozen_values() -> None:
    assert Timeout() == Timeout(connect=10, total=600)
    assert hash(Timeout(connect=1, total=2)) == hash(Timeout(connect=1.0, total=2.0))
    assert pickle.loads(pickle.dumps(Timeout(connect=1, total=2))) == Timeout(connect=1, total=2)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        Timeout().total = 5  # type: ignore[misc]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://a.example/b", "https://a.example/b"),
        ("https://a.example/b?key=hunter2&v=1", "https://a.example/b?key=***&v=***"),
        ("https://a.example/b?hunter2", "https://a.example/b?***"),
        ("https://a.example/b?key=hunter2=x&=hunter2&&y=", "https://a.example/b?key=***&=***&&***"),
        ("https://a.example/b?a=1?hunter2#hunter2", "https://a.example/b?a=***"),
        ("https://joe:hunter2@a.example/b?k=hunter2", "…@a.example/b?k=***"),
        ("not a URL", "not a URL"),
    ],
)
def test_a_url_is_shown_without_what_may_be_secret(url: str, shown: str) -> None:
    assert redacted_url(url) == shown


@given(st.text("ab=&?#@:/%"), st.sampled_from(["", "k=", "=", "k=x="]), st.text("ab&?:/%#"))
def test_no_value_of_a_query_is_shown(before: str, name: str, after: str) -> None:
    assert CANARY not in redacted_url(f"https://a.example/?{before}{name}{CANARY}{after}")


@pytest.mark.parametrize(
    ("given", "url", "authorization"),
    [
        ("http://proxy.example:3128", "http://proxy.example:3128", None),
        ("proxy.example:3128", "http://proxy.example:3128", None),
        ("proxy.example", "http://proxy.example", None),
        ("https://proxy.example/", "https://proxy.example", None),
        ("http://[::1]:3128", "http://[::1]:3128", None),
        ("http://joe@proxy.example", "http://proxy.example", "Basic am9lOg=="),
        ("joe:p:w@proxy.example:1", "http://proxy.example:1", "Basic am9lOnA6dw=="),
        ("http://j%40e:p%2Fw%C3%A4@proxy.example", "http://proxy.example", "Basic akBlOnAvd8Ok"),
    ],
)
@pytest.mark.parametrize("how", ["argument", "ONELLM_PROXY", "HTTPS_PROXY", "all_proxy"])
def test_a_proxy_is_read_from_its_url(
    given: str, url: str, authorization: str | None, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_proxies(monkeypatch)
    if how == "argument":
        found = resolve_proxy(given, "https://a.example/")
    else:
        monkeypatch.setenv(how, given)
        found = resolve_proxy(None, "https://a.example/", trust_env=True)
    assert found == Proxy(url, "proxy" if how == "argument" else how, authorization)
    assert authorization is None or authorization not in repr(found)


def without_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def test_a_proxy_that_is_not_used_is_known_by_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    without_proxies(monkeypatch)
    assert unused_proxy_variable("https://a.example/") is None
    monkeypatch.setenv("http_proxy", "http://p")
    assert unused_proxy_variable("https://a.example/") is None
    assert unused_proxy_variable("http://a.example/") == "http_proxy"
    monkeypatch.setenv("HTTPS_PROXY", "http://p")
    assert unused_proxy_variable("https://a.example/") == "HTTPS_PROXY"
    monkeypatch.setenv("NO_PROXY", ".example")
    assert unused_proxy_variable("https://a.example/") is None
    assert resolve_proxy(None, "https://a.example:8443/", trust_env=True) is None


@pytest.mark.parametrize(
    "proxy",
    [
        "http://joe:hunter2@h:x",
        "http://joe:hunter2#w@h:1",
        "http://joe:hunter2/w@h:1",
        "ftp://joe:hunter2@h",
        "http://joe:hunter2@h/path",
        "http://joe:hunter2@h?q=hunter2",
        "http://h?q=hunter2",
        "socks5://joe:hunter2@h:1080",
        "http://joe:hunter2@",
        "http://joe:hunter2@h\n:1",
        "http://joe:hunter2@[::1",
    ],
)
def test_an_unusable_proxy_is_refused_without_its_password(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONELLM_PROXY", proxy)
    for argument in (proxy, None):
        with pytest.raises(ConfigurationError, match=r"proxy|ONELLM_PROXY") as caught:
            resolve_proxy(argument, "https://a.example/")
        assert "hunter2" not in f"{caught.value} {caught.value.__cause__!r}"


@pytest.mark.parametrize(
    ("url", "sent"),
    [
        ("https://a.example/api?p=a%2Fb", "/api?p=a%2Fb"),
        ("https://a.example/api?p=%3F%26%3D%40%2B+x", "/api?p=%3F%26%3D%40%2B+x"),
        ("https://a.example/api?p=a b", "/api?p=a+b"),
        ("https://a.example/api?p=ä", "/api?p=%C3%A4"),
        ("https://a.example/api?p=%zz", "/api?p=%25zz"),
        ("https://A.Example/a%2Fb?x#y", "/a%2Fb?x"),
        ("https://a.example?p=%2F", "/?p=%2F"),
    ],
)
def test_the_query_of_an_address_is_sent_as_it_is_written(url: str, sent: str) -> None:
    found = parse_url(url)
    assert found.raw_path_qs == sent
    assert found.host == "a.example"
