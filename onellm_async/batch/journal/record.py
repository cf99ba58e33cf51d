"""The single definition of a journal record, and everything that follows from it. Pure.

`JournalRecord` is the only place that spells a column. The tables, the statements that write and read them, the totals
of a run (`RunCounts`) and everything that shows these totals are derived from its fields. To add a counter, add a field
with a total, and raise the version in `schema.py`.

A journal is a map from entries to records. A record below 0 is *set aside*: its entry is gone from the input, but what
it cost is not. It counts in the totals of money alone, and gets its place back when the same request comes again. Three
steps change a record, and `after_step` has their rules::

    record_intent    →  in flight; an answered entry refuses it, as its answer is paid for
    record_outcome   →  answered or failed; an answer stays, a failure gives way to a later outcome
    retract_intent   →  the record without its last attempt, or none where that was the only one

An answer that does not fit and is not corrected yet is paid for and no outcome: its cost is in the record in flight.
Where no attempt is open any more, as after a graceful stop, that record has no possibly billed attempt.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum, IntEnum
from operator import attrgetter
from typing import Any, Literal, TypeAlias

from attrs import Attribute, asdict, evolve, field, fields, frozen, make_class

from onellm_async.chat import JSON
from onellm_async.errors import BatchError
from onellm_async.wire import parse_json

MAX_STORED = 2**63 - 1
"""The largest integer of SQLite."""
_MAX_UNFOLDED = 100
"""Changes that `RunningCounts` keeps before it folds them: many at once cost half as much, and memory stays bounded."""
_USD_DIGITS = 12
"""Digits of a USD total that are kept. Prices per token have fewer, so the order of additions does not matter."""


class UnstorableRowError(BatchError):
    """A record that the journal cannot store, whatever the disk. It concerns its own entry and no other."""


class RecordState(IntEnum):
    """How an entry of the input stands. An entry without a record was never sent."""

    IN_FLIGHT = 1
    """It was sent, or is about to be, and no outcome is known: after a crash it may have been billed."""
    ANSWERED = 2
    FAILED = 3


class Step(Enum):
    """What happens to an entry."""

    INTENT = "record_intent"
    OUTCOME = "record_outcome"
    RETRACT = "retract_intent"


_INTENT, _OUTCOME = Step.INTENT, Step.OUTCOME  # members of a class are looked up slowly
_IN_FLIGHT, _ANSWERED = RecordState.IN_FLIGHT, RecordState.ANSWERED  # likewise

# Values as SQLite can bind them, and back.


def bind_text(text: str | None) -> str | bytes | None:
    r"""`text`, or its bytes where it is not valid Unicode.

    SQLite stores text as UTF-8, which has no place for half of a surrogate pair. Such halves come from JSON escapes
    that were cut in two, and from names of files that are not UTF-8.

    Example:
        >>> bind_text("a"), bind_text("\ud800")
        ('a', b'\xed\xa0\x80')
    """
    if text is None or text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")
    return text


def read_text(value: str | bytes | None) -> str | None:
    """The text that `bind_text` was given."""
    return value.decode("utf-8", "surrogatepass") if type(value) is bytes else value  # type: ignore[return-value]


def bind_number(value: float | None) -> float | None:
    """`value`, or None (unknown) where a sum of such values could not be stored.

    Example:
        >>> bind_number(0.5), bind_number(float("inf")), bind_number(2**64)
        (0.5, None, None)
    """
    if value is None or (-MAX_STORED <= value <= MAX_STORED):  # which NaN is not
        return value
    return None


def _bind_count(value: int | None) -> int | None:
    return None if value is None or not -MAX_STORED <= value <= MAX_STORED else value


_STATES: Sequence[RecordState] = (RecordState.IN_FLIGHT, *RecordState)


# Columns.

Table: TypeAlias = Literal["intents", "outcomes"]
INTENTS: tuple[Table, ...] = ("intents",)
OUTCOMES: tuple[Table, ...] = ("outcomes",)
BOTH: tuple[Table, ...] = ("intents", "outcomes")
"""The value while in flight in ``intents``, the final one in ``outcomes``."""


@frozen
class Total:
    """A sum over all records.

    Attributes:
        name: Of the field of `RunCounts`, and of the column of the table ``totals``.
        of: What one record adds to it; None for nothing.
        unit: ``usd``, or ``count`` for a whole number.
        state: The only state in which a record adds to it; None for any. A column of ``outcomes`` alone adds nothing
            while a record is in flight, whatever this says.
        label: The name in words.
    """

    name: str
    of: Callable[["JournalRecord"], float | None]
    unit: Literal["count", "usd"] = "count"
    state: RecordState | None = None
    label: str = field()

    @label.default
    def _name_in_words(self) -> str:
        return self.name.replace("_", " ")


@frozen
class Column:
    """How a field is stored.

    Attributes:
        name: Of the column.
        field: Of the record.
        tables: Those that have it.
        sql: Its type and constraints.
        missing: What a record without an outcome has, as SQL; empty where that is NULL.
        bind: Makes the value that is bound.
        totals: What it adds to the totals.
    """

    name: str
    field: str
    tables: tuple[Table, ...]
    sql: str
    missing: str
    bind: Callable[[object], object] | None
    totals: tuple[Total, ...]


def column(
    tables: tuple[Table, ...],
    sql: str,
    *totals: Total,
    name: str | None = None,
    missing: str = "",
    bind: Callable[..., object] | None = None,
) -> Mapping[str, object]:
    """The metadata of a field: how it is stored, and what it adds to the totals.

    Args:
        tables: `INTENTS`, `OUTCOMES` or `BOTH`.
        sql: Type and constraints of the column.
        totals: Sums over all records.
        name: Of the column; the field's by default.
        missing: As `Column.missing`.
        bind: As `Column.bind`.
    """
    return {"name": name, "tables": tables, "sql": sql, "missing": missing, "bind": bind, "totals": totals}


def summed(name: str, unit: Literal["count", "usd"] = "count", *, label: str | None = None) -> Total:
    """The sum of the known values of the field `name`."""
    return Total(name, attrgetter(name), unit, label=label or name.replace("_", " "))


def _usd_at_risk(record: "JournalRecord") -> float:
    """USD that attempts without a bill may have cost: all that are possibly billed, and an answer without a price."""
    if not record.reserved:
        return 0
    attempts = record.possibly_billed
    if record.cost is None and record.state is _ANSWERED and record.copy_of is None:
        attempts += 1 + record.corrections
    return record.reserved * attempts


def _tokens_at_risk(record: "JournalRecord") -> int:
    """The same in tokens."""
    if not record.reserved_tokens:
        return 0
    attempts = record.possibly_billed
    unknown = record.input_tokens is None and record.output_tokens is None
    if unknown and record.state is _ANSWERED and record.copy_of is None:
        attempts += 1 + record.corrections
    return record.reserved_tokens * attempts


def _is_open(record: "JournalRecord") -> bool:
    """Whether an attempt is in flight, or was at the end of its session."""
    return record.possibly_billed > 0 and record.state is _IN_FLIGHT and record.index >= 0


def _ended_attempts(record: "JournalRecord") -> int:
    """Possibly billed attempts, without the one that is in flight."""
    attempts = record.possibly_billed
    # The terms of `_is_open`, without its call: this runs three times for each prompt, and mostly there are none.
    if attempts > 0 and record.state is _IN_FLIGHT and record.index >= 0:
        return attempts - 1
    return attempts


@frozen
class JournalRecord:
    """What the journal has of one entry.

    Attributes:
        index: Its position among the entries of the input; below 0 where the input has it no more.
        line: Its line number, from 1.
        line_digest: 64 signed bits of the digest of the line.
        request_digest: Of what is sent, for deduplication.
        custom_id: The caller's own name of it.
        reserved: The most that one attempt can cost, in USD; None if unknown.
        reserved_tokens: The most tokens that one attempt can use; None if unknown.
        sent_at: When the last attempt was about to be sent, in Unix seconds; None where no attempt was made.
        possibly_billed: Possibly billed attempts over all sessions, including the one in flight.
        state: In flight, answered or failed.
        completed_at: When the outcome came, in Unix seconds.
        attempts: How often it was sent in its last session.
        rate_limited: How often these were answered 429, which is not billed.
        corrections: Corrective turns that were answered, over all sessions.
        cost: USD by list price of all turns over all sessions; None if unknown, or nothing was answered. A duplicate
            costs 0.
        input_tokens: Tokens of the prompts of all turns; likewise.
        output_tokens: Tokens generated in all turns; likewise.
        elapsed: Seconds from queueing to the end.
        latency: Seconds that the last attempt took; None where nothing was sent.
        copy_of: Index of an identical request whose answer this is, too. A duplicate of a failure has its own text.
        kept: Fields of the line or row that go beside the answer, as a JSON object; None where none do.
        sample: Which of several samples of its prompt it is, from 1; None where each prompt is asked once.
        result: The answer or the failure, as a JSON object; b"" without one.
    """

    index: int = field(metadata=column(BOTH, "INTEGER PRIMARY KEY", name="entry"))
    line: int = field(metadata=column(INTENTS, "INTEGER NOT NULL"))
    line_digest: int = field(metadata=column(INTENTS, "INTEGER NOT NULL"))
    request_digest: bytes = field(metadata=column(INTENTS, "BLOB NOT NULL"))
    custom_id: str | None = field(default=None, metadata=column(INTENTS, "TEXT", bind=bind_text))
    reserved: float | None = field(
        default=None,
        converter=bind_number,
        metadata=column(INTENTS, "REAL", Total("at_risk", _usd_at_risk, "usd")),
    )
    reserved_tokens: int | None = field(
        default=None,
        converter=_bind_count,
        metadata=column(INTENTS, "INTEGER", Total("at_risk_tokens", _tokens_at_risk)),
    )
    sent_at: float | None = field(default=None, metadata=column(INTENTS, "REAL"))
    possibly_billed: int = field(
        default=0,
        metadata=column(
            BOTH,
            "INTEGER NOT NULL",
            Total("possibly_billed", _ended_attempts),
        ),
    )
    state: RecordState = field(
        default=RecordState.IN_FLIGHT,
        metadata=column(
            OUTCOMES,
            "INTEGER NOT NULL",
            Total("answered", lambda record: record.index >= 0, state=RecordState.ANSWERED),
            Total("failed", lambda record: record.index >= 0, state=RecordState.FAILED),
            Total("in_flight", _is_open, state=RecordState.IN_FLIGHT),
            missing="1",
            bind=int,
        ),
    )
    completed_at: float | None = field(default=None, metadata=column(OUTCOMES, "REAL NOT NULL"))
    attempts: int = field(default=0, metadata=column(OUTCOMES, "INTEGER NOT NULL", missing="0"))
    rate_limited: int = field(
        default=0,
        metadata=column(OUTCOMES, "INTEGER NOT NULL", summed("rate_limited", label="rate-limited"), missing="0"),
    )
    corrections: int = field(
        default=0, metadata=column(BOTH, "INTEGER NOT NULL", summed("corrections", label="corrective turns"))
    )
    cost: float | None = field(
        default=None,
        converter=bind_number,
        metadata=column(
            BOTH,
            "REAL",
            summed("cost", "usd"),
            Total(
                "unpriced",
                lambda record: record.cost is None and record.copy_of is None,
                state=RecordState.ANSWERED,
            ),
        ),
    )
    input_tokens: int | None = field(
        default=None, converter=_bind_count, metadata=column(BOTH, "INTEGER", summed("input_tokens"))
    )
    output_tokens: int | None = field(
        default=None, converter=_bind_count, metadata=column(BOTH, "INTEGER", summed("output_tokens"))
    )
    elapsed: float | None = field(default=None, converter=bind_number, metadata=column(OUTCOMES, "REAL"))
    latency: float | None = field(default=None, converter=bind_number, metadata=column(OUTCOMES, "REAL"))
    copy_of: int | None = field(
        default=None,
        metadata=column(OUTCOMES, "INTEGER", Total("deduplicated", lambda record: record.copy_of is not None)),
    )
    kept: bytes | None = field(default=None, metadata=column(INTENTS, "BLOB"))
    sample: int | None = field(default=None, metadata=column(INTENTS, "INTEGER"))
    # Last, so that nothing else lies behind a long answer.
    result: bytes = field(default=b"", metadata=column(OUTCOMES, "BLOB NOT NULL", missing="x''"))

    @property
    def completed(self) -> bool:
        """Whether it has an outcome."""
        return self.state is not _IN_FLIGHT

    @property
    def is_paid(self) -> bool:
        """Whether an answer was billed, as far as it said, be it one that does not fit."""
        return bool(self.cost or self.input_tokens or self.output_tokens)

    def to_dict(self) -> dict[str, JSON]:
        """The record as JSON: digests as hexadecimal text, the result as the object that it holds."""
        values: dict[str, JSON] = {name: getattr(self, name) for name in _FIELDS}
        result = parse_json(self.result) if self.result else None
        return values | {
            "request_digest": self.request_digest.hex(),
            "state": self.state.name.lower(),
            "kept": parse_json(self.kept) if self.kept is not None else None,
            "result": result,
        }


def after_step(step: Step, before: JournalRecord | None, record: JournalRecord | None) -> JournalRecord | None:
    """The record of an entry after a step.

    Args:
        step: What happens.
        before: The record that the journal has of it; None without one.
        record: The one that comes with the step; None for `Step.RETRACT`.

    Raises:
        UnstorableRowError: If the entry has an answer, and another attempt is announced.
    """
    if step is _INTENT:
        if before is not None and before.state is _ANSWERED:
            raise UnstorableRowError(f"Entry {before.index} has an answer already, and is not sent again.")
        return record
    if step is _OUTCOME:
        return before if before is not None and before.state is _ANSWERED else record
    if before is None or before.completed:
        return before
    # Where earlier attempts may have been billed, the last of these takes the place of the one that was not sent.
    kept = before.possibly_billed > 1 or before.is_paid
    return evolve(before, possibly_billed=max(0, before.possibly_billed - 1)) if kept else None


def _columns() -> tuple[Column, ...]:
    return tuple(
        Column(
            name=each.metadata["name"] or each.name,
            field=each.name,
            **{key: each.metadata[key] for key in ("tables", "sql", "missing", "bind", "totals")},
        )
        for each in fields(JournalRecord)
    )


COLUMNS = _columns()
"""How the fields of a record are stored, in their order."""
TOTALS: Mapping[str, Total] = {total.name: total for column in COLUMNS for total in column.totals}
"""The sums over all records, by their names."""

_FIELDS = tuple(column.field for column in COLUMNS)
_CUSTOM_ID, _STATE = _FIELDS.index("custom_id"), _FIELDS.index("state")


def _with_every_total(cls: type, declared: "list[Attribute[object]]") -> "list[Attribute[object]]":
    """The fields of `RunCounts`: those that type checkers know, and the totals that a record has beyond them."""
    names = {each.name for each in declared}
    beyond = {
        name: field(default=0.0 if total.unit == "usd" else 0) for name, total in TOTALS.items() if name not in names
    }
    return [*declared, *fields(make_class("_Beyond", beyond))]


@frozen(field_transformer=_with_every_total)
class RunCounts:
    """What a journal has, all sessions together: the totals of its records.

    Attributes:
        answered: Entries with an answer.
        failed: Entries that failed for good.
        in_flight: Entries in flight; after a crash, those that may have been billed.
        deduplicated: Entries with the answer to an identical request.
        possibly_billed: Attempts that ended without an outcome and may have been billed, those in flight left out.
        rate_limited: How often a request was answered 429.
        corrections: Corrective turns that were answered.
        cost: USD by list price, as far as known.
        unpriced: Answers whose cost is unknown.
        input_tokens: As far as known.
        output_tokens: As far as known.
        at_risk: USD that may be spent beyond `cost`: the reserved cost of every attempt without an outcome, those
            in flight included, and of every answer whose cost is unknown. What has no bound adds nothing here:
            `usd_at_risk` tells it from nothing at risk.
        at_risk_tokens: The same in tokens.
    """

    answered: int = 0
    failed: int = 0
    in_flight: int = 0
    deduplicated: int = 0
    possibly_billed: int = 0
    rate_limited: int = 0
    corrections: int = 0
    cost: float = 0.0
    unpriced: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    at_risk: float = 0.0
    at_risk_tokens: int = 0

    @property
    def completed(self) -> int:
        """Entries with an outcome."""
        return self.answered + self.failed

    @property
    def holds_value(self) -> bool:
        """Whether anything was answered, spent or put at risk, so that the journal must not be replaced."""
        return bool(self.answered or self.in_flight or self.possibly_billed or self.cost or self.at_risk)

    def replacing(self, before: JournalRecord | None, after: JournalRecord | None) -> "RunCounts":
        """The totals when `after` takes the place of `before`; None stands for no record.

        Example:
            >>> RunCounts().replacing(None, JournalRecord(0, 1, 7, b"digest", possibly_billed=1)).in_flight
            1
        """
        return self.replacing_all([(before, after)])

    def replacing_all(self, changes: "Iterable[tuple[JournalRecord | None, JournalRecord | None]]") -> "RunCounts":
        """`replacing`, for each pair of `changes`."""
        added: dict[RecordState, list[JournalRecord]] = defaultdict(list)
        removed: dict[RecordState, list[JournalRecord]] = defaultdict(list)
        for before, after in changes:
            if after is not None:
                added[after.state].append(after)
            if before is not None:
                removed[before.state].append(before)
        sums = list(_all_counts(self))
        # Total by total, as loops over records are slower in Python than within `sum`.
        for sign, records in ((1, added), (-1, removed)):
            for state, of_state in records.items():
                for place, share in _SHARES[state]:
                    sums[place] += sign * sum(filter(None, map(share, of_state)))
        for place in _USD_PLACES:
            sums[place] = round(sums[place], _USD_DIGITS)
        return RunCounts(*sums)  # type: ignore[arg-type]  # those of whole numbers are whole

    @property
    def usd_at_risk(self) -> float | None:
        """`at_risk`; None if something may be owed and no ``max_tokens`` and list price say how much at most.

        Example:
            >>> RunCounts(possibly_billed=20).usd_at_risk is None
            True
        """
        may_be_owed = self.in_flight or self.possibly_billed or self.unpriced
        return None if may_be_owed and not self.at_risk else self.at_risk

    def to_dict(self) -> dict[str, JSON]:
        """Every total by its name; ``at_risk`` is `usd_at_risk`, which may be None."""
        return asdict(self) | {"at_risk": self.usd_at_risk}


COUNTS = tuple(each.name for each in fields(RunCounts))
"""The names of the totals, in the order of the fields of `RunCounts`."""
_all_counts: Callable[[RunCounts], tuple[float, ...]] = attrgetter(*COUNTS)


def _shares(state: RecordState) -> tuple[tuple[int, Callable[[JournalRecord], float | None]], ...]:
    """The totals to which a record in `state` can add anything, by their places in `COUNTS`."""
    return tuple(
        (COUNTS.index(total.name), total.of)
        for column in COLUMNS
        for total in column.totals
        if total.state is state
        or (total.state is None and (state is not RecordState.IN_FLIGHT or column.tables != OUTCOMES))
    )


_SHARES = {state: _shares(state) for state in RecordState}
_USD_PLACES = tuple(place for place, name in enumerate(COUNTS) if TOTALS[name].unit == "usd")


class RunningCounts:
    """Totals that change often and are read seldom: changes are folded when they are read.

    Args:
        counts: To begin with.
    """

    __slots__ = ("_changes", "_counts")

    def __init__(self, counts: RunCounts | None = None) -> None:
        self._counts = counts or RunCounts()
        self._changes: list[tuple[JournalRecord | None, JournalRecord | None]] = []

    def replace(self, before: JournalRecord | None, after: JournalRecord | None) -> None:
        """Has `after` take the place of `before`, as in `RunCounts.replacing`."""
        self._changes.append((before, after))
        if len(self._changes) >= _MAX_UNFOLDED:
            self._fold()

    @property
    def counts(self) -> RunCounts:
        """The totals now."""
        if self._changes:
            self._fold()
        return self._counts

    def _fold(self) -> None:
        self._counts = self._counts.replacing_all(self._changes)
        self._changes.clear()


# Statements. Each is built once, from COLUMNS.


def _of(table: Table) -> list[Column]:
    return [column for column in COLUMNS if table in column.tables]


def table_names(table: Table) -> tuple[str, ...]:
    """The columns of a table, in their order."""
    return tuple(column.name for column in _of(table))


def create_tables() -> str:
    """The statements that create the tables of records and of totals."""
    made = [
        f"CREATE TABLE {table} ({', '.join(f'{column.name} {column.sql}' for column in _of(table))});" for table in BOTH
    ]
    totals = ", ".join(
        f"{name} {'REAL' if TOTALS[name].unit == 'usd' else 'INTEGER'} NOT NULL DEFAULT 0" for name in COUNTS
    )
    made += [
        "CREATE INDEX failures ON outcomes (entry) WHERE state = 3;",
        "CREATE INDEX copies ON outcomes (copy_of) WHERE copy_of IS NOT NULL;",
        # writes: steps ever written, which tells a journal from an older state of itself.
        f"CREATE TABLE totals (id INTEGER PRIMARY KEY CHECK (id = 1), {totals}, writes INTEGER NOT NULL DEFAULT 0);",
        "INSERT INTO totals (id) VALUES (1);",
    ]
    return "\n".join(made)


def insert_head(table: Table) -> str:
    """The beginning of a statement that inserts rows; their values follow."""
    return f"INSERT INTO {table} ({', '.join(table_names(table))}) VALUES "  # noqa: S608


def insert_tail(table: Table) -> str:
    """Its end: an entry that is there already gets the new values."""
    sets = ", ".join(f"{name} = excluded.{name}" for name in table_names(table) if name != "entry")
    return f" ON CONFLICT (entry) DO UPDATE SET {sets}"


def _binder(table: Table) -> Callable[[JournalRecord], Sequence[object]]:
    values = attrgetter(*(column.field for column in _of(table)))
    binds = [(place, column.bind) for place, column in enumerate(_of(table)) if column.bind is not None]

    def bound(record: JournalRecord) -> Sequence[object]:
        found = list(values(record))
        for place, bind in binds:
            found[place] = bind(found[place])
        return found

    return bound


intent_values: Callable[[JournalRecord], Sequence[object]] = _binder("intents")
"""The values of the row of ``intents`` for a record."""
_outcome_values = _binder("outcomes")


def outcome_values(record: JournalRecord) -> Sequence[object]:
    """The values of the row of ``outcomes`` for a record. The answer of a duplicate stays with the original."""
    found = _outcome_values(record)
    return found if record.copy_of is None else [*found[:-1], b""]


same_intent_fields: Callable[[JournalRecord], tuple[object, ...]] = attrgetter(
    *(column.field for column in COLUMNS if column.tables == INTENTS)
)
"""The values that are in ``intents`` alone."""


def select_records(condition: str, *, results: bool = True) -> str:
    """The statement that selects records; ``i`` stands for intents, ``o`` for outcomes, if there are any.

    Args:
        condition: What follows the tables.
        results: Whether their results are read; else they are b"".
    """
    return f"SELECT {', '.join(_selected(column, results) for column in COLUMNS)} {_JOINED} {condition}"


_JOINED = "FROM intents i LEFT JOIN outcomes o ON o.entry = i.entry"
_RESULT = """CASE WHEN o.copy_of IS NULL THEN coalesce(o.result, x'') ELSE coalesce(
    (SELECT original.result FROM outcomes original WHERE original.entry = o.copy_of AND original.state = 2), x'') END"""


def _selected(column: Column, results: bool) -> str:
    if column.field == "result":
        return _RESULT if results else "x''"
    if column.tables == INTENTS or column.field == "index":
        return f"i.{column.name}"
    if column.tables == BOTH:
        return f"CASE WHEN o.entry IS NULL THEN i.{column.name} ELSE o.{column.name} END"
    return f"coalesce(o.{column.name}, {column.missing})" if column.missing else f"o.{column.name}"


def records_from(found: Iterable[Sequence[Any]]) -> list[JournalRecord]:
    """The records that a statement of `select_records` found."""
    return [_read_record(*row) for row in found]


def _read_record(*values: Any) -> JournalRecord:
    before, custom_id, between = values[:_CUSTOM_ID], values[_CUSTOM_ID], values[_CUSTOM_ID + 1 : _STATE]
    state, behind = _STATES[values[_STATE]], values[_STATE + 1 :]
    return JournalRecord(*before, read_text(custom_id), *between, state, *behind)  # type: ignore[call-arg]
