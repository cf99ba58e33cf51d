"""Answers as values of a type: the schema goes into the request, the reply is checked, a misfit is corrected once.

A schema is made of a class by msgspec (attrs class, dataclass, TypedDict, ``msgspec.Struct``, ``list[…]`` of these), by
the class itself (a pydantic model), or given as JSON Schema. A reply is accepted only if it fits the schema and the
class takes it. All faults are listed, as each corrective turn is a paid request.

The published backend forwards no schema to any provider, so the schema is always part of the instruction.
"""

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Generic, NoReturn, TypeVar, cast

from attrs import evolve, frozen

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
class _Shape(Generic[T]):
    """What a reply has to be.

    Attributes:
        schema: As JSON Schema.
        parse: Makes the value of a JSON text, or raises `UnfitReplyError`.
    """

    schema: Mapping[str, JSON]
    parse: Callable[[str], T]


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
    return _shape_of(response_model).schema


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
    value: T = _shape_of(response_model).parse(json_in(text))
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
        json.loads(found)
    except (ValueError, RecursionError):
        return _only_value(found)
    return found


def _only_value(text: str) -> str:
    starts = [place for place in (text.find("{"), text.find("[")) if place >= 0]
    if not starts:
        raise UnfitReplyError(["There is no JSON value in it."])
    try:
        _, end = json.JSONDecoder().raw_decode(text, min(starts))
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
    """Sends a request until its answer fits, at most ``1 + corrections`` times.

    Args:
        send: Sends a request; each call is paid for.
        request: What to ask.
        response_model: What the answer has to be; as for `schema_for`.
        corrections: How many corrective turns may follow.

    Returns:
        The last answer, with the value, and with attempts, tokens and cost of all turns.

    Raises:
        StructureError: If the answer does not fit after all turns, is cut off, or a corrective turn fails. It has the
            answer, which is paid for.
        OneLLMError: As `send` for the first turn.
    """
    shape = _shape_of(response_model)
    asked = request_with_schema(request, shape.schema)
    total = await send(asked)
    reply: ChatResponse = total
    for correction in range(corrections + 1):
        try:
            return cast("ChatResponse[T]", evolve(total, parsed=shape.parse(json_in(reply.content))))
        except UnfitReplyError as misfit:
            if reply.finish_kind == "length":
                _give_up(total, misfit.faults, "It is cut off", "Raise max_tokens.")
            if reply.finish_kind == "content_filter":
                _give_up(total, misfit.faults, "It was filtered", "")
            if correction == corrections:
                _give_up(total, misfit.faults, "It does not fit", "")
            faults = "\n".join(f"- {fault}" for fault in misfit.faults)
            turns = (Message.assistant(reply.content), Message.user(_CORRECTION.format(faults=faults)))
            asked = evolve(asked, messages=(*asked.messages, *turns))
            try:
                reply = await send(asked)
            except OneLLMError as error:
                raise _error(total, misfit.faults, f"Its correction failed: {error.message}", error.advice) from error
            total = _sum(total, reply)
    raise AssertionError("unreachable")


def check_corrections(corrections: object) -> None:
    """Refuses a number of corrective turns that is none, or too many.

    Raises:
        ConfigurationError: Then.
    """
    if isinstance(corrections, bool) or not isinstance(corrections, int) or not 0 <= corrections <= MAX_CORRECTIONS:
        raise _check.error("corrections", corrections, f"it must be an integer from 0 to {MAX_CORRECTIONS}")


def request_with_schema(request: ChatRequest, schema: Mapping[str, JSON]) -> ChatRequest:
    """Returns the request with the schema in its instruction, and in JSON mode where the provider has one.

    Args:
        request: What to ask. Its own ``response_format`` stays.
        schema: What the answer has to conform to.
    """
    instruction = _INSTRUCTION.format(schema=json.dumps(schema, ensure_ascii=False, separators=(",", ":")))
    entry = catalog.lookup(request.model)
    if request.response_format is None and schema.get("type") == "object" and entry and entry.provider == "openai":
        request = evolve(request, response_format={"type": "json_object"})
    first = request.messages[0]
    if request.system is None and first.role == "system":
        joined = Message.system(f"{first.content}\n\n{instruction}")
        return evolve(request, messages=(joined, *request.messages[1:]))
    return evolve(request, system=instruction if request.system is None else f"{request.system}\n\n{instruction}")


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


def _error(response: ChatResponse, faults: Sequence[str], why: str, advice: str) -> StructureError:
    turns = "" if not response.corrections else f" after {pluralize(response.corrections, 'corrective turn')}"
    message = f"The answer does not conform to the schema{turns}. {why}: {'; '.join(faults)}"
    return StructureError(message, response=response, problems=tuple(faults), advice=advice)


def _give_up(response: ChatResponse, faults: Sequence[str], why: str, advice: str) -> NoReturn:
    raise _error(response, faults, why, advice) from None


# What a reply has to be.


def _shape_of(response_model: Any) -> _Shape[Any]:
    if isinstance(response_model, Mapping):
        return _shape_of_schema(response_model)
    try:
        return _shape_of_class(response_model)
    except TypeError as error:  # not hashable, or a type that has no schema
        raise ConfigurationError(
            f"response_model is {truncated_repr(response_model)}, which has no JSON Schema: {error}",
            advice="Use an attrs class, a dataclass, a TypedDict, a msgspec.Struct, a pydantic model or a JSON Schema.",
        ) from None


@lru_cache(64)
def _shape_of_class(cls: Any) -> _Shape[Any]:
    if hasattr(cls, "model_json_schema") and hasattr(cls, "model_validate_json"):
        return _Shape(cls.model_json_schema(), lambda text: _by_pydantic(cls, text))
    msgspec = _installed("msgspec")
    schema = _with_root_in_place(msgspec.json.schema(cls))
    faults = _faults_by(schema)
    decoder = msgspec.json.Decoder(cls)

    def parse(text: str) -> Any:
        if found := faults(json.loads(text)):
            raise UnfitReplyError(found)
        try:
            return decoder.decode(text)
        except msgspec.ValidationError as error:  # of a validator of the class
            raise UnfitReplyError([str(error)]) from None

    return _Shape(schema, parse)


def _shape_of_schema(schema: Mapping[str, JSON]) -> _Shape[JSON]:
    faults = _faults_by(schema)

    def parse(text: str) -> JSON:
        value = json.loads(text)
        if found := faults(value):
            raise UnfitReplyError(found)
        return value

    return _Shape(schema, parse)


def _faults_by(schema: Mapping[str, JSON]) -> Callable[[JSON], list[str]]:
    jsonschema = _installed("jsonschema")
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        kind.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise ConfigurationError(f"response_model is no JSON Schema: {error.json_path}: {error.message}") from None
    validator = kind(schema)

    def faults(value: JSON) -> list[str]:
        found = sorted(validator.iter_errors(value), key=lambda error: error.json_path)
        return [f"{error.json_path}: {error.message}"[:_MAX_FAULT] for error in found[:_MAX_FAULTS]]

    return faults


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
