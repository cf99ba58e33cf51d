"""All arguments of `onellm_async.AsyncOneLLM.run`, checked."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from inspect import iscoroutinefunction
from os import PathLike
from pathlib import Path
from typing import Literal, Self, TypedDict

from attrs import asdict, evolve, field, frozen
from attrs.filters import exclude

from onellm_async.batch.budget import Budget
from onellm_async.batch.health import HealthPolicy
from onellm_async.batch.identity import RunIdentity, endpoints_text
from onellm_async.batch.inputs.defaults import DEFAULT_MODEL, RequestDefaults
from onellm_async.batch.inputs.memory import InMemoryInput
from onellm_async.batch.inputs.sources import InputFile, InputScan
from onellm_async.batch.inputs.table import TableInput
from onellm_async.batch.journal.file import journal_path
from onellm_async.batch.journal.record import JournalRecord, RecordState
from onellm_async.batch.outputs.formats import OutputFormat, output_format, output_format_named
from onellm_async.batch.outputs.ordered_writer import LineSink
from onellm_async.catalog import LIST_PRICES, PriceList
from onellm_async.chat import JSON, ChatRequest
from onellm_async.errors import ConfigurationError, InvalidRequestError
from onellm_async.limits.policy import LANES, Lane, Limits
from onellm_async.structured_output import check_corrections, shape_of
from onellm_async.validation import Checks, truncated_repr

_check = Checks(ConfigurationError, "RunPolicy.")
_run_check = Checks(ConfigurationError, "")
_AMBIGUOUS = ("retry", "hold")


InputFormatName = Literal["text", "jsonl", "json", "openai-batch", "csv", "tsv", "parquet", "arrow"]
OutputFormatName = Literal["jsonl", "openai-batch", "csv", "tsv", "parquet"]
RunInput = InputFile | InMemoryInput | TableInput
"""Where the entries of a run come from."""


class RunOptions(TypedDict, total=False):
    """The options of a run; each is the flag of ``onellm-async run`` of the same name, with the same default.

    Only the command reads a model from the environment (``ONELLM_MODEL``); it is the `fallback_model` of its runs.

    Attributes:
        system: Instruction beside each prompt.
        max_tokens: Maximum number of tokens to generate.
        temperature: 0 to 2.
        top_p: 0 to 1.
        stop_sequences: Texts at which the model stops.
        seed: For repeatable sampling, where the provider has it.
        response_format: For example ``{"type": "json_object"}``.
        extra: Further fields of every request, sent as they are.
        response_model: A class, or a JSON Schema, that each answer has to conform to, as in `AsyncOneLLM.chat`. The
            answer of a line has the value as ``parsed``. It replaces the ``response_format`` of lines.
        corrections: How many times an answer that does not fit is sent back with its faults. Each is one more paid
            request; under a cost cap all are reserved before the first is sent.
        fallback_model: Model of prompts that name none, where lines may name one; without `model`. To resume a run of
            the command that had ``ONELLM_MODEL``, give the model of that here.
        field: Field of each JSON object, or column of each row, that holds the prompt.
        template: Jinja2 template that makes the prompt: a file, or the text itself.
        id_field: Field or column that holds the id of a prompt; None for ``custom_id``, or ``id`` where it is unique.
        keep: Fields of each line or row that go beside its answer: ``"all"``, or their names; None for all of a
            table and none of others.
        input_format: How the input is written; None to tell from its name and its first line.
        strict: Send nothing if a line of a file, a row of a table or an entry of a list is bad. What can be read only
            once, such as a pipe or a generator, ends the run at its first bad entry: `RunReport.strict_error`.
        samples: How often each prompt is asked; each record then has its ``sample``, from 1.
        limit: Send only the first N entries; the report then has an `RunReport.estimate` of the others.
        output_format: How answers are written; None to tell from the name of the output.
        journal: File that remembers what was sent; None for ``OUTPUT.journal``.
        force: Start over: drop an existing output and the answers in its journal.
        max_cost: Cost cap in USD over all sessions; needs ``max_tokens``.
        max_tokens_total: Cap on input and output tokens together over all sessions.
        ambiguous: Prompts that may have been billed without an answer: ``"retry"`` or ``"hold"``.
        retry_failed: Retry prompts that failed in an earlier session.
        accept_removed: Take an input that lost prompts since earlier sessions. Their answers leave the output and stay
            in the journal.
        deduplicate: Whether identical requests are sent once and share the answer; None: only those of temperature 0.
        cache: Outputs or journals of earlier runs, whose answers to the same requests are used, whatever the
            temperature.
        max_failure_share: Share of the last 50 prompts that may fail with the same error; 1 is ``--keep-going``,
            which also allows any number of answers that do not conform to the schema.
        stall_after: Seconds of waiting for the service without an outcome after which the run stops.
        max_time: Seconds after which nothing more is sent; None for no limit. `RunReport.out_of_time` tells.
        lane: Where the requests of the run wait: ``"interactive"``, ``"default"`` or ``"batch"``.
    """

    system: str | None
    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    stop_sequences: Sequence[str] | None
    seed: int | None
    response_format: Mapping[str, JSON] | None
    extra: Mapping[str, JSON] | None
    response_model: type[object] | Mapping[str, JSON] | None
    corrections: int
    fallback_model: str
    field: str | None
    template: str | None
    id_field: str | None
    keep: str | Sequence[str] | None
    input_format: InputFormatName | None
    strict: bool
    samples: int
    limit: int | None
    output_format: OutputFormatName | None
    journal: str | PathLike[str] | None
    force: bool
    max_cost: float | None
    max_tokens_total: int | None
    ambiguous: Literal["retry", "hold"]
    retry_failed: bool
    accept_removed: bool
    deduplicate: bool | None
    cache: Sequence[str | PathLike[str]]
    max_failure_share: float
    stall_after: float
    max_time: float | None
    lane: Lane


def _one_of_ambiguous(_: object, attribute: object, value: object) -> None:
    if value not in _AMBIGUOUS:
        raise _check.error("ambiguous", value, "it must be 'retry' or 'hold'")


def _known_lane(_: object, attribute: object, value: object) -> None:
    if value not in LANES:
        raise _run_check.error("lane", value, f"it must be one of {', '.join(LANES)}")


@frozen(kw_only=True)
class RunPolicy:
    """Which prompts a run sends.

    Attributes:
        ambiguous: What a later session does with a prompt that was sent and whose answer never came, as after a crash:
            ``"retry"`` sends it again, which may bill it twice; ``"hold"`` leaves it without an answer.
        retry_failed: Retry prompts that failed in an earlier session.
        deduplicate: Whether identical requests are sent once and share the answer. None: only those of temperature 0,
            because at any other one each answer is a sample of its own.
        strict: End the run at the first bad line.
        samples: How often each prompt is asked.
        max_time: Seconds after which nothing more is sent; None for no limit.
        lane: Where the requests wait.
        first: Send only so many entries of the input; None for all. What comes after is left to a later session.

    Raises:
        ConfigurationError: If a value is out of range.
    """

    ambiguous: Literal["retry", "hold"] = field(default="retry", validator=_one_of_ambiguous)
    retry_failed: bool = field(default=False, validator=_check.kind(bool, "it must be a bool"))
    deduplicate: bool | None = field(
        default=None, validator=_check.kind(bool, "it must be a bool or None", optional=True)
    )
    strict: bool = field(default=False, validator=_check.kind(bool, "it must be a bool"))
    samples: int = field(default=1, validator=_run_check.integer(1))
    max_time: float | None = field(default=None, validator=_run_check.number(0, above=True, optional=True))
    lane: Lane = field(default="batch", validator=_known_lane)
    first: int | None = field(default=None, validator=_check.integer(0, optional=True))

    @property
    def end(self) -> int | None:
        """The position before which entries are sent, samples counted; None for all."""
        return None if self.first is None else self.first * self.samples

    def deduplicates(self, request: ChatRequest) -> bool:
        """Whether a request is sent once, and requests identical to it share its answer."""
        return request.temperature == 0 if self.deduplicate is None else self.deduplicate

    def is_complete(self, record: JournalRecord) -> bool:
        """Whether the prompt of a record of an earlier session is not sent."""
        hold = self.ambiguous == "hold"
        if record.state is RecordState.IN_FLIGHT:
            return hold and record.possibly_billed > 0
        if record.state is RecordState.FAILED and self.retry_failed:
            return hold and record.possibly_billed > 0
        return True


@frozen(kw_only=True)
class RunConfig:
    """What is to be run, and how.

    Attributes:
        output: File for the answers; None for a stream.
        sink: Takes the answers of a stream; None for standard output.
        journal: Where to remember, named ``….journal``; None for ``OUTPUT.journal``. A stream has none unless given.
        output_format: How answers are written; None to tell from the name and the input.
        defaults: Model and parameters of every prompt that is no complete request.
        base_url: Where the requests go; part of the run's identity.
        dialect: How they are written; likewise.
        endpoints: Where a self-hosted backend forwards them to, by provider; likewise.
        force: Start over, whatever is there.
        accept_removed: Take an input that lost prompts since earlier sessions.
        caches: Outputs or journals of earlier runs, whose answers are used.
        policy: Which prompts are sent.
        budget: What all sessions together may spend.
        health: When a run that gets nowhere pauses and ends.
        corrections: How many times an answer that does not fit its schema is sent back.
        settings: Of this session, kept in the journal for the report.

    Raises:
        ConfigurationError: If the journal is named otherwise, standard output has one, or a stream cannot hold the
            format.
    """

    output: str | None
    sink: LineSink | None = None
    journal: str | None = None
    output_format: OutputFormat | None = None
    defaults: RequestDefaults = field(factory=RequestDefaults)
    base_url: str | None = None
    dialect: str | None = None
    endpoints: Mapping[str, str] = field(factory=dict)
    force: bool = False
    accept_removed: bool = False
    caches: tuple[str, ...] = ()
    policy: RunPolicy = field(factory=RunPolicy)
    budget: Budget = field(factory=Budget)
    health: HealthPolicy = field(factory=HealthPolicy)
    corrections: int = 1
    settings: JSON = None

    def __attrs_post_init__(self) -> None:
        check_corrections(self.corrections)
        # Other commands are given the output or the journal, and tell them by their names.
        if self.journal is not None and journal_path(self.journal) != Path(self.journal):
            raise ConfigurationError(
                f"journal is {self.journal!r}; its name must end with .journal, by which other commands know it."
            )
        if self.journal is not None and self.output is None and self.sink is None:
            raise ConfigurationError("A journal needs an output file: what went into a stream cannot be resumed.")
        if self.output is None and self.output_format is not None and not self.output_format.lines:
            raise _run_check.error("output_format", self.output_format.name, "a stream cannot hold it: name a file")

    @classmethod
    def from_options(
        cls,
        output: str | PathLike[str] | LineSink,
        model: str | None,
        options: RunOptions,
        *,
        limits: Limits,
        base_url: str | None,
        dialect: str,
        endpoints: Mapping[str, str],
        prices: PriceList = LIST_PRICES,
    ) -> Self:
        """The arguments of `onellm_async.AsyncOneLLM.run`, checked.

        Raises:
            InvalidRequestError: If an option is unknown.
            ConfigurationError: If a value is out of range.
        """
        unknown = sorted(options.keys() - RunOptions.__annotations__.keys())
        if unknown:
            raise InvalidRequestError(
                f"run has no option {truncated_repr(unknown[0])}.",
                advice=f"The options are {', '.join(RunOptions.__annotations__)}.",
            )
        _check_kinds(output, options)
        journal, shape, cache = options.get("journal"), options.get("output_format"), options.get("cache", ())
        place = os.fspath(output) if isinstance(output, str | PathLike) else None
        response_model, corrections = options.get("response_model"), options.get("corrections", 1)
        with _naming_options():
            policy, health = _policy_of(options), _health_of(options)
            budget = Budget(max_cost=options.get("max_cost"), max_tokens=options.get("max_tokens_total"), prices=prices)
        return cls(
            output=None if place == "-" else place,
            sink=None if isinstance(output, str | PathLike) else output,
            journal=None if journal is None else os.fspath(journal),
            output_format=None if shape is None else output_format_named(shape),
            defaults=RequestDefaults(
                model=model,
                fallback_model=options.get("fallback_model", DEFAULT_MODEL),
                system=options.get("system"),
                max_tokens=options.get("max_tokens"),
                temperature=options.get("temperature"),
                more=_further_fields(options),
                least_max_tokens=budget.capped,
                shape=None if response_model is None else shape_of(response_model),
            ),
            base_url=base_url,
            dialect=dialect,
            endpoints=endpoints,
            force=options.get("force", False),
            accept_removed=options.get("accept_removed", False),
            caches=tuple(os.fspath(each) for each in ([cache] if isinstance(cache, str | PathLike) else cache)),
            policy=policy,
            budget=budget,
            health=health,
            corrections=corrections,
            settings={"limits": asdict(limits), "budget": asdict(budget, filter=exclude("prices"))},
        )

    @property
    def journal_place(self) -> Path | None:
        """Where the journal is, or is to be; None where the run remembers nothing."""
        if self.journal is not None:
            return Path(self.journal)
        return None if self.output is None else journal_path(self.output)

    def format_for(self, source: RunInput) -> OutputFormat:
        """How the output is written."""
        return self.format_named(source).keeping(source.kept_columns)

    def format_named(self, source: RunInput) -> OutputFormat:
        """The same without columns for kept fields."""
        found = self.output_format or output_format(self.output, source.format.name)
        return found.sampling(self.policy.samples)

    def identity(self, source: RunInput, scan: InputScan | None) -> RunIdentity:
        """What its answers depend on."""
        defaults, template = source.defaults, source.template
        return RunIdentity(
            input=source.name,
            input_digest=None if scan is None else scan.digest,
            lines=scan.lines if scan is not None else None if isinstance(source, InputFile) else source.count,
            format=None if scan is None else source.format.name,
            field=source.field,
            template_digest=None if template is None else template.digest,
            model=defaults.model,
            fallback_model=defaults.fallback_model,
            system_digest=None if defaults.system is None else _digest(defaults.system),
            max_tokens=defaults.max_tokens,
            temperature=defaults.temperature,
            schema_digest=None if defaults.shape is None else _digest(_json_text(defaults.shape.schema) or ""),
            request_fields=_json_text(defaults.more),
            keep=source.keep,
            columns=source.kept_columns or None,
            samples=None if self.policy.samples == 1 else self.policy.samples,
            base_url=self.base_url,
            dialect=self.dialect,
            endpoints=endpoints_text(self.endpoints),
        )


def _policy_of(options: RunOptions) -> RunPolicy:
    return RunPolicy(
        ambiguous=options.get("ambiguous", "retry"),
        retry_failed=options.get("retry_failed", False),
        deduplicate=options.get("deduplicate"),
        strict=options.get("strict", False),
        samples=options.get("samples", 1),
        max_time=options.get("max_time"),
        lane=options.get("lane", "batch"),
        first=options.get("limit"),
    )


def _health_of(options: RunOptions) -> HealthPolicy:
    usual = HealthPolicy()
    given = HealthPolicy(
        max_failure_share=options.get("max_failure_share", usual.max_failure_share),
        stall_after=options.get("stall_after", usual.stall_after),
    )
    return evolve(given, notify_after=min(usual.notify_after, given.stall_after))


_OPTION_OF = {"RunPolicy.first": "limit", "Budget.max_tokens": "max_tokens_total"}
"""Options of a run that its parts call otherwise."""


@contextmanager
def _naming_options() -> Iterator[None]:
    """Has errors of the parts of a run name its options, which the caller gave.

    Raises:
        ConfigurationError: In place of theirs.
    """
    try:
        yield
    except ConfigurationError as error:
        name, rest = error.message.split(" ", 1)
        option = _OPTION_OF.get(name, name.rpartition(".")[2])
        raise ConfigurationError(f"{option} {rest}", advice=error.advice) from None


_TEXTS = ("system", "fallback_model", "field", "template", "id_field", "input_format", "output_format")


def _check_kinds(output: object, options: RunOptions) -> None:
    """Refuses values of another kind than the options have, before anything is opened.

    Raises:
        ConfigurationError: Naming the option and its value.
    """
    given: dict[str, object] = {**options}
    for name in _TEXTS:
        if not isinstance(given.get(name, ""), str | None):
            raise _run_check.error(name, given[name], "it must be a string")
    for name in ("strict", "force", "accept_removed"):
        if not isinstance(given.get(name, False), bool):
            raise _run_check.error(name, given[name], "it must be a bool")
    if not isinstance(given.get("journal"), str | PathLike | None):
        raise _run_check.error("journal", given["journal"], "it must be a path")
    cache = given.get("cache", ())
    paths = cache if isinstance(cache, Sequence) else [cache]
    if not all(isinstance(each, str | PathLike) for each in paths):
        raise _run_check.error("cache", cache, "it must be a sequence of paths")
    if not isinstance(output, str | PathLike) and not iscoroutinefunction(getattr(output, "write", None)):
        raise _run_check.error("output", output, "it must be a path, or have an async method write")


def _further_fields(options: RunOptions) -> Mapping[str, JSON]:
    """The request fields that have no place of their own in `RequestDefaults`."""
    given = {
        "top_p": options.get("top_p"),
        "stop_sequences": options.get("stop_sequences"),
        "seed": options.get("seed"),
        "response_format": options.get("response_format"),
    }
    return {**(options.get("extra") or {}), **{name: value for name, value in given.items() if value is not None}}


def _json_text(value: Mapping[str, JSON]) -> str | None:
    return json.dumps(value, sort_keys=True, ensure_ascii=False) if value else None


def _digest(text: str) -> str:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
