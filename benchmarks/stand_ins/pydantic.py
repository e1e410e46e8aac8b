"""A stand-in for pydantic on a machine without it: values get the types of their fields, and nothing is checked.

`gpu.py` puts it on the path of its steps, which only read files that the kit wrote or tinydet ships.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

MAPPINGS = (dict, Mapping)


class ValidationError(ValueError):
    """Never raised here."""


class ConfigDict(dict[str, Any]):
    """Options of a model, which have no effect here."""


class Strict:
    """An annotation, which has no effect here."""

    def __init__(self, strict: bool = True) -> None:
        self.strict = strict


class Fields(types.SimpleNamespace):
    """The fields that were given, as attributes; their names are `model_fields_set`."""

    model_fields_set: tuple[str, ...]


class Model:
    """What `create_model` returns: the types and defaults of fields."""

    def __init__(self, name: str, fields: dict[str, tuple[Any, Any]]) -> None:
        self.name, self.fields = name, fields

    def model_validate(self, value: Any) -> Fields:
        """Return the fields of a JSON object.

        Raises:
            ValueError: it is not an object, or lacks a field.
        """
        if not isinstance(value, dict):
            raise ValueError(f"{self.name} must be an object")
        missing = [name for name, (_, default) in self.fields.items() if default is ... and name not in value]
        if missing:
            raise ValueError(f"{missing[0]} is missing")
        given = {name: convert(kind, value[name]) for name, (kind, _) in self.fields.items() if name in value}
        return Fields(**given, model_fields_set=tuple(given))


def create_model(name: str, __config__: Any = None, **fields: tuple[Any, Any]) -> Model:
    return Model(name, fields)


def convert(kind: Any, value: Any) -> Any:
    """Return a JSON value as the type of a field: objects as dataclasses, lists as tuples.

    >>> convert(tuple[tuple[float, ...], ...] | None, [[1.0, 2.0]])
    ((1.0, 2.0),)
    """
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return convert(parts[0], value)
    if origin in (typing.Union, types.UnionType):
        fitting = [part for part in parts if _takes(part, value)]
        return convert(fitting[0], value) if fitting else value
    if origin is tuple and isinstance(value, (list, tuple)):
        kinds = parts[:1] * len(value) if parts[-1] is ... else parts
        return tuple(convert(each, item) for each, item in zip(kinds, value, strict=True))
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        hints = typing.get_type_hints(kind)
        known = {field.name for field in dataclasses.fields(kind)}
        return kind(**{name: convert(hints[name], item) for name, item in value.items() if name in known})
    if origin in MAPPINGS and isinstance(value, dict):
        return {name: convert(parts[1], item) for name, item in value.items()}
    return value


def _takes(kind: Any, value: Any) -> bool:
    """Return whether a value can be of a type, as far as the members of a union must be told apart."""
    if typing.get_origin(kind) is typing.Annotated:
        return _takes(typing.get_args(kind)[0], value)
    kind = typing.get_origin(kind) or kind
    if isinstance(value, list):
        return kind in (tuple, list)
    if isinstance(value, dict):
        return dataclasses.is_dataclass(kind) or kind in MAPPINGS
    return isinstance(kind, type) and isinstance(value, kind)
