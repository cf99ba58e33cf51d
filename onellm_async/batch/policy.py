"""What a run does with doubtful, failed and repeated prompts."""

from typing import Literal

from attrs import field, frozen

from onellm_async.errors import ConfigurationError
from onellm_async.validation import Checks

__all__ = ["RunPolicy"]

_check = Checks(ConfigurationError, "RunPolicy.")
_AMBIGUOUS = ("retry", "hold")


def _one_of_ambiguous(_: object, attribute: object, value: object) -> None:
    if value not in _AMBIGUOUS:
        raise _check.error("ambiguous", value, "it must be 'retry' or 'hold'")


@frozen(kw_only=True)
class RunPolicy:
    """What a run does beside asking.

    Attributes:
        ambiguous: What a later session does with a prompt that was sent and whose answer never came, as after a crash:
            ``"retry"`` asks it again, which may bill it twice; ``"hold"`` leaves it without an answer.
        retry_failed: Ask again what an earlier session failed to get answered.
        deduplicate: Send identical requests once, and give all of them the same answer.
        strict: End the run at the first bad line.
        first: Ask only the entries before this index; None for all. What comes after is left to a later session.

    Raises:
        ConfigurationError: If a value is out of range.
    """

    ambiguous: Literal["retry", "hold"] = field(default="retry", validator=_one_of_ambiguous)
    retry_failed: bool = field(default=False, validator=_check.kind(bool, "it must be a bool"))
    deduplicate: bool = field(default=True, validator=_check.kind(bool, "it must be a bool"))
    strict: bool = field(default=False, validator=_check.kind(bool, "it must be a bool"))
    first: int | None = field(default=None, validator=_check.integer(0, optional=True))
