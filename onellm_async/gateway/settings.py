"""Settings of a gateway."""

from pathlib import Path

from attrs import field, frozen

from onellm_async.errors import ConfigurationError
from onellm_async.limits.policy import LANES, Lane
from onellm_async.validation import Checks

_check = Checks(ConfigurationError, "GatewaySettings.")


def _path(value: object) -> object:
    return Path(value) if isinstance(value, str) else value


def _lane(_: object, attribute: object, value: object) -> None:
    if value not in tuple(LANES):
        raise _check.error("lane", value, f"it must be one of {', '.join(LANES)}")


@frozen(kw_only=True)
class GatewaySettings:
    """Who may use a gateway, and for how much.

    Attributes:
        keys: File of the inbound keys. None lets every program in that reaches the gateway, which then serves this
            machine alone.
        ledger: File that has what each key spent. None puts it beside `keys`.
        max_cost: Cost cap in USD over all keys together; None for no cap.
        max_tokens: ``max_tokens`` for requests that name none; None sends them without. Keys with a cost cap need one.
        max_wait: Seconds that a request may take, queue included. openai-python gives up after 600 s and asks again.
        lane: Lane of the requests without a key.

    Raises:
        ConfigurationError: If a value is unusable, or there is no place for the ledger.
    """

    keys: Path | None = field(default=None, converter=_path, validator=_check.kind(Path, "a path", optional=True))
    ledger: Path | None = field(default=None, converter=_path, validator=_check.kind(Path, "a path", optional=True))
    max_cost: float | None = field(default=None, validator=_check.number(0, above=True, optional=True))
    max_tokens: int | None = field(default=None, validator=_check.integer(1, optional=True))
    max_wait: float = field(default=540.0, validator=_check.number(0, above=True))
    lane: Lane = field(default="default", validator=_lane)

    def __attrs_post_init__(self) -> None:
        if self.max_cost is not None and self.ledger_path is None:
            raise ConfigurationError(
                "A cost cap needs a file that remembers what was spent.",
                advice="Set GatewaySettings.keys (--keys FILE) or GatewaySettings.ledger (--ledger FILE).",
            )

    @property
    def ledger_path(self) -> Path | None:
        """File that has what each key spent; None if nothing is recorded."""
        if self.ledger is not None or self.keys is None:
            return self.ledger
        return default_ledger_path(self.keys)


def default_ledger_path(keys: Path) -> Path:
    """Where the ledger of a key file is: ``keys.toml`` has ``keys.spent.sqlite3``."""
    return keys.with_name(f"{keys.stem}.spent.sqlite3")
