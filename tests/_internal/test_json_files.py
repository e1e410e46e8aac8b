from __future__ import annotations

import gzip
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tinydet._internal import json_files
from tinydet._internal.json_files import checked, parse_json, read_json

VALUE: dict[str, Any] = {"classes": ["Möwe", "船"], "boxes": [[1, 2.5, 3, 4]]}
TEXT = json.dumps(VALUE, ensure_ascii=False)


@pytest.mark.parametrize("name", ["a.json", "a.json.gz", "a"])
@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_the_content_decides_whether_a_file_is_gzipped(tmp_path: Path, name: str, compress: Any) -> None:
    (tmp_path / name).write_bytes(compress(TEXT.encode()))
    assert read_json(tmp_path / name) == VALUE


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_every_unicode_encoding_is_read(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.json").write_bytes(TEXT.encode(encoding))
    assert read_json(tmp_path / "a.json") == VALUE


def test_nan_is_a_number_and_the_last_of_equal_keys_counts(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": 1, "a": NaN, "b": [Infinity]}')
    value = read_json(tmp_path / "a.json")
    assert math.isnan(value["a"]) and value["b"] == [math.inf]


UNREADABLE: dict[str, tuple[bytes | None, str]] = {
    "missing": (None, "no such file; check the path"),
    "empty": (b" \n", "an empty file; write or download it again"),
    "cut off": (b'{"images": [', r"not JSON \(Expecting value: line 1 column 13 \(char 12\)\); write or download"),
    "binary": (b"\x89PNG\r\n\x1a\n\x00\xff", r"not JSON \(.* byte 0x89 in position 0"),
    "half a UTF-16 character": (b"\xff\xfe[", r"not JSON \("),
    "two values": (b"{} {}", r"not JSON \(Extra data: line 1 column 4"),
    "endless nesting": (b"[" * 100_000, r"not JSON \("),
    "cut off gzip": (gzip.compress(b"[1, 2, 3]" * 99)[:-12], r"truncated or damaged gzip file \("),
    "damaged gzip": (b"\x1f\x8b" + bytes(40), r"truncated or damaged gzip file \("),
    "an empty file, gzipped": (gzip.compress(b""), "an empty file"),
}


@pytest.mark.parametrize("fault", UNREADABLE)
def test_an_unreadable_file_is_refused_in_one_line_that_names_it(tmp_path: Path, fault: str) -> None:
    content, message = UNREADABLE[fault]
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as refusal:
        read_json(path)
    assert str(refusal.value).startswith(f"{path}: ")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("kind", ["folder", "pipe", "device"])
def test_only_a_regular_file_is_read(tmp_path: Path, kind: str) -> None:
    """Reading the pipe would wait forever, and the device never ends."""
    path = Path("/dev/zero") if kind == "device" else tmp_path / "a.json"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(
        ValueError, match="a folder, not a file" if kind == "folder" else "a pipe or device, not a file"
    ):
        read_json(path)


def test_an_unpaired_surrogate_is_refused_and_a_pair_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(r'{"file_name": "\ud83d\ude00 \\ud800"}')
    assert read_json(path) == {"file_name": "\U0001f600 \\ud800"}
    for half in (rb'["\ud83d"]', rb'["\ude00"]', rb'["\ude00\ud83d"]', rb'{"\ud83d": 1}'):
        path.write_bytes(half)
        read_json(path)  # the rules of annotations name the entry
        with pytest.raises(ValueError, match="unpaired surrogate") as refusal:
            parse_json(half, source=path)
        str(refusal.value).encode()
    path.write_bytes(b'["\xed\xa0\x80"]')
    with pytest.raises(ValueError, match=r"not JSON \("):
        read_json(path)


def test_a_gzip_bomb_is_refused_before_it_fills_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_files, "SMALL", 100_000)
    monkeypatch.setattr(json_files, "BLOCK", 1000)
    usual = json.dumps([{"id": i} for i in range(20_000)]).encode()
    (tmp_path / "a.json").write_bytes(gzip.compress(usual))
    assert len(read_json(tmp_path / "a.json")) == 20_000
    (tmp_path / "a.json").write_bytes(gzip.compress(b" " * 10_000_000))
    with pytest.raises(ValueError, match="decompress it with gunzip first"):
        read_json(tmp_path / "a.json")
    monkeypatch.setattr(json_files, "LARGEST", 50_000)
    (tmp_path / "a.json").write_bytes(gzip.compress(usual))
    with pytest.raises(ValueError, match="expand to more than"):
        read_json(tmp_path / "a.json")


@dataclass(frozen=True)
class Record:
    count: int
    size: float = 1.0
    pair: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError(f"count must be at least 0, not {self.count}")


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ({"count": -1}, "count must be at least 0, not -1"),
        ({"count": 1.0}, r"count must be a valid integer, got 1\.0"),
        ({"count": "1"}, "count must be .* got '1'"),
        ({"count": True}, "count must be .* got True"),
        ({"count": 1, "size": math.nan}, "size must be a finite number, got nan"),
        ({"count": 1, "pair": [1]}, r"pair\.1 is missing"),
        ({"count": 1, "pair": [1, []]}, r"pair\.1 must .* got \[\]"),
        ({"count": 1, "size": 10**400}, "size must be"),
        ({}, "count is missing"),
        ([], r"got \[\]"),
        (None, "got None"),
    ],
)
def test_checked_names_file_field_rule_and_value(value: Any, found: str) -> None:
    with pytest.raises(ValueError, match=rf"^a\.json: not a usable record \(.*{found}.*; run it again$"):
        checked(Record, value, source="a.json", what="record", remedy="run it again")


def test_checked_takes_lists_for_tuples_and_ignores_unknown_fields() -> None:
    value = {"count": 1, "pair": [2, 3], "later": 4}
    assert checked(Record, value, source="a", what="b", remedy="c") == Record(1, pair=(2, 3))
