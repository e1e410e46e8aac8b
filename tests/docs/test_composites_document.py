from __future__ import annotations

import json
import re
from pathlib import Path

import cv2
import numpy as np

from tinydet.data.composites.manifest import PhotoSet, View, read_manifest

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "composites.md").read_text(encoding="utf-8")


def test_the_manifest_of_the_document_can_be_read(tmp_path: Path) -> None:
    (block,) = re.findall(r"```json\n(.*?)```", DOCUMENT, re.DOTALL)
    manifest = json.loads(block)
    (tmp_path / "harbor").mkdir()
    for name in manifest["sets"][0]["photos"]:
        cv2.imwrite(str(tmp_path / "harbor" / name), np.zeros((8, 8, 3), np.uint8))
    (tmp_path / "backgrounds.json").write_text(block)
    first, second = read_manifest(tmp_path / "backgrounds.json")
    assert first.view.blocked and first.view.ignore and first.view.gsd == second.view.gsd == 0.03
    assert second.view.sun == "overcast" and second.view.pitch == 45


def test_every_field_of_a_manifest_is_documented() -> None:
    described = set(re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", DOCUMENT, re.MULTILINE))))
    assert described == set(View.model_fields) | set(PhotoSet.model_fields)
