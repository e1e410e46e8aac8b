from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import pytest

from tinydet._internal.json_files import read_json

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


def test_a_folder_is_not_a_json_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot be read \(Is a directory\); check the path"):
        read_json(tmp_path)
