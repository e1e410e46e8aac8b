"""Read JSON files, plain or gzipped, and validate their values, with one-line errors."""

from __future__ import annotations

import codecs
import dataclasses
import functools
import gzip
import io
import json
import types
import typing
import zlib
from collections.abc import Hashable
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union

from tinydet._internal.arguments import quoted
from tinydet._internal.errors import reason
from tinydet._internal.input_files import read_file
from tinydet._internal.stores import to_path

GZIP_MAGIC = b"\x1f\x8b"
BLOCK = 1 << 24  # bytes that are decompressed at a time
LARGEST = 4 << 30  # bytes of a decompressed file
# Annotations compress to about a tenth. A much higher ratio indicates a decompression bomb.
SMALL, RATIO = 256 << 20, 200

T = TypeVar("T")


def read_json(path: Path) -> Any:
    """Return the content of a JSON file, decompressed if it is gzipped.

    Gzip is recognized by the content, not by the name. UTF-8, with or without a byte order mark, UTF-16 and UTF-32
    are read. As in Python's `json`, NaN and Infinity are numbers, and the last of several equal keys counts. Numbers
    have any size, and strings may contain unpaired surrogates, which the annotation rules report by entry.

    Raises:
        ValueError: the file is missing, not a regular file, unreadable, empty, damaged, not JSON, nested too deeply or
            far larger than it looks. The message names the file, the position of a syntax error and what to do.
    """
    path = to_path(path)
    try:
        content = read_file(path)
    except OSError as error:
        raise ValueError(str(error)) from error
    if content.startswith(GZIP_MAGIC):
        content = _decompressed(content, path)
    return _parse(content, source=path, remedy="write or download it again")


def parse_json(content: str | bytes, *, source: Path | str, remedy: str = "write or download it again") -> Any:
    """Parse JSON text in any Unicode encoding, as `read_json`, but refuse unpaired surrogates.

    Raises:
        ValueError: as `read_json`, and for an unpaired surrogate. Names `source`.
    """
    value = _parse(content, source=source, remedy=remedy)
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        near = error.object[max(0, error.start - 20) : error.end + 20].encode(errors="backslashreplace").decode()
        raise ValueError(f"{source}: a string has an unpaired surrogate, {quoted(near)}; {remedy}") from error
    except RecursionError as error:
        raise ValueError(f"{source}: not JSON ({reason(error)}); {remedy}") from error
    return value


def _parse(content: str | bytes, *, source: Path | str, remedy: str) -> Any:
    if not content.strip():
        raise ValueError(f"{source}: an empty file; {remedy}")
    try:
        text = content if isinstance(content, str) else content.decode(_encoding(content))
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source}: not JSON ({reason(error)}); {remedy}") from error


def checked(kind: type[T], value: Any, *, source: Path | str, what: str, remedy: str) -> T:
    """Return `value` as an instance of the dataclass `kind`, after checking field types and class rules.

    Types are strict, except that a list is accepted for a tuple. Unknown fields are ignored.

    Args:
        value: the fields by name.
        what: the content that was expected, such as "model description".

    Raises:
        ValueError: "SOURCE: not a usable WHAT (FIELD must be RULE, got VALUE); REMEDY".
    """
    from pydantic import ValidationError

    try:
        fields = _model_of(typing.cast(Hashable, kind)).model_validate(value)
        return kind(**{name: getattr(fields, name) for name in fields.model_fields_set})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        if first["type"] == "missing":
            found = f"{place} is missing"
        else:
            rule = first["msg"].replace("Input should", "must")
            found = f"{place or 'the content'} {rule}, got {quoted(first['input'])}"
    except (ValueError, RecursionError, OverflowError) as error:
        found = reason(error)
    raise ValueError(f"{source}: not a usable {what} ({found}); {remedy}")


def _encoding(content: bytes) -> str:
    return "utf-8-sig" if content.startswith(codecs.BOM_UTF8) else json.detect_encoding(content)


@functools.cache
def _model_of(kind: Hashable) -> Any:
    """Return a pydantic model with the fields of a dataclass."""
    from pydantic import ConfigDict, create_model

    fields: Any = dataclasses.fields(kind)  # type: ignore[arg-type]
    hints = typing.get_type_hints(kind)
    types = {
        field.name: (_lists_as_tuples(hints[field.name]), None if _has_default(field) else ...) for field in fields
    }
    config = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
    make: Any = create_model
    return make(getattr(kind, "__name__", ""), __config__=config, **types)


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _lists_as_tuples(hint: Any) -> Any:
    """Return the type with tuples that also accept lists, because JSON has no tuples."""
    from pydantic import Strict

    if typing.get_origin(hint) is tuple:
        items = tuple(each if each is ... else _lists_as_tuples(each) for each in typing.get_args(hint))
        return Annotated[tuple[items], Strict(False)]  # type: ignore[valid-type]
    if isinstance(hint, types.UnionType):
        return Union[tuple(_lists_as_tuples(each) for each in typing.get_args(hint))]  # noqa: UP007
    return hint


def _decompressed(content: bytes, path: Path) -> bytes:
    blocks, size = [], 0
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
            while block := file.read(BLOCK):
                blocks.append(block)
                size += len(block)
                if size > LARGEST or size > max(SMALL, RATIO * len(content)):
                    raise ValueError(
                        f"{path}: {len(content):,} compressed bytes expand to more than {size:,}, unusual for JSON; "
                        "if you trust the file, decompress it with gunzip first"
                    )
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path}: truncated or damaged gzip file ({error}); write or download it again") from error
    return b"".join(blocks)
