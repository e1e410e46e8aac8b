"""Damage files as transfers, editors, other programs and attackers do. All randomness comes from one generator."""

from __future__ import annotations

import copy
import gzip
import json
import struct
import zlib
from collections.abc import Sequence
from random import Random
from typing import Any

ESCAPES = ("../escaped", "../../escaped.png", "/tmp/escaped.png", "..\\escaped.png", "a/../../escaped.png", "~/escaped")
TEXTS = ("", " ", "0", "1", "1.0", "a" * 5000, "é船", "a\nb", "\u202e", "\ud800", "\x00", "nan", "%s%n", "{}", *ESCAPES)
NUMBERS = (0, -1, 1, 2, 0.5, 1.0, -0.0, 1e-320, 1e308, -1e308, 2**31, 2**32, 2**53 + 1, 2**63, -(2**63), 2**64, 10**400)
OTHERS = (None, True, False, [], {}, [[]], [1], [1, 2, 3, 4], {"a": 1}, [None], [[1, 2], [3]], [1e400], ["1"])
RAW = ("NaN", "Infinity", "-Infinity", "1e400", "1" + "0" * 5000, "-0", "[" * 100_000 + "]" * 100_000,
       '{"a":' * 5000 + "1" + "}" * 5000, '{"id": 1, "id": 2}', "tru", "0x10", "'a'", "1.", "[1,]")  # fmt: skip


class Raw(str):
    """Text that goes into a JSON file as it is, valid or not."""


def value(random: Random) -> Any:
    """Return a value that may be of any type and size."""
    kind = random.random()
    if kind < 0.35:
        return random.choice(NUMBERS)
    if kind < 0.6:
        return random.choice(TEXTS)
    if kind < 0.8:
        return copy.deepcopy(random.choice(OTHERS))
    return Raw(random.choice(RAW))


def places(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every value in a document."""
    found = [path] if path else []
    items = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, child in items:
        found += places(child, (*path, key))
    return found


def document(random: Random, original: Any, *, most: int = 3, only: str | None = None) -> Any:
    """Return a copy of JSON-like values with a few of them replaced, removed, repeated, moved or added.

    Args:
        only: change values below this key.
    """
    changed = copy.deepcopy(original)
    for _ in range(random.randint(1, most)):
        paths = [path for path in places(changed) if only is None or path[0] == only]
        if not paths:
            return value(random)
        # Values near the root are rare among all values, and matter more.
        path = random.choice(paths if random.random() < 0.6 else [p for p in paths if len(p) <= 2] or paths)
        parent = changed
        for key in path[:-1]:
            parent = parent[key]
        _change(random, parent, path[-1], paths, changed)
    return changed


def _change(random: Random, parent: Any, key: Any, paths: Sequence[tuple[Any, ...]], root: Any) -> None:
    action = random.random()
    if action < 0.5:
        parent[key] = value(random)
    elif action < 0.65:
        del parent[key]
    elif action < 0.75 and isinstance(parent, list):
        parent.insert(key, copy.deepcopy(parent[key]))
    elif action < 0.85:
        parent[key] = random.choice([[parent[key]], {"value": parent[key]}, str(parent[key]), [parent[key]] * 3])
    elif action < 0.93 and isinstance(parent, dict):
        parent[random.choice(["", "id", "bbox", "corner", "ignore", "segmentation", "keypoints", "é"])] = value(random)
    else:
        other: Any = root
        for step in random.choice(paths):
            other = other[step]
        parent[key] = copy.deepcopy(other)


def to_json(values: Any) -> bytes:
    """Write JSON-like values, with `Raw` text as it is."""
    texts: list[str] = []

    def marked(part: Any) -> Any:
        if isinstance(part, Raw):
            texts.append(part)
            return f"@raw{len(texts) - 1}@"
        if isinstance(part, dict):
            return {key: marked(child) for key, child in part.items()}
        return [marked(child) for child in part] if isinstance(part, list | tuple) else part

    written = json.dumps(marked(values))
    for number, text in enumerate(texts):
        written = written.replace(f'"@raw{number}@"', text)
    return written.encode("utf-8", "surrogatepass")


def encoded(random: Random, data: bytes) -> bytes:
    """Sometimes write a text file in another encoding, with a byte order mark, with other line ends, or compressed."""
    action = random.random()
    if action < 0.85:
        return data
    text = data.decode("utf-8", "replace")
    return random.choice([
        lambda: b"\xef\xbb\xbf" + data,
        lambda: text.encode("utf-16"),
        lambda: text.encode("utf-32"),
        lambda: data.replace(b"\n", b"\r\n"),
        lambda: data.replace(b"\n", b"\r"),
        lambda: text.encode("latin-1", "replace") + b"\xe9",
        lambda: gzip.compress(data),
        lambda: damaged(random, gzip.compress(data)),
        lambda: damaged(random, data),
    ])()  # fmt: skip


def damaged(random: Random, data: bytes) -> bytes:
    """Cut, flip, insert, repeat or overwrite bytes; often near the beginning, where headers are."""
    for _ in range(random.choice([1, 1, 1, 2, 4])):
        if not data:
            return random.randbytes(random.randint(0, 40))
        near = min(len(data), 300)
        at = random.randrange(near if random.random() < 0.6 else len(data))
        action = random.randrange(9)
        if action == 0:
            data = data[:at]
        elif action == 1:
            data = data[:at] + bytes([data[at] ^ (1 << random.randrange(8))]) + data[at + 1 :]
        elif action == 2:
            data = data[:at] + random.randbytes(random.randint(1, 8)) + data[at:]
        elif action == 3:
            length = random.randint(1, 64)
            data = data[:at] + data[at : at + length] * random.choice([0, 2, 3, 40]) + data[at + length :]
        elif action in (4, 5):
            form = random.choice(["<H", ">H", "<I", ">I", "<Q", ">Q"])
            bits = 8 * struct.calcsize(form)
            number = random.choice([0, 1, 2, 255, 2**15, 2**bits - 1, 2 ** (bits - 1), 2 ** (bits - 1) - 1])
            data = data[:at] + struct.pack(form, number % 2**bits) + data[at + bits // 8 :]
        elif action == 6:
            start = random.randrange(len(data))
            data = data[:at] + data[start : start + random.randint(1, 200)] + data[at:]
        elif action == 7:
            data = data[:at] + bytes(random.choice([1, 16, 1000])) + data[at:]
        else:
            data = data[:at] + bytes([random.randrange(256)]) + data[at + 1 :]
    return data


WORDS = (
    *("", "0", "-1", "1", "1e400", "nan", "inf", "-inf", "1e-320", "9" * 400, "0.5", "1_0", "٣", "0x1", "1,2", "a b"),
    *(
        "a" * 3000,
        "é",
        "\x00",
        "\ufeff",
        "null",
        "true",
        "~",
        "[",
        "]",
        "{",
        "}",
        ":",
        "- ",
        "#",
        "&",
        "<",
        ">",
        '"',
        "'",
    ),
    *("\t", "\n", "\r", *ESCAPES),
)


def text(random: Random, original: str, snippets: Sequence[str] = ()) -> bytes:
    """Change words and lines of a text file.

    Args:
        snippets: what may be put in besides `WORDS`: hostile constructs of the format.
    """
    lines = original.split("\n")
    for _ in range(random.randint(1, 3)):
        at = random.randrange(len(lines))
        action = random.random()
        if action < 0.5:
            words = lines[at].replace(">", "> ").replace("<", " <").split(" ")
            where = random.randrange(len(words))
            kept = words[where]
            words[where] = random.choice([*WORDS, *snippets, kept * 2, f"-{kept}", f"{kept}.", kept[:-1]])
            lines[at] = " ".join(words)
        elif action < 0.6:
            del lines[at]
            lines = lines or [""]
        elif action < 0.7:
            lines.insert(at, lines[at])
        elif action < 0.9 and snippets:
            lines.insert(at, random.choice(list(snippets)))
        else:
            lines[at] = lines[at][: random.randrange(len(lines[at]) + 1)]
    return encoded(random, "\n".join(lines).encode("utf-8", "surrogatepass"))


def png_header(random: Random, data: bytes) -> bytes:
    """Change width, height, bits, color type or interlacing of a PNG, with the right checksum."""
    fields = list(struct.unpack(">IIBBBBB", data[16:29]))
    for _ in range(random.randint(1, 2)):
        at = random.randrange(7)
        fields[at] = random.choice([0, 1, 2, 3, 4, 6, 16, 97, 2**16, 30_000, 2**31 - 1]) % (2**31 if at < 2 else 256)
    header = b"IHDR" + struct.pack(">IIBBBBB", *fields)
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


def tiff_tag(random: Random, data: bytes) -> bytes:
    """Change type, count or value of an entry of the first directory of a little-endian TIFF."""
    if data[:4] != b"II*\0":
        return damaged(random, data)
    changed = bytearray(data)
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    for _ in range(random.randint(1, 3)):
        entry = start + 2 + 12 * random.randrange(count)
        offset, form = random.choice([(0, "<H"), (2, "<H"), (4, "<I"), (8, "<I"), (8, "<H")])
        number = random.choice([0, 1, 2, 3, 4, 5, 6, 7, 8, 16, 32, 64, 97, 317, 339, 65535, 2**31, 2**32 - 1])
        struct.pack_into(form, changed, entry + offset, number % 2 ** (16 if form == "<H" else 32))
    return bytes(changed)
