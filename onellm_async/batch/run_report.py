"""How a run ends: why it ended early, and what is reported."""

from collections.abc import Mapping

from attrs import field, frozen

from onellm_async.batch.inputs.entry import LineError
from onellm_async.batch.journal.record import RunCounts
from onellm_async.batch.progress import RunProgress
from onellm_async.errors import OneLLMError


@frozen
class StopReason:
    """Why a run ended before its input.

    Attributes:
        error: An error that affects every prompt; None for any other reason.
        bad_line: The bad line at which a strict run ends.
        interrupted: Whether a user ended it.
    """

    error: OneLLMError | None = None
    bad_line: LineError | None = None
    interrupted: bool = False


@frozen
class RunReport:
    """How a session of a run ended.

    Attributes:
        progress: The counts at its end.
        counts: What the journal has, all sessions together.
        interrupted: Whether `stop` ended it before its input.
        stopped_by: The error that ended it before its input: a spent budget, an unknown key, a full disk; else None.
        strict_error: The bad line that ended it, where the run was strict.
        limit_reached: Whether it was told to ask only the first entries, and did.
        failures: What the failed prompts of all sessions failed with, and how many: the most frequent cause first.
        failed_models: Models of which all prompts of this session failed alike, with their number and the cause; empty
            where all prompts were asked of one model.
    """

    progress: RunProgress
    counts: RunCounts
    interrupted: bool = False
    stopped_by: OneLLMError | None = None
    strict_error: LineError | None = None
    limit_reached: bool = False
    failures: Mapping[str, int] = field(factory=dict[str, int], hash=False)
    failed_models: Mapping[str, tuple[int, str]] = field(factory=dict[str, tuple[int, str]], hash=False)

    @property
    def complete(self) -> bool:
        """Whether the whole input was read and every prompt in it has an outcome."""
        return self.input_ended and not self.progress.held

    @property
    def input_ended(self) -> bool:
        """Whether the whole input was read and every prompt in it has an outcome, or is held back without one."""
        return not (self.interrupted or self.limit_reached or self.stopped_by or self.strict_error)
