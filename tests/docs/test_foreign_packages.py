"""The adapters of docs/api.md and the blocks of docs/from-sahi.md, with the packages that they are for.

Ultralytics (AGPL), Transformers and SAHI are installed into an environment of their own, and get random weights.
"""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from foreign_packages import ROOT, make_environment, run_script

pytestmark = pytest.mark.slow

ADAPTERS = """
import json
from pathlib import Path
import numpy as np
from document_blocks import run_blocks
from random_detectors import USE_SSD, save_rtdetr, save_yolo
from tinydet.runtime import load, read_image

save_yolo(Path("yolo11n.pt"))
save_rtdetr(Path("PekingU/rtdetr_r50vd"))
section = Path(PAGE).read_text(encoding="utf-8").partition("## Detectors of other frameworks")[2]
names, missing = run_blocks(section.partition("## Custom")[0], USE_SSD, load=load)
assert not missing, missing
tile = np.zeros((640, 640, 3), np.uint8)
tile[:] = 124, 116, 104  # outside the scene
scene = read_image("scene.png")
tile[: scene.shape[0], : scene.shape[1]] = scene
results = {}
for function in ("torchvision_boxes", "ultralytics_boxes", "transformers_boxes"):
    (raw,) = names[function](tile[None])
    boxes, scores = (raw["boxes"], raw["scores"]) if isinstance(raw, dict) else (raw[:, :4], raw[:, 4])
    found = load(names[function], classes=[str(i) for i in range(91)], tile=640).detect("scene.png")
    expected = boxes[scores >= 0.3].numpy().clip(0, (160, 120, 160, 120))
    expected = expected[(expected[:, 2:] > expected[:, :2]).all(axis=1)]
    results[function] = [sorted(expected.round(2).tolist()), sorted(found.boxes.round(2).tolist())]
print(json.dumps(results))
"""

SAHI = """
import json
from pathlib import Path
from document_blocks import run_blocks
from random_detectors import USE_SSD
from sahi.predict import get_prediction

names, missing = run_blocks(Path(PAGE).read_text(encoding="utf-8"), USE_SSD)
assert not missing, missing
assert Path("sahi/scene.png").is_file()
theirs = get_prediction("one_tile.png", names["sahi_model"]).object_prediction_list
ours = names["load"](names["boxes_of"], classes=names["names"], tile=128).detect("one_tile.png")
print(json.dumps([
    sorted([*map(float, one.bbox.to_xyxy()), float(one.score.value), one.category.name] for one in theirs),
    sorted([*one.box.tolist(), one.score, one.class_name] for one in ours),
]))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_environment(tmp_path_factory.mktemp("foreign"), ["sahi", "ultralytics", "transformers"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (128, 160, 3), np.uint8)
    (tmp_path / "flight").mkdir()
    for name, width, height in (("scene", 160, 120), ("flight/1", 160, 120), ("one_tile", 128, 128)):
        cv2.imwrite(str(tmp_path / f"{name}.png"), pixels[:height, :width])
    return tmp_path


def script(text: str, page: str) -> str:
    return f"PAGE = {str(ROOT / 'docs' / page)!r}\n{text}"


def test_each_adapter_gives_the_boxes_of_its_framework(python: Path, folder: Path) -> None:
    printed = run_script(python, script(ADAPTERS, "api.md"), folder)
    for function, (expected, found) in json.loads(printed.splitlines()[-1]).items():
        assert len(found) > 0, function
        np.testing.assert_allclose(found, expected, atol=0.02, err_msg=function)


def test_on_one_tile_sahi_and_tinydet_find_the_same(python: Path, folder: Path) -> None:
    theirs, ours = json.loads(run_script(python, script(SAHI, "from-sahi.md"), folder).splitlines()[-1])
    assert len(ours) > 0 and [row[5] for row in ours] == [row[5] for row in theirs]
    np.testing.assert_allclose([row[:5] for row in ours], [row[:5] for row in theirs], rtol=1e-4, atol=0.01)
