"""Read JSON files, plain or gzipped, with errors that fit in one line."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

GZIP_MAGIC = b"\x1f\x8b"


def read_json(path: Path) -> Any:
    """Return the content of a JSON file, decompressed if it is gzipped.

    Gzip is recognized by the content, not by the name. UTF-8, with or without a byte order mark, UTF-16 and UTF-32
    are read. As in Python's `json`, NaN and Infinity are numbers, and the last of several equal keys counts.

    Raises:
        ValueError: the file is missing, unreadable, empty, damaged or not JSON. The message names the file, the
            position of a syntax error and what to do.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; check the path") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error
    again = "write or download it again"
    try:
        if content.startswith(GZIP_MAGIC):
            content = gzip.decompress(content)
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path}: truncated or damaged gzip file ({error}); {again}") from error
    if not content.strip():
        raise ValueError(f"{path}: an empty file; {again}")
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error}); {again}") from error
