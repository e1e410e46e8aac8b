"""`tinydet salpha`: its table, its JSON and its error messages."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from coco_files import random_coco, write_coco
from designs import FASTER_RCNN

from tinydet.data.coco import load_dataset
from tinydet.salpha.__main__ import main
from tinydet.salpha.dataset import statistics_of
from tinydet.salpha.detectors import anchor_counting


@pytest.mark.parametrize("detector", ["retinanet", "faster_rcnn"])
def test_the_command_reproduces_the_authors_counts(detector: str, shared: Path, tmp_path: Path) -> None:
    case = json.loads((shared / "cases" / "salpha" / "A_lognormal.json").read_text())
    expected = case["expected"][{"retinanet": "retina_S_alpha", "faster_rcnn": "fpn_S_alpha"}[detector]]
    sizes = [(image["width"], image["height"]) for image in case["images"]]
    boxes = [{"image_id": n, "bbox": box} for n, image in enumerate(case["images"], 1) for box in image["boxes"]]
    file = write_coco(tmp_path / "case.json", sizes, boxes)
    released = ["--detector", detector, "--anchors", "released", "--count", "anchor"]
    assert main([str(file), *released, "--json", str(tmp_path / "salpha.json")]) == 0
    found = json.loads((tmp_path / "salpha.json").read_text())
    assert list(found["counts"].values()) == expected["NP_first"]
    assert found["boxes"] == expected["n_gt_after_clip"]
    assert [round(alpha, 3) for alpha in found["alpha"].values()] == expected["alpha45_34_23"][::-1]


def test_table_and_json_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = random_coco(tmp_path / "a.json", [(640, 512)] * 10)
    assert main([str(file), "--json", str(tmp_path / "salpha.json")]) == 0
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "salpha.json").read_text())
    assert set(found) >= {"counts", "alpha_raw", "alpha", "boxes", "images", "seconds"}
    assert sum(found["counts"].values()) == found["boxes"] == 2000 and found["images"] == 10
    rows = {line.split()[0]: line.split() for line in printed.splitlines() if line}
    for (level, count), stride in zip(found["counts"].items(), (4, 8, 16, 32, 64), strict=True):
        assert rows[level][1:3] == [str(stride), f"{count:,}"]
    for edge, raw in found["alpha_raw"].items():
        assert rows[edge][1:3] == [f"{raw:.3f}", f"{found['alpha'][edge]:.3f}"]
    assert [row for row in rows if row in found["counts"]] == ["P2", "P3", "P4", "P5", "P6"]
    assert "2,000 objects (person, car) in 10 images" in printed


def test_options_reach_the_statistics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = random_coco(tmp_path / "a.json", [(640, 512)] * 2), tmp_path / "salpha.json"
    flags = "--detector faster_rcnn --categories person --count anchor --alpha-range 0.5,0.6 --tile 256 --overlap 32"
    assert main([str(file), *flags.split(), "--scale", "0.5", "--flip", "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    options = {"tile": 256, "overlap": 32, "scale": 0.5, "flip": True}
    counting = anchor_counting(FASTER_RCNN, "anchor")
    people = load_dataset(file, categories=["person"])
    expected = statistics_of(people, counting, **options, alpha_range=(0.5, 0.6)).to_json()
    for key in ("counts", "alpha_raw", "alpha", "boxes", "images", "warnings"):
        assert found[key] == expected[key]
    how = {
        "detector": "faster_rcnn",
        "options": {"assign": "iou"},
        "anchors": "tinydet",
        "alpha_range": [0.5, 0.6],
        **options,
    }
    counted = {"count": "anchor", "counted": counting.statistic.text, "alpha_range": [0.5, 0.6]}
    assert found["rule"] == {**how, **counted}
    assert found["source"] == "a.json"
    assert f"in {found['images']} tiles" in capsys.readouterr().out


def test_a_coco_folder_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random_coco(tmp_path / "annotations.json", [(640, 512)])
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.png").touch()  # not an image: pixels are not read
    assert main([str(tmp_path)]) == 0
    assert "200 objects" in capsys.readouterr().out


def test_undefined_factors_are_shown_as_a_dash_and_null(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_coco(tmp_path / "a.json", [(640, 512)], [{"bbox": [9, 9, 8, 8]}] * 30)
    assert main([str(file), "--json", str(tmp_path / "salpha.json")]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert any(line.split() == ["P4->P3", "-", "1.000"] for line in printed)
    assert "note: no objects on P3, P4, P5, P6" in printed
    found = json.loads((tmp_path / "salpha.json").read_text())
    assert found["alpha_raw"] == {"P3->P2": 0.0, "P4->P3": None, "P5->P4": None}
    assert found["alpha"] == {"P3->P2": 0.2, "P4->P3": 1.0, "P5->P4": 1.0}


def test_large_objects_get_the_advice_to_use_alpha_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    boxes = [{"bbox": [9, 9, side, side]} for side in (20, 60, 60, 120, 250) for _ in range(20)]
    assert main([str(write_coco(tmp_path / "a.json", [(640, 512)], boxes))]) == 0
    assert "the objects are not tiny for this detector; use alpha = 1" in capsys.readouterr().out


def test_a_file_without_boxes_gives_alpha_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flags in ([], ["--tile", "256"]):
        assert main([str(write_coco(tmp_path / "a.json", [(640, 512)], [])), *flags]) == 0
        assert "alpha, finest first: 1,1,1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--overlap", "64"], "--overlap needs --tile"),
        (["--tile", "64", "--overlap", "128"], "overlap must be at least 0 and smaller than the tile of 64, got 128"),
        (["--detector", "libra_rcnn", "--tile", "96"], "--tile must be a multiple of 64 for Libra R-CNN"),
        (["--alpha-range", "2,1"], "0 <= LOW <= HIGH"),
        (["--categories", "dog"], "person, car"),
        (["--json", f"{__file__}/salpha.json"], "is a file, not a folder"),
    ],
)
def test_a_user_error_is_one_line_and_exit_code_2(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(random_coco(tmp_path / "a.json", [(640, 512)])), *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("tinydet salpha: error: ") and error.count("\n") == 1
    assert message in error


def test_a_malformed_alpha_range_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["a.json", "--alpha-range", "wide"])
    assert "expected LOW,HIGH as in 0.2,2.0, got 'wide'" in capsys.readouterr().err


def test_counting_needs_no_torch(tmp_path: Path) -> None:
    file = random_coco(tmp_path / "a.json", [(640, 512)])
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from tinydet.salpha.__main__ import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "200 objects" in done.stdout


@pytest.mark.slow
def test_with_no_arguments_the_built_in_dataset_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    printed = capsys.readouterr().out
    assert "objects (person) in 240 images" in printed
    assert "not tiny" not in printed
