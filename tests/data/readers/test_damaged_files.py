"""Damaged files of every format are read, or refused in one line."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tinydet.data.readers import citypersons, dota, tinyperson, visdrone, voc, yolo
from tinydet.data.readers.coco_builder import CocoBuilder

CASES = 500  # per format
TOKENS = [
    b"1e400", b"-1e400", b"NaN", b"inf", b"-1", b"-0.0", b"9" * 400, b"1e18", b"0x10", b"1_0", b"\xff\xfe", b"\xe9",
    b"\0", b"\xef\xbb\xbf", b",", b" ", b"\n", b"\r", b"\t", b"null", b"true", b"[]", b"{}", b'""', b"[" * 1000, b"&x;",
    b"<a>", b"</object>", b"%20", b"../", b"'", b'"', b"\xed\xb3\xa9", "\u0661".encode(), b"1" * 1000, b"person",
]  # fmt: skip

VOC = (
    b'<?xml version="1.0" encoding="utf-8"?><annotation><filename>a.png</filename><size><width>100</width>'
    b"<height>80</height></size><object><name>person</name><difficult>0</difficult><bndbox><xmin>1</xmin><ymin>11"
    b"</ymin><xmax>40</xmax><ymax>20</ymax></bndbox></object></annotation>"
)
TINYPERSON = json.dumps(
    {
        "images": [{"id": 0, "file_name": "a.png", "width": 100, "height": 80}],
        "categories": [{"id": 1, "name": "sea_person"}, {"id": 2, "name": "earth_person"}],
        "annotations": [
            {
                "id": n,
                "image_id": 0,
                "category_id": 1 + n % 2,
                "bbox": [5.5 * n, 3, 4, 10],
                "ignore": False,
                "logo": False,
            }
            for n in range(1, 3)
        ],
    }
).encode()


def _mat(folder: Path) -> bytes:
    savemat = pytest.importorskip("scipy.io", reason="needs SciPy (tinydet[formats])").savemat
    cells = np.empty((1, 1), object)
    cells[0, 0] = {"cityname": "a", "im_name": "a.png", "bbs": np.array([[1, 1, 2, 4, 10, 24, 1, 2, 3, 5]], np.uint16)}
    savemat(folder / "base.mat", {"anno_val_aligned": cells})
    return (folder / "base.mat").read_bytes()


FORMATS: dict[str, tuple[str, bytes | Callable[[Path], bytes], Callable[[Path, Path], CocoBuilder]]] = {
    "yolo": ("a.txt", b"0 0.5 0.5 0.1 0.1\n1 0.2 0.2 0.3 0.2 0.3 0.3 0.2 0.3\n", yolo.read),
    "yolo data.yaml": ("data.yaml", b"path: .\nnames:\n  0: boat\n  1: person\nnc: 2\nkpt_shape: [2, 2]\n", yolo.read),
    "yolo classes.txt": ("classes.txt", b"boat\nperson\n", yolo.read),
    "visdrone": ("a.txt", b"68,8,2,16,0,0,0,0\n25,22,20,10,1,4,0,1\n", visdrone.read),
    "dota": ("a.txt", b"gsd:0.14\n10.0 20 30 10 40 30 20 40 plane 0\n50 50 60 50 60 70 50 70 ship 1\n", dota.read),
    "voc": ("a.xml", VOC, voc.read),
    "tinyperson": ("a.json", TINYPERSON, lambda source, images: tinyperson.read(source / "a.json", images, task="sea")),
    "citypersons": ("a.mat", _mat, lambda source, _: citypersons.read(source / "a.mat")),
}


def mutate(random_: random.Random, content: bytes) -> bytes:
    data = bytearray(content)
    for _ in range(random_.randrange(1, 4)):
        start = random_.randrange(len(data) + 1)
        end = min(start + random_.choice([0, 0, 1, 2, 5, 40]), len(data))
        match random_.randrange(4):
            case 0:
                data[start:end] = random_.choice(TOKENS)
            case 1:
                data[start:end] = b""
            case 2:
                data[start:end] = random_.randbytes(random_.randrange(1, 4))
            case _:
                data[start:start] = data[start:end] * random_.choice([1, 2, 50])
    return bytes(data)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A folder of annotations, empty, and one of images with a.png (100x80)."""
    for name in ("source", "images"):
        (tmp_path / name).mkdir()
    assert cv2.imwrite(str(tmp_path / "images" / "a.png"), np.zeros((80, 100, 3), np.uint8))
    return tmp_path / "source", tmp_path / "images"


def convert(name: str, source: Path, images: Path, content: bytes) -> dict[str, Any] | None:
    """Return the document, None if the file is refused in one line that is not too long."""
    file, _, read = FORMATS[name]
    (source / file).write_bytes(content)
    if name.startswith("yolo "):
        (source / "a.txt").write_bytes(b"0 0.5 0.5 0.1 0.1\n")
    elif name == "yolo":
        (source / "classes.txt").write_bytes(b"boat\nperson\n")
    try:
        document = read(source, images).to_coco()
    except (ValueError, OSError) as error:
        message = str(error)
    else:
        json.dumps(document, allow_nan=False).encode()
        return document
    if "\n" in message or len(message) > 3000 or "source" not in message:
        raise AssertionError(f"{message!r} for {content[:200]!r}")
    return None


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("cases", [60, pytest.param(CASES, marks=pytest.mark.slow)])
def test_a_damaged_file_is_read_or_refused(folders: tuple[Path, Path], name: str, cases: int) -> None:
    source, images = folders
    _, base, _ = FORMATS[name]
    content = base(source.parent) if callable(base) else base
    assert convert(name, source, images, content) is not None
    random_ = random.Random(name)
    count = cases if name != "citypersons" else cases // 60  # each starts a process
    refused = sum(convert(name, source, images, mutate(random_, content)) is None for _ in range(count))
    assert refused > 0 or count < 50


NOT_TEXT = [b"", b"\0" * 100, bytes(range(256)), b"\xff\xfe", b"PK\3\4", b"\n\n"]
CONTENTS = [(name, content) for name in FORMATS for content in NOT_TEXT if name != "citypersons"]
CONTENTS += [("citypersons", content) for content in NOT_TEXT[1:3]]  # each starts a process


@pytest.mark.parametrize(("name", "content"), CONTENTS)
def test_an_empty_or_binary_file_is_not_an_annotation_file(
    folders: tuple[Path, Path], name: str, content: bytes
) -> None:
    document = convert(name, *folders, content)
    may_be_empty = name in ("yolo", "visdrone", "dota") and not content.strip(b"\n\xff\xfe")
    assert document is None or (may_be_empty and not document["annotations"])


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_not_a_file_is_refused_at_once(folders: tuple[Path, Path], name: str) -> None:
    source, images = folders
    file, _, read = FORMATS[name]
    makers: list[Callable[[Path], None]] = [Path.mkdir, lambda path: path.symlink_to("nowhere"), lambda path: None]
    if name != "tinyperson":  # JSON has its own tests
        makers.append(os.mkfifo)
    for make in makers:
        make(source / file)
        with pytest.raises((ValueError, OSError), match="source"):
            read(source, images)
        shutil.rmtree(source)
        source.mkdir()
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(source)
    with pytest.raises((ValueError, OSError), match="source"):
        read(source, images)
