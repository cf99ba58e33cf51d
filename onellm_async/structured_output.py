"""Answers as values of a type: the schema goes into the request, the reply is checked, a misfit is corrected once.

A schema is made of a class by msgspec (attrs class, dataclass, TypedDict, ``msgspec.Struct``, ``list[…]`` of these), by
the class itself (a pydantic model), or given as JSON Schema. A reply is accepted only if it fits the schema and the
class takes it. All faults are listed, as each corrective turn is a paid request.

The published backend forwards no schema to any provider, so the schema is always part of the instruction.
"""

import json
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Generic, TypeVar, cast

from attrs import evolve, field, frozen

from onellm_async import catalog
from onellm_async.chat import JSON, ChatRequest, ChatResponse, Message, Usage
from onellm_async.errors import ConfigurationError, OneLLMError, StructureError
from onellm_async.formatting import pluralize
from onellm_async.validation import Checks, truncated_repr

T = TypeVar("T")

MAX_CORRECTIONS = 5
"""Corrective turns that may be asked for. A model that misses a schema five times does not find it."""
_MAX_FAULTS = 20
"""Faults that one corrective turn names."""
_MAX_FAULT = 300
"""Characters of one fault: jsonschema repeats the value that does not fit."""
MAX_CORRECTION = 2048
"""Bytes of the text of a corrective turn, so that its price has a bound."""
_INSTRUCTION = (
    "Answer with one JSON value that conforms to the following JSON Schema, and with nothing else: "
    "no explanation, no Markdown.\n{schema}"
)
_CORRECTION = "This does not conform to the JSON Schema:\n{faults}\nAnswer with the complete corrected JSON value."

_check = Checks(ConfigurationError)


class UnfitReplyError(ValueError):
    """A text that is no value of the schema.

    Attributes:
        faults: All of them, each with the path of the value that does not fit.
    """

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults: tuple[str, ...] = tuple(faults)


@frozen
class Shape(Generic[T]):
    """What a reply has to be.

    Attributes:
        schema: As JSON Schema.
        parse: Makes the value of a JSON text, or raises `UnfitReplyError`.
        instruction: What the model is told, with the schema.
    """

    schema: Mapping[str, JSON]
    parse: Callable[[str], T]
    instruction: str = field(init=False, repr=False)

    @instruction.default
    def _with_schema(self) -> str:
        return _INSTRUCTION.format(schema=json.dumps(self.schema, ensure_ascii=False, separators=(",", ":")))

    def asked_in(self, request: ChatRequest) -> ChatRequest:
        """Returns the request with the schema in its instruction, and in JSON mode where the provider has one.

        Args:
            request: What to ask. Its own ``response_format`` stays.
        """
        if request.response_format is None and self.schema.get("type") == "object":
            entry = catalog.lookup(request.model)
            if entry is not None and entry.provider == "openai":
                request = evolve(request, response_format={"type": "json_object"})
        first = request.messages[0]
        if request.system is None and first.role == "system":
            joined = Message.system(f"{first.content}\n\n{self.instruction}")
            return evolve(request, messages=(joined, *request.messages[1:]))
        before = "" if request.system is None else f"{request.system}\n\n"
        return evolve(request, system=f"{before}{self.instruction}")


def schema_for(response_model: type[T] | Mapping[str, JSON]) -> Mapping[str, JSON]:
    """Returns the JSON Schema of a type, with its root in place and not behind a reference.

    Args:
        response_model: A class, or a JSON Schema, which is returned as it is.

    Raises:
        ConfigurationError: If there is no schema for it, or the extra ``structured`` is not installed.

    Example:
        >>> from typing import TypedDict
        >>> class City(TypedDict):
        ...     name: str
        ...     people: int
        >>> schema_for(City)["required"]
        ['name', 'people']
    """
    return shape_of(response_model).schema


def structure(text: str, response_model: type[T] | Mapping[str, JSON]) -> T:
    """Returns the value in a reply. A code fence and words around the JSON value are left out.

    Args:
        text: What the model wrote.
        response_model: As for `schema_for`.

    Raises:
        UnfitReplyError: If it holds no JSON value, or one that does not fit; all faults are listed.
        ConfigurationError: As `schema_for`.

    Example:
        >>> structure('Here you are: {"name": "Oslo", "people": 700000}', dict)["name"]
        'Oslo'
    """
    value: T = shape_of(response_model).parse(json_in(text))
    return value


def json_in(text: str) -> str:
    r"""Returns the JSON value in what a model wrote: in a code fence, or with words before and after it.

    Raises:
        UnfitReplyError: If there is none, or more than one.

    Example:
        >>> json_in('Sure! ```json\n[1, 2]\n``` Anything else?')
        '[1, 2]'
    """
    found = text.strip()
    if "```" in found:
        fenced = found.split("```")[1::2]
        if len(fenced) == 1:
            found = fenced[0].removeprefix("json").removeprefix("JSON").strip()
    try:
        _value_of(found)
    except (ValueError, RecursionError):
        return _only_value(found)
    return found


def _refuse_constant(name: str) -> JSON:
    raise ValueError(f"{name} is no JSON number")


def _value_of(text: str) -> JSON:
    """The value of a JSON text, without the NaN and Infinity that Python would take."""
    return json.loads(text, parse_constant=_refuse_constant)


def _only_value(text: str) -> str:
    starts = [place for place in (text.find("{"), text.find("[")) if place >= 0]
    if not starts:
        raise UnfitReplyError(["There is no JSON value in it."])
    try:
        _, end = json.JSONDecoder(parse_constant=_refuse_constant).raw_decode(text, min(starts))
    except (ValueError, RecursionError) as error:
        raise UnfitReplyError([f"The JSON value cannot be read: {error}."]) from None
    if set(text[end:]) & set("{["):
        raise UnfitReplyError(["There is more than one JSON value in it."])
    return text[min(starts) : end]


async def answer_as(
    send: Callable[[ChatRequest], Awaitable[ChatResponse]],
    request: ChatRequest,
    response_model: type[T] | Mapping[str, JSON],
    corrections: int,
) -> ChatResponse[T]:
    """Sends a request, with its schema, until its answer fits; see `fitting_answer`.

    Args:
        send: Sends a request; each call is paid for.
        request: What to ask.
        response_model: What the answer has to be; as for `schema_for`.
        corrections: How many corrective turns may follow.
    """
    shape = shape_of(response_model)
    return await fitting_answer(send, shape.asked_in(request), shape, corrections)


async def fitting_answer(
    send: Callable[[ChatRequest], Awaitable[ChatResponse]], asked: ChatRequest, shape: Shape[T], corrections: int
) -> ChatResponse[T]:
    """Sends a request until its answer fits, at most ``1 + corrections`` times.

    Args:
        send: Sends a request; each call is paid for.
        asked: What to ask, with the schema in its instruction.
        shape: What the answer has to be.
        corrections: How many corrective turns may follow.

    Returns:
        The last answer, with the value, and with attempts, tokens and cost of all turns.

    Raises:
        StructureError: If the answer does not fit after all turns, is cut off, or a corrective turn fails. It has the
            answer, which is paid for.
        OneLLMError: As `send` for the first turn.
    """
    total = await send(asked)
    reply: ChatResponse = total
    for correction in range(corrections + 1):
        try:
            parsed: Any = shape.parse(json_in(reply.content))
        except UnfitReplyError as misfit:
            if reply.finish_kind == "length":
                raise _error(total, misfit.faults, "It is cut off", "Raise max_tokens.") from None
            if reply.finish_kind == "content_filter":
                raise _error(total, misfit.faults, "It was filtered") from None
            if correction == corrections:
                raise _error(total, misfit.faults, "It does not fit") from None
            turns = (Message.assistant(reply.content), Message.user(_correction_of(misfit.faults)))
            asked = evolve(asked, messages=(*asked.messages, *turns))
            try:
                reply = await send(asked)
            except OneLLMError as error:
                why = f"Its correction failed: {error.message}"
                raise _error(total, misfit.faults, why, error.advice, error) from error
            total = _sum(total, reply)
        else:
            return cast("ChatResponse[T]", evolve(total, parsed=parsed))
    raise AssertionError("unreachable")


def _correction_of(faults: Sequence[str]) -> str:
    """The text of a corrective turn: all faults, or as many as fit."""
    room, lines = MAX_CORRECTION - len(_CORRECTION), list[str]()
    for fault in faults:
        lines.append(f"- {fault}")
        room -= len(lines[-1].encode(errors="surrogatepass")) + 1
        if room < 0:
            lines.pop()
            break
    return _CORRECTION.format(faults="\n".join(lines))


def check_corrections(corrections: object) -> None:
    """Refuses a number of corrective turns that is none, or too many.

    Raises:
        ConfigurationError: Then.
    """
    if isinstance(corrections, bool) or not isinstance(corrections, int) or not 0 <= corrections <= MAX_CORRECTIONS:
        raise _check.error("corrections", corrections, f"it must be an integer from 0 to {MAX_CORRECTIONS}")


def schema_in(request: ChatRequest) -> Mapping[str, JSON] | None:
    """Returns the schema that `Shape.asked_in` put into a request; None where there is none.

    Args:
        request: As a service sees it.
    """
    texts = [message.content for message in request.messages if message.role == "system"]
    before, _, after = _INSTRUCTION.partition("{schema}")
    for text in texts if request.system is None else [request.system, *texts]:
        if before in text:
            try:
                found, _ = json.JSONDecoder().raw_decode(text.partition(before)[2].removesuffix(after))
            except (ValueError, RecursionError):
                continue
            if isinstance(found, Mapping):
                return found
    return None


def _sum(before: ChatResponse, reply: ChatResponse) -> ChatResponse:
    return evolve(
        reply,
        usage=_sum_usage(before.usage, reply.usage),
        cost=None if before.cost is None or reply.cost is None else before.cost + reply.cost,
        attempts=before.attempts + reply.attempts,
        rate_limited=before.rate_limited + reply.rate_limited,
        possibly_billed=before.possibly_billed + reply.possibly_billed,
        corrections=before.corrections + 1,
    )


def _sum_usage(before: Usage | None, after: Usage | None) -> Usage | None:
    if before is None or after is None:
        return None

    def add(one: int | None, other: int | None) -> int | None:
        return None if one is None or other is None else one + other

    return Usage(
        add(before.input_tokens, after.input_tokens),
        add(before.output_tokens, after.output_tokens),
        add(before.total_tokens, after.total_tokens),
    )


def _error(
    response: ChatResponse, faults: Sequence[str], why: str, advice: str = "", correction: OneLLMError | None = None
) -> StructureError:
    turns = "" if not response.corrections else f" after {pluralize(response.corrections, 'corrective turn')}"
    message = f"The answer does not conform to the schema{turns}. {why}: {'; '.join(faults)}"
    return StructureError(
        message, response=response, problems=tuple(faults), advice=advice, correction_error=correction
    )


# What a reply has to be.


def shape_of(response_model: Any) -> Shape[Any]:
    """Returns what a reply has to be.

    Args:
        response_model: As for `schema_for`.

    Raises:
        ConfigurationError: As `schema_for`.
    """
    if isinstance(response_model, Mapping):
        return Shape(response_model, _complaining(_parser_by_schema(response_model)))
    try:
        return _shape_of_class(response_model)
    except TypeError as error:  # not hashable, or a type that has no schema
        raise ConfigurationError(
            f"response_model is {truncated_repr(response_model)}, which has no JSON Schema: {error}",
            advice="Use an attrs class, a dataclass, a TypedDict, a msgspec.Struct, a pydantic model or a JSON Schema.",
        ) from None


@lru_cache(64)
def _shape_of_class(cls: Any) -> Shape[Any]:
    if hasattr(cls, "model_json_schema") and hasattr(cls, "model_validate_json"):
        return Shape(cls.model_json_schema(), _complaining(lambda text: _by_pydantic(cls, text)))
    msgspec = _installed("msgspec")
    schema = _with_root_in_place(msgspec.json.schema(cls))
    parse_by_schema = _parser_by_schema(schema)
    decoder = msgspec.json.Decoder(cls)

    def parse(text: str) -> Any:
        parse_by_schema(text)
        try:
            return decoder.decode(text)
        except msgspec.DecodeError as error:  # of a validator of the class, or half a character
            raise UnfitReplyError([str(error)]) from None

    return Shape(schema, _complaining(parse))


def _complaining(parse: Callable[[str], T]) -> Callable[[str], T]:
    """`parse`, with whatever the code of a class raises as a fault of the answer, which is paid for."""

    def complaining(text: str) -> T:
        try:
            return parse(text)
        except (UnfitReplyError, ConfigurationError):
            raise
        except Exception as error:  # RecursionError, too
            raise UnfitReplyError([f"{type(error).__name__}: {error}"[:_MAX_FAULT]]) from error

    return complaining


def _parser_by_schema(schema: Mapping[str, JSON]) -> Callable[[str], JSON]:
    jsonschema = _installed("jsonschema")
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        kind.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise ConfigurationError(f"response_model is no JSON Schema: {error.json_path}: {error.message}") from None
    # The registry has the published metaschemas and fetches nothing.
    registry, referencing = _installed("jsonschema_specifications").REGISTRY, _installed("referencing.jsonschema")
    root = referencing.jsonschema.specification_with(kind.META_SCHEMA["$schema"]).create_resource(schema)
    resolver = registry.resolver_with_root(root)
    for reference in _references(schema):
        try:
            resolver.lookup(reference)
        except referencing.exceptions.Unresolvable:
            raise ConfigurationError(
                f"response_model refers to {truncated_repr(reference)}, which is not in it.",
                advice="Write what it refers to into the $defs of the schema; nothing is fetched.",
            ) from None
    validator = kind(schema, registry=registry)

    def parse(text: str) -> JSON:
        value = _value_of(text)
        found = sorted(validator.iter_errors(value), key=lambda error: error.json_path)
        if found:
            raise UnfitReplyError([f"{each.json_path}: {each.message}"[:_MAX_FAULT] for each in found[:_MAX_FAULTS]])
        return value

    return parse


_DATA = frozenset({"const", "default", "enum", "examples"})
"""Keywords of a schema whose value is data and no schema."""


def _references(schema: JSON) -> Iterator[str]:
    """The references in a schema; those below an ``$id`` of their own start from there, and are left out."""
    if isinstance(schema, list):
        for each in schema:
            yield from _references(each)
    elif isinstance(schema, Mapping):
        if isinstance(schema.get("$ref"), str):
            yield schema["$ref"]
        for name, inner in schema.items():
            if name not in _DATA and not (isinstance(inner, Mapping) and "$id" in inner):
                yield from _references(inner)


def _by_pydantic(cls: Any, text: str) -> Any:
    try:
        return cls.model_validate_json(text)
    except ValueError as error:
        listed = getattr(error, "errors", None)
        if listed is None:
            raise
        places = [(".".join(map(str, fault["loc"])), fault["msg"]) for fault in listed()[:_MAX_FAULTS]]
        raise UnfitReplyError([f"$.{place}: {text}"[:_MAX_FAULT] for place, text in places]) from None


def _with_root_in_place(schema: Mapping[str, JSON]) -> Mapping[str, JSON]:
    """A root that is a reference is replaced by what it refers to; a recursive type keeps its definition, too."""
    name = str(schema.get("$ref", "")).removeprefix("#/$defs/")
    if not name:
        return schema
    definitions = dict(schema["$defs"])
    root = definitions[name]
    if f'"#/$defs/{name}"' not in json.dumps(definitions):
        del definitions[name]
    return {**root, "$defs": definitions} if definitions else root


def _installed(name: str) -> Any:
    try:
        return __import__(name)
    except ModuleNotFoundError:
        raise ConfigurationError(
            f"response_model needs {name}, which is not installed.",
            advice="pip install 'onellm-async[structured]'",
        ) from None
