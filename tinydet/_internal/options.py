"""Dataclass fields that also describe a command-line flag: one definition serves Python, the command and the docs."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import numbers
import re
import types
import typing
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tinydet._internal.arguments import check_number, join_names, positive_float, positive_int, quoted


def option(
    default: Any,
    help: str,
    *,
    group: str = "",
    metavar: str | tuple[str, ...] | None = None,
    choices: Collection[Any] | None = None,
    parse: Callable[[str], Any] | None = None,
    flag: str | None = None,
    recorded: bool = True,
) -> Any:
    """Declare a dataclass field that is also a flag.

    Args:
        default: of the field and the flag; None: decided later, as the help says.
        help: what happens when the flag is set; `%(default)s` is the default.
        group: heading under which `--help` lists the flag.
        choices: allowed values; a live view, such as the keys of a registry, is read when a value is checked.
        parse: converts the text of the flag; None: by the type of the field.
        flag: name of the flag; None: from the field. A field that is True by default is switched off by `--no-NAME`.
        recorded: whether the value influences results, so that it belongs into a checkpoint.
    """
    metadata = {
        "help": help,
        "group": group,
        "metavar": metavar,
        "choices": choices,
        "parse": parse,
        "flag": flag,
        "recorded": recorded,
    }
    return dataclasses.field(default=default, metadata=metadata)


def flag_of(field: dataclasses.Field[Any]) -> str:
    """Return the flag of a field, such as `--no-flip` for `flip: bool = True`."""
    name = field.name.replace("_", "-")
    return field.metadata["flag"] or (f"--no-{name}" if field.default is True else f"--{name}")


def add_options(
    parser: argparse.ArgumentParser,
    options: type[Any],
    *,
    group: str = "",
    defaults: Mapping[str, str] | None = None,
    only: Collection[str] | None = None,
) -> None:
    """Add one flag per field of the dataclass `options`; a flag that was not given is absent from the namespace.

    Args:
        group: heading for fields that name none.
        defaults: text for `%(default)s` by field, where the default is decided later.
        only: names of the fields; None: all.
    """
    groups = {each.title: each for each in parser._action_groups}
    types_of = _types_of_fields(typing.cast(Hashable, options))
    for field in dataclasses.fields(options):
        if "help" not in field.metadata or (only is not None and field.name not in only):
            continue
        title = field.metadata["group"] or group
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        flag = flag_of(field)
        if (shared := parser._option_string_actions.get(flag)) is not None:  # by two detectors, which check its value
            if shared.choices is not None:
                shared.choices = tuple(dict.fromkeys([*shared.choices, *field.metadata["choices"]]))
            continue
        shown = (defaults or {}).get(field.name, _shown(field.default))
        help_text = field.metadata["help"].replace("%(default)s", shown)
        if types_of[field.name] is bool:
            action = "store_false" if field.default is True else "store_true"
            groups[title].add_argument(flag, dest=field.name, action=action, default=argparse.SUPPRESS, help=help_text)
            continue
        groups[title].add_argument(
            flag,
            dest=field.name,
            type=field.metadata["parse"] or _parser_of(_alternatives(types_of[field.name])),
            choices=field.metadata["choices"],
            metavar=field.metadata["metavar"],
            default=argparse.SUPPRESS,
            help=help_text,
        )


def option_words(options: type[Any], values: Mapping[str, Any]) -> list[str]:
    """Return the words of a command line that set fields of the dataclass `options` to `values`."""
    words: list[str] = []
    for field in dataclasses.fields(options):
        if field.name not in values:
            continue
        value = values[field.name]
        if isinstance(value, bool):
            words += [flag_of(field)] if value != field.default else []
        else:
            words += [flag_of(field), join_names(value) if isinstance(value, tuple) else str(value)]
    return words


def check_values(values: Any) -> None:
    """Check the fields of a dataclass by the rules of the command line; convert lists, path names and numbers.

    Values must have the type of their field: the text of a number or of a list, as on a command line, is refused.

    Raises:
        ValueError: naming the field, its rule and the value.
    """
    kinds = _types_of_fields(typing.cast(Hashable, type(values)))
    for field in dataclasses.fields(values):
        if "help" in field.metadata:
            value = _checked(field, _alternatives(kinds[field.name]), getattr(values, field.name))
            object.__setattr__(values, field.name, value)


@functools.cache
def _types_of_fields(options: Hashable) -> dict[str, Any]:
    """Return the types by field name. `get_type_hints` compiles every annotation again at each call."""
    return typing.get_type_hints(options)


def _checked(field: dataclasses.Field[Any], kinds: Sequence[Any], value: Any) -> Any:
    """Return a value as its field stores it; `kinds`: the types of the field."""
    if value is None and type(None) in kinds:
        return None
    name, choices = field.name, field.metadata["choices"]
    parse = field.metadata["parse"] or _parser_of(kinds)
    if choices is not None:
        if isinstance(value, bool) or not isinstance(value, str | numbers.Real) or value not in choices:
            raise ValueError(f"{name}: expected one of {', '.join(map(str, choices))}, got {quoted(value)}")
        return next(choice for choice in choices if choice == value)
    if bool in kinds:
        if not isinstance(value, bool):
            raise ValueError(f"{name}: expected bool, got {quoted(value)}")
        return value
    if Path in kinds and not (float in kinds and isinstance(value, numbers.Real)):
        if not isinstance(value, str | Path) or "\0" in str(value):
            raise ValueError(f"{name}: expected a path, got {quoted(value)}")
        return Path(value)
    if isinstance(value, numbers.Real) and {int, float} & set(kinds):
        return check_number(name, value, parse)
    many = isinstance(value, list | tuple) and any(typing.get_origin(kind) is tuple for kind in kinds)
    plain = not many or all(isinstance(part, str | numbers.Real) for part in value)
    if not plain or not (many or (str in kinds and isinstance(value, str))):
        raise ValueError(f"{name}: expected {field.type}, got {quoted(value)}")
    text = value if isinstance(value, str) else join_names(value)
    try:
        parsed = parse(text)
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"{name}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{name}: expected {field.type}, got {quoted(value)}") from error
    if isinstance(value, str):
        if parsed != value:
            raise ValueError(f"{name}: expected {field.type}, got the text {quoted(value)}")
        return value
    # Names keep the commas they contain; numbers of any kind become int and float, which a checkpoint can store.
    if any(isinstance(part, str) for part in value):
        if not all(isinstance(part, str) for part in (*value, *parsed)):
            raise ValueError(f"{name}: expected {field.type}, got {quoted(value)}")
        return tuple(value)
    return parsed


def declared(options: type[Any]) -> tuple[dataclasses.Field[Any], ...]:
    """Return the option fields that a dataclass declares itself, not those that it inherits."""
    own = vars(options).get("__annotations__", {})
    return tuple(each for each in dataclasses.fields(options) if each.name in own and "help" in each.metadata)


def option_table(options: type[Any], defaults: Mapping[str, str] | None = None, *, group: str | None = None) -> str:
    """Return the fields that a dataclass declares as a Markdown table: option, flag, default, meaning.

    Args:
        defaults: text for the default by field, where it is decided later.
        group: only the fields of this group; None: all.
    """
    rows = ["| option | flag | default | meaning |", "| --- | --- | --- | --- |"]
    for field in declared(options):
        if group in (None, field.metadata["group"]):
            meaning, default = field.metadata["help"], ""
            if not isinstance(field.default, bool):
                meaning, default = _split_default(meaning)
            shown = (defaults or {}).get(field.name, default or _shown(field.default))
            if field.default is True:
                meaning = f"`False`: {meaning}"
            rows.append(f"| `{field.name}` | `{flag_of(field)}` | {shown} | {meaning} |")
    return "\n".join(rows) + "\n"


def _split_default(help_text: str) -> tuple[str, str]:
    """Split the default off a help text: "threads (default: all cores)" -> "threads", "all cores"."""
    text = re.sub(r" \(default: %\(default\)s(?:\)|[,:] )", lambda m: "" if m[0].endswith("s)") else " (", help_text)
    match = re.fullmatch(r"(.*) \(default: (.*)\)", text)
    return (match[1], match[2]) if match else (text, "")


def _shown(default: Any) -> str:
    if default is None or default == ():
        return "none"
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    return str(default)


def _alternatives(kind: Any) -> tuple[Any, ...]:
    """The types that a field accepts: `int | None` -> (int, NoneType)."""
    union = isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union
    return typing.get_args(kind) if union else (kind,)


def _parser_of(kinds: Sequence[Any]) -> Callable[[str], Any]:
    """The converter for the types of a field: the first one counts, and integers and floats must be positive."""
    converters: dict[Any, Callable[[str], Any]] = {int: positive_int, float: positive_float, Path: Path}
    return converters.get(kinds[0], str)
