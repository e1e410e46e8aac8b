"""Read protocol buffers field by field, because the package `onnx` is not part of the runtime."""

from __future__ import annotations

from collections.abc import Iterator

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types


def fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield number and content of the fields of a message that are messages, texts or bytes."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        match key & 7:
            case wire if wire == _VARINT:
                _, position = _varint(message, position)
            case wire if wire in (_FIXED64, _FIXED32):
                position += 8 if wire == _FIXED64 else 4
            case wire if wire == _BYTES:
                length, position = _varint(message, position)
                if position + length > len(message):
                    raise ValueError("truncated")
                yield key >> 3, message[position : position + length]
                position += length
            case _:
                raise ValueError("not a protocol buffer")
    if position > len(message):
        raise ValueError("truncated")


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError("not a protocol buffer")
