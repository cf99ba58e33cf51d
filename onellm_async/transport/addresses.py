"""The API URL as it is written on the wire."""

import re
from urllib.parse import unquote

from yarl import URL

from onellm_async.errors import ConfigurationError
from onellm_async.settings import redacted_url

_QUERY = re.compile(r"(?:[A-Za-z0-9\-._~!$&'()*+,;=:@/?]|%[0-9A-Fa-f]{2})+")
"""A query that needs no quoting (RFC 3986)."""


def parse_url(url: str) -> URL:
    """`url` with its query as it is: yarl would send ``%2F`` as ``/``, which some services read differently.

    Raises:
        ConfigurationError: If it is not a URL.

    Example:
        >>> parse_url("https://llm.example/api?path=a%2Fb").raw_path_qs
        '/api?path=a%2Fb'
    """
    try:
        parsed = URL(url)
    except ValueError as error:
        raise ConfigurationError(f"base_url is not a usable URL: {redacted_url(str(error))}") from None
    query = _query(url)
    if not _QUERY.fullmatch(query):
        return parsed
    return URL.build(
        scheme=parsed.scheme,
        authority=parsed.raw_authority,
        path=parsed.raw_path,
        query_string=query,
        encoded=True,
    )


def query_values(url: str) -> set[str]:
    """Returns the values in the query of `url`, which may be secret, encoded and decoded."""
    values = {piece.rpartition("=")[2] for piece in _query(url).split("&")}
    return values | {unquote(value) for value in values}


def _query(url: str) -> str:
    return url.partition("#")[0].partition("?")[2]
