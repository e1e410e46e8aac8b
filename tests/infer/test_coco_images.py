from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tinydet.data.coco import load_dataset
from tinydet.infer.coco_images import coco_sources
from tinydet.runtime.scenes.sources import find_sources

SIZE = {"width": 8, "height": 6}
IMAGES = [{"id": 40, "file_name": "b.JPG", **SIZE}, {"id": 7, "file_name": "deep/c.png", **SIZE}]
DOCUMENT: dict[str, Any] = {"images": IMAGES, "annotations": [], "categories": [{"id": 1, "name": "person"}]}


@pytest.fixture
def flight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for image in IMAGES:
        path = tmp_path / "flight" / str(image["file_name"])
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), np.zeros((6, 8), np.uint8))
    monkeypatch.chdir(tmp_path)
    return Path("flight")


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_images_keep_the_ids_and_the_order_of_the_file(flight: Path, compress: Callable[[bytes], bytes]) -> None:
    Path("set.json").write_bytes(compress(json.dumps(DOCUMENT).encode()))
    sources = coco_sources(Path("set.json"), flight)
    assert [(source.image_id, source.path) for source in sources] == [
        (40, flight / "b.JPG"),
        (7, flight / "deep/c.png"),
    ]


def test_images_are_looked_for_next_to_the_file(flight: Path) -> None:
    for name in ("set.json", "flight/set.json"):
        Path(name).write_text(json.dumps(DOCUMENT))
    assert coco_sources(Path("flight/set.json"))[0].path == flight / "b.JPG"
    flight.rename("images")
    assert coco_sources(Path("set.json"))[0].path == Path("images/b.JPG")


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({**DOCUMENT, "images": [{**IMAGES[0], "file_name": "gone.png"}]}, r"gone\.png, is missing \(1 of 1 images"),
        ({**DOCUMENT, "images": [{**IMAGES[0], "id": 7}, IMAGES[1]]}, "have the same id 7"),
        ({**DOCUMENT, "images": []}, "'images' is empty"),
        ({**DOCUMENT, "images": [{**IMAGES[0], "id": "1"}]}, "must be a whole number"),
        ({"images": IMAGES}, "has no 'categories'"),
        ([1, 2], "a JSON list, not an object"),
        ("{", "not JSON"),
    ],
)
def test_a_file_is_refused_with_the_message_of_load_dataset(flight: Path, document: Any, message: str) -> None:
    """`tinydet evaluate --annotations` loads the file with `load_dataset`."""
    Path("set.json").write_text(document if isinstance(document, str) else json.dumps(document))
    with pytest.raises(ValueError, match=message) as refusal:
        coco_sources(Path("set.json"), flight)
    with pytest.raises(ValueError, match=message) as expected:
        load_dataset(Path("set.json"), flight)
    assert str(refusal.value) == str(expected.value)


def test_a_sub_image_keeps_its_corner_and_has_a_name_of_its_own(flight: Path) -> None:
    images = [{"id": n, "file_name": "b.JPG", "width": 4, "height": 4, "corner": [n, 1, n + 4, 5]} for n in (2, 0)]
    Path("set.json").write_text(json.dumps({**DOCUMENT, "images": images}))
    sources = coco_sources(Path("set.json"), flight)
    assert [(source.image_id, source.corner, source.name) for source in sources] == [
        (2, (2, 1, 6, 5), "b_2_1"),
        (0, (0, 1, 4, 5), "b_0_1"),
    ]


def test_every_image_of_a_real_dataset_is_found(shared: Path) -> None:
    folder = shared / "data" / "hituav-val"
    sources = coco_sources(folder / "annotations.json")
    assert len(sources) == 100
    assert {source.path for source in sources} == {source.path for source in find_sources([folder / "images"])}
