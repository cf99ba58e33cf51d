"""The flags of ``onellm-async run`` alone."""

from typing import Annotated, Literal

from attrs import frozen
from cyclopts import Group, Parameter

__all__ = ["GOING_ON", "SPENDING", "WRITING", "BudgetFlags", "OutputFlags", "ResumeFlags"]


@Parameter(name="*", group=Group.create_ordered("Output"))
@frozen
class OutputFlags:
    """Where answers go."""

    output: Annotated[
        str | None,
        Parameter(
            name=["--output", "-o"],
            help="File for the answers; `-` is standard output, which cannot be resumed. [default: standard output]",
        ),
    ] = None
    journal: Annotated[
        str | None, Parameter(help="File that remembers what was sent and answered. [default: OUTPUT.journal]")
    ] = None
    force: Annotated[
        bool,
        Parameter(
            negative="", show_default=False, help="Begin anew: drop an existing output and the answers in its journal."
        ),
    ] = False


@Parameter(name="*", group=Group.create_ordered("Budget"))
@frozen
class BudgetFlags:
    """What may be spent; all sessions of a run count together."""

    max_cost: Annotated[
        float | None, Parameter(help="Cost cap in USD over all sessions; needs --max-tokens. [default: no cap]")
    ] = None
    max_tokens_total: Annotated[
        int | None, Parameter(help="Cap on input and output tokens together; likewise. [default: no cap]")
    ] = None
    preflight: Annotated[
        int | None,
        Parameter(help="Ask so many prompts first, then project cost and time, and on a terminal ask to go on."),
    ] = None
    estimate: Annotated[
        bool, Parameter(negative="", show_default=False, help="Send nothing; estimate like `onellm-async plan`.")
    ] = False


@Parameter(name="*", group=Group.create_ordered("Resuming"))
@frozen
class ResumeFlags:
    """What is done with doubtful, failed and repeated prompts."""

    ambiguous: Annotated[
        Literal["retry", "hold"],
        Parameter(help="What was sent, and its answer never came: ask again (may bill twice), or hold back."),
    ] = "retry"
    retry_failed: Annotated[
        bool, Parameter(negative="", show_default=False, help="Ask again what an earlier session failed to get.")
    ] = False
    cache: Annotated[
        tuple[str, ...],
        Parameter(
            negative="",
            show_default=False,
            help="Output or journal of an earlier run, whose answers to the same requests are used; repeatable.",
        ),
    ] = ()
    deduplicate: Annotated[bool, Parameter(show_default=False, help="Send identical requests once. [default: yes]")] = (
        True
    )
    keep_going: Annotated[
        bool,
        Parameter(
            negative="",
            show_default=False,
            help="Continue even if more than 20 % of the last 50 prompts fail with the same error.",
        ),
    ] = False
    stall_after: Annotated[
        float, Parameter(help="Seconds of waiting for the service without an outcome after which the run stops.")
    ] = 3600.0


WRITING = OutputFlags()
SPENDING = BudgetFlags()
GOING_ON = ResumeFlags()
"""Nothing but defaults."""
