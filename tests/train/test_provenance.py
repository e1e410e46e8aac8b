"""A checkpoint's origin: another dataset has another hash."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tinydet.data.coco import find_dataset, load_dataset
from tinydet.train.provenance import data_hash


def test_any_change_of_boxes_classes_or_files_changes_the_hash_and_a_copy_has_it(squares: Path, tmp_path: Path) -> None:
    def hash_after(change) -> str:
        folder = tmp_path / "data"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(squares, folder)
        document = json.loads((folder / "annotations.json").read_text())
        change(document, folder)
        (folder / "annotations.json").write_text(json.dumps(document, indent=2))
        return data_hash(load_dataset(*find_dataset(folder)))

    def moved(document, folder):
        document["annotations"][0]["bbox"][2] = 11.5

    def ignored(document, folder):
        document["annotations"][0]["ignore"] = 1

    def renamed(document, folder):
        document["categories"][0]["name"] = "box"

    def replaced(document, folder):
        shutil.copy(folder / "images" / "3.png", folder / "images" / "2.png")
        document["images"][2]["width"] = document["images"][3]["width"]

    kept = hash_after(lambda document, folder: None)
    assert kept == data_hash(load_dataset(*find_dataset(squares)))
    assert len({kept, *map(hash_after, (moved, ignored, renamed, replaced))}) == 5
