"""`tinydet data compose`: folders of composites, resuming, errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tests.support.stick_figure import write_stick_figure
from tinydet.__main__ import main
from tinydet.data.coco import load_dataset


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stick_figure(tmp_path_factory.mktemp("mesh"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with a gray photo, an annotated one, and a manifest."""
    folder = tmp_path / "photos"
    folder.mkdir()
    noise = np.random.default_rng(0).normal(0, 3, (200, 240, 1))
    for name, level in (("plain.jpg", 130), ("cars.jpg", 110)):
        cv2.imwrite(str(folder / name), np.clip(np.full((200, 240, 3), level) + noise, 0, 255).astype(np.uint8))
    boxes = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [100, 90, 40, 20], "area": 800, "iscrowd": 0}]
    coco = {"images": [{"id": 1, "file_name": "cars.jpg", "width": 240, "height": 200}], "annotations": boxes,
            "categories": [{"id": 1, "name": "car"}]}  # fmt: skip
    (folder / "cars.json").write_text(json.dumps(coco))
    write_manifest(folder, {})
    return folder


def write_manifest(folder: Path, changes: dict[str, Any], sets: tuple[str, ...] = ("plain", "cars")) -> Path:
    plain = {"name": "plain", "license": "CC0 1.0", "files": ["plain.jpg"], "gsd": 0.1, "sun": [40, 50]}
    cars = {"name": "cars", "license": "CC BY 3.0", "attribution": "A. Photographer", "files": ["cars.*"], "gsd": 0.1,
            "objects": "cars.json", "classes": {"car": "vehicle"}, "url": "https://example.org/cars",
            "photos": {"cars.jpg": {"credit": "https://example.org/1"}}}  # fmt: skip
    chosen = [{**each, **changes} for each in (plain, cars) if each["name"] in sets]
    path = folder / "backgrounds.json"
    path.write_text(json.dumps({"sets": chosen}))
    return path


def compose(output: Path, mesh: Path, *options: object, images: int = 3) -> int:
    words = [
        "data",
        "compose",
        output,
        "--mesh",
        mesh,
        "--images",
        images,
        "--size",
        "128x128",
        "--workers",
        1,
        *options,
    ]
    return main([str(word) for word in words])


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_the_result_is_a_coco_folder(tmp_path: Path, mesh: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compose(tmp_path / "out", mesh) == 0
    assert "3 images" in capsys.readouterr().out
    dataset = load_dataset(tmp_path / "out")
    assert dataset.classes == ("person", "vehicle")
    assert [(image.width, image.height) for image in dataset.images] == [(128, 128)] * 3


def test_an_interrupted_run_ends_like_one_without_a_break(tmp_path: Path, mesh: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert compose(whole, mesh, images=3) == 0
    assert compose(parts, mesh, images=2) == 0
    journal = parts / "composites.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:-1]) + lines[-1][:20])  # the second image was being written down
    (parts / "annotations.json").unlink()
    assert compose(parts, mesh, images=3) == 0
    assert contents(parts) == contents(whole)


def test_what_is_done_is_not_drawn_again(tmp_path: Path, mesh: Path) -> None:
    output = tmp_path / "out"
    assert compose(output, mesh, images=2) == 0
    times = {path: path.stat().st_mtime_ns for path in (output / "images").iterdir()}
    assert compose(output, mesh, images=3) == 0
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    assert len(list((output / "images").iterdir())) == 3


@pytest.mark.slow
def test_the_number_of_processes_changes_nothing(tmp_path: Path, mesh: Path, photos: Path) -> None:
    options = ("--backgrounds", photos / "backgrounds.json", "--streets", "0.5")
    assert compose(tmp_path / "one", mesh, *options, images=6) == 0
    assert compose(tmp_path / "two", mesh, *options, "--workers", 2, images=6) == 0
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    del one["composites.jsonl"], two["composites.jsonl"]  # in the order in which they were finished
    assert one == two


def test_a_folder_of_other_settings_is_refused(tmp_path: Path, mesh: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compose(tmp_path / "out", mesh, images=1) == 0
    before = contents(tmp_path / "out")
    assert compose(tmp_path / "out", mesh, "--seed", 3, images=1) == 2
    assert "begun with other settings (seed 0, now 3)" in capsys.readouterr().err
    assert contents(tmp_path / "out") == before


def test_real_objects_are_annotated_and_every_license_is_listed(tmp_path: Path, mesh: Path, photos: Path) -> None:
    manifest = write_manifest(photos, {}, ("cars",))
    output = tmp_path / "out"
    assert compose(output, mesh, "--backgrounds", manifest, "--streets", 0, images=6) == 0
    annotations = json.loads((output / "annotations.json").read_text())
    real = [entry for entry in annotations["annotations"] if entry["kind"] == "real"]
    assert real
    assert {entry["category_id"] for entry in real} == {2}
    assert [entry["name"] for entry in annotations["licenses"]] == ["CC BY 3.0"]
    text = (output / "ATTRIBUTION.md").read_text()
    for words in ("CC BY 3.0", "A. Photographer", "https://example.org/cars", "cars.jpg: https://example.org/1", "CC0"):
        assert words in text


def test_the_box_of_a_real_object_moves_with_its_pixels(tmp_path: Path, mesh: Path, photos: Path) -> None:
    pixels = cv2.imread(str(photos / "cars.jpg"))
    pixels[90:110, 100:140] = (20, 20, 230)
    cv2.imwrite(str(photos / "cars.jpg"), pixels)
    manifest = write_manifest(photos, {"paste": []}, ("cars",))
    output = tmp_path / "out"
    assert compose(output, mesh, "--backgrounds", manifest, "--streets", 0, images=6) == 0
    annotations = json.loads((output / "annotations.json").read_text())
    checked = 0
    for entry in annotations["annotations"]:
        x, y, w, h = entry["bbox"]
        if entry["kind"] == "real" and x > 0 and y > 0 and x + w < 128 and y + h < 128:
            image = cv2.imread(str(output / "images" / f"{entry['image_id'] - 1:06d}.jpg")).astype(int)
            red = image[..., 2] - image[..., 1] > 60
            rows, columns = np.nonzero(red)
            np.testing.assert_allclose((columns.min(), rows.min(), np.ptp(columns), np.ptp(rows)), (x, y, w, h), atol=5)
            checked += 1
    assert checked


@pytest.mark.parametrize("pasted", ["person", "vehicle"])
def test_only_the_classes_of_paste_are_added(tmp_path: Path, mesh: Path, photos: Path, pasted: str) -> None:
    manifest = write_manifest(photos, {"paste": [pasted]}, ("plain",))
    assert compose(tmp_path / "out", mesh, "--backgrounds", manifest, "--streets", 0, images=6) == 0
    annotations = json.loads((tmp_path / "out" / "annotations.json").read_text())
    names = {entry["id"]: entry["name"] for entry in annotations["categories"]}
    assert {names[entry["category_id"]] for entry in annotations["annotations"]} == {pasted}


def test_a_photo_that_the_annotations_do_not_list_is_left_out(
    tmp_path: Path, mesh: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "cars.detections.jpg").write_bytes((photos / "cars.jpg").read_bytes())
    manifest = write_manifest(photos, {}, ("cars",))
    assert compose(tmp_path / "out", mesh, "--backgrounds", manifest, "--streets", 0, images=3) == 0
    assert "'cars.detections.jpg'" in capsys.readouterr().err
    images = json.loads((tmp_path / "out" / "annotations.json").read_text())["images"]
    assert {image["photo"] for image in images} == {"cars.jpg"}


def test_nothing_stands_where_the_manifest_forbids_it(tmp_path: Path, mesh: Path, photos: Path) -> None:
    blocked = {"blocked": [[[0, 0], [1, 0], [1, 1], [0, 1]]]}
    manifest = write_manifest(photos, blocked, ("plain",))
    assert compose(tmp_path / "out", mesh, "--backgrounds", manifest, "--streets", 0, images=3) == 0
    assert json.loads((tmp_path / "out" / "annotations.json").read_text())["annotations"] == []


def test_objects_of_a_negative_photo_are_ignore_regions(tmp_path: Path, mesh: Path, photos: Path) -> None:
    manifest = write_manifest(photos, {"paste": [], "ignore_objects": True}, ("cars",))
    assert compose(tmp_path / "out", mesh, "--backgrounds", manifest, "--streets", 0, images=5) == 0
    annotations = json.loads((tmp_path / "out" / "annotations.json").read_text())["annotations"]
    assert annotations
    assert all(entry["ignore"] == entry["iscrowd"] == 1 and entry["kind"] == "real" for entry in annotations)


def test_regions_of_unlabeled_objects_are_a_category_without_objects(tmp_path: Path, mesh: Path, photos: Path) -> None:
    manifest = write_manifest(photos, {"ignore": [[0.3, 0.3, 0.4, 0.4]]})
    assert compose(tmp_path / "out", mesh, "--backgrounds", manifest, "--streets", 0, images=6) == 0
    dataset = load_dataset(tmp_path / "out")
    assert dataset.classes == ("person", "vehicle")
    assert (dataset.labels[dataset.ignore] == -1).any()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"files": ["no.jpg"]}, "has no photo 'no.jpg' of the set 'plain'"),
        ({"gsd": None}, "no `gsd` for 'plain.jpg'"),
        ({"gsd": 5}, "gsd"),
        ({"licence": "x"}, "licence"),
        ({"photos": {"b.jpg": {}}}, "describes 'b.jpg', which is none of its files"),
        ({"weight": 0}, "all sets have weight 0"),
        ({"objects": "cars.json"}, "the category 'car'"),
        ({"blocked": [[[0, 0], [2, 0], [1, 1]]]}, "blocked"),
    ],
)
def test_a_wrong_manifest_is_refused_before_anything_is_written(
    tmp_path: Path, mesh: Path, photos: Path, changes: dict[str, Any], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = write_manifest(photos, changes, ("plain",))
    assert compose(tmp_path / "out", mesh, "--backgrounds", manifest) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_wrong_options_are_refused(tmp_path: Path, mesh: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, (empty, other) = tmp_path / "out", (tmp_path / "empty", tmp_path / "other")
    empty.mkdir()
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    for target, folder, options, words in (
        (output, tmp_path / "none", (), "is no folder; name the one with MakeHuman's"),
        (output, empty, (), "has no 3dobjs/base.obj"),
        (output, mesh, ("--photos", empty), "name it with --backgrounds"),
        (output, mesh, ("--streets", "0.5"), "needs photos"),
        (output, mesh, ("--backgrounds", tmp_path / "no.json"), "no.json"),
        (other, mesh, (), "was not begun by this command"),
    ):
        assert compose(target, folder, *options) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
    assert not output.exists()
    assert main(["data", "compose", str(output), "--mesh", str(mesh), "--size", "20x20"]) == 2
    assert "128 to 4096" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["3dobjs/base.obj", "rigs/default.mhskel", "rigs/default_weights.mhw"])
def test_a_damaged_mesh_is_refused(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_stick_figure(tmp_path / "mesh")
    damaged = folder / name
    damaged.write_text(damaged.read_text()[:300] if name.endswith("obj") else '{"bones": {}}')
    assert compose(tmp_path / "out", folder) == 2
    error = capsys.readouterr().err
    assert "mesh" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"text", None])
def test_a_damaged_photo_is_refused_before_anything_is_written(
    content: bytes | None, mesh: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """OpenCV decodes an incomplete JPEG file and fills the rest with gray."""
    photo = photos / "plain.jpg"
    photo.write_bytes(content or photo.read_bytes()[: photo.stat().st_size // 2])
    assert compose(tmp_path / "out", mesh, "--backgrounds", photos / "backgrounds.json", "--streets", 0.9) == 2
    error = capsys.readouterr().err
    assert "plain.jpg" in error and "remove it from the manifest" in error
    assert not (tmp_path / "out" / "images").exists()


def test_a_range_of_scales_begins_with_the_lowest(
    mesh: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = write_manifest(photos, {"gsd": [0.05, 0.02]})
    assert compose(tmp_path / "out", mesh, "--backgrounds", manifest) == 2
    assert "lowest value first" in capsys.readouterr().err
