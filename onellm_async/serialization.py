"""Values of this package as JSON, and back."""

import math
from collections.abc import Mapping, Sequence
from enum import Enum
from functools import cache
from types import NoneType
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import attrs

from onellm_async.errors import OneLLMError
from onellm_async.validation import truncated_repr

if TYPE_CHECKING:
    from cattrs import Converter

JSON: TypeAlias = Any
"""Whatever JSON can hold: None, bool, int, float, str, a sequence or a string-keyed mapping of these."""

T = TypeVar("T")
_SCALARS: tuple[tuple[type, tuple[type, ...], str], ...] = (
    (str, (str,), "a string"),
    (bool, (bool,), "true or false"),
    (int, (int,), "an integer"),
    (float, (int, float), "a finite number"),
)
"""What is read strictly: a class, the classes that are accepted for it, and its name in messages."""


def to_dict(value: Any) -> dict[str, JSON]:
    """Returns an attrs value as a dict that JSON can hold, nested values included.

    Optional fields that are not set are left out. Enums become their values, tuples lists, and numbers that JSON does
    not know None.

    Args:
        value: The value.
    """
    found: dict[str, JSON] = _converter().unstructure(value)
    return found


def from_dict(cls: type[T], saved: object, *, name: str, error: type[OneLLMError]) -> T:
    """Returns the value of the attrs class `cls` that `to_dict` turned into `saved`.

    Args:
        cls: The class.
        saved: The dict, perhaps read from JSON.
        name: What it is, for messages.
        error: Raised when it is something else.

    Raises:
        OneLLMError: Of the class `error`, naming the field, what was found and what it must be.
    """
    from cattrs import transform_error  # noqa: PLC0415  # see _converter

    if not isinstance(saved, Mapping):
        raise error(f"{name} is {_shown(saved)}; it must be what to_dict returned.")
    try:
        return _converter().structure(saved, cls)
    except Exception as problem:  # whatever the nested classes raise
        reason, _, path = transform_error(problem, path=name, format_exception=_reason)[0].rpartition(" @ ")
        raise error(f"{path}{reason}") from None


@cache
def _converter() -> "Converter":
    # cattrs is imported when something is converted: it takes a third of the time of importing the package's values.
    from cattrs import Converter  # noqa: PLC0415
    from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn, override  # noqa: PLC0415

    converter = Converter(
        forbid_extra_keys=True, unstruct_collection_overrides={tuple: list, Sequence: list, Mapping: dict}
    )

    @converter.register_unstructure_hook_factory(attrs.has)
    def unstructure(cls: type) -> Any:
        unset = {field.name: override(omit_if_default=True) for field in attrs.fields(cls) if _is_optional(field)}
        unset |= {name: override(omit=True) for name in _left_out(cls)}
        return make_dict_unstructure_fn(cls, converter, **unset)  # type: ignore[arg-type]

    @converter.register_structure_hook_factory(attrs.has)
    def structure(cls: type) -> Any:
        left_out: Any = {name: override(omit=True) for name in _left_out(cls)}
        from_mapping: Any = make_dict_structure_fn(cls, converter, **left_out)

        def check_and_structure(value: Any, wanted: Any) -> Any:
            if not isinstance(value, Mapping):
                raise ValueError(f" is {_shown(value)}; it must be an object")  # noqa: TRY004  # a value, for cattrs
            return from_mapping(value, wanted)

        return check_and_structure

    for cls, accepted, wanted in _SCALARS:
        converter.register_structure_hook(cls, _strict(accepted, wanted))
    converter.register_unstructure_hook(float, _finite)
    converter.register_unstructure_hook(Enum, lambda member: member.value)
    converter.register_unstructure_hook(OneLLMError, lambda problem: problem.to_dict())
    converter.register_unstructure_hook_func(_is_json, lambda value: _plain(converter, value))
    return converter


def _left_out(cls: type) -> list[str]:
    return [field.name for field in attrs.fields(cls) if not field.metadata.get("serialized", True)]


def _is_json(wanted: Any) -> bool:
    return wanted in {Mapping[str, JSON], Mapping[str, JSON] | None}


def _plain(converter: "Converter", value: Any) -> Any:
    try:
        return None if value is None else converter.unstructure(dict(value))
    except RecursionError:  # of a reply that is nested as deep as JSON may be; what was parsed from JSON is plain
        return value


def _is_optional(field: "attrs.Attribute[Any]") -> bool:
    return field.default is None or (isinstance(field.default, attrs.Factory) and field.default.factory is dict)  # type: ignore[arg-type]


def _finite(number: float) -> float | None:
    return number if isinstance(number, int) or math.isfinite(number) else None


def _strict(accepted: tuple[type, ...], wanted: str) -> Any:
    def check(value: object, _: object) -> object:
        fits = isinstance(value, accepted) and (bool in accepted or not isinstance(value, bool))
        if not fits or (isinstance(value, float) and not math.isfinite(value)):
            raise ValueError(f" is {_shown(value)}; it must be {wanted}")
        return value

    return check


def _reason(problem: BaseException, _: type | None) -> str:
    """What is wrong, as a sentence that begins with the path of the value."""
    if isinstance(problem, KeyError):
        return " is missing."
    if unknown := getattr(problem, "extra_fields", None):
        return f" has the unknown field {min(map(str, unknown))!r}."
    if isinstance(problem, OneLLMError):
        return f" cannot be read: {problem.message}"
    return f"{problem}." if str(problem).startswith(" is ") else f" cannot be read: {problem}."


def _shown(value: object) -> str:
    if isinstance(value, str | bool | float | NoneType):
        return truncated_repr(value)
    return f"of type {type(value).__name__}"
