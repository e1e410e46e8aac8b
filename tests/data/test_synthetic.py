from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from tinydet.data import synthetic
from tinydet.data.coco import load_dataset, read_pixels
from tinydet.data.synthetic import Person, builtin_dataset, main, render_scene, write_dataset, write_scene


def boxes_of(people: list[Person]) -> np.ndarray:
    return np.array([person[:4] for person in people]).reshape(-1, 4)


def test_the_seed_determines_the_scene() -> None:
    pixels, people = render_scene(200, 150, seed=5, density=400)
    again, same_people = render_scene(200, 150, seed=5, density=400)
    assert pixels.shape == (150, 200, 3)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, again)
    assert people == same_people
    other, other_people = render_scene(200, 150, seed=6, density=400)
    assert not np.array_equal(pixels, other)
    assert people != other_people


@pytest.mark.parametrize("seed", range(6))
def test_boxes_lie_inside_the_image(seed: int) -> None:
    _, people = render_scene(150, 100, seed=seed, density=2000)
    boxes = boxes_of(people)
    assert len(boxes) > 5
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] >= 0.5).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= (150, 100)).all()


def test_a_person_changes_pixels_only_in_its_box() -> None:
    changed, boxed = [], []
    for seed in range(8):
        empty, nobody = render_scene(256, 256, seed=seed, density=0)
        pixels, people = render_scene(256, 256, seed=seed, density=150)
        assert nobody == []
        difference = np.abs(pixels.astype(int) - empty).max(axis=2)
        inside = np.zeros(difference.shape, bool)
        for x, y, width, height, ignore in people:
            part = (slice(int(y), int(np.ceil(y + height))), slice(int(x), int(np.ceil(x + width))))
            inside[part] = True
            if not ignore:
                changed.append(difference[part].max())
        boxed.append((difference[inside].mean(), difference[~inside].mean()))
    assert np.mean(np.array(changed) > 25) > 0.95
    assert all(within > 10 * beyond for within, beyond in boxed)


@pytest.mark.parametrize("density", [50, 400])
def test_density_is_people_per_million_pixels(density: float) -> None:
    counts = [len(render_scene(192, 192, seed=seed, density=density)[1]) for seed in range(24)]
    expected = density * 192 * 192 / 1e6
    # People who are hidden, or whose group reaches outside the image, are missing.
    assert 0.75 * expected < np.mean(counts) < 1.15 * expected


@pytest.mark.parametrize("size", [(15, 100), (100, 15), (20_000, 100)])
def test_an_invalid_size_is_rejected(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"16 to 16384 pixels wide and high, not {size[0]}x{size[1]}"):
        render_scene(*size, seed=0)


@pytest.mark.parametrize("density", [-1.0, float("nan"), float("inf")])
def test_an_invalid_density_is_rejected(density: float) -> None:
    with pytest.raises(ValueError, match="density is 0 to 20000 people"):
        render_scene(64, 64, seed=0, density=density)


def test_a_written_dataset_is_a_coco_folder(tmp_path: Path) -> None:
    write_dataset(tmp_path / "set", count=5, width=96, height=64, seed=3, density=800)
    dataset = load_dataset(tmp_path / "set")
    assert dataset.classes == ("person",)
    assert dataset.category_ids == (1,)
    assert len(dataset.images) == 5
    assert dataset.clipped == 0
    assert dataset.objects.sum() > 5
    for i in range(5):
        assert read_pixels(dataset, i).shape == (64, 96, 3)
    document = json.loads((tmp_path / "set" / "annotations.json").read_text())
    assert document["info"]["license"] == "generated"
    for annotation in document["annotations"]:
        assert annotation["area"] == pytest.approx(annotation["bbox"][2] * annotation["bbox"][3], abs=1e-3)
        assert annotation["iscrowd"] == 0
        assert annotation["ignore"] in (0, 1)


def test_the_images_of_a_dataset_differ_and_depend_only_on_its_seed(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("same", 3), ("other", 4)):
        write_dataset(tmp_path / name, count=2, width=64, height=64, seed=seed)
    files = {
        name: [f.read_bytes() for f in sorted((tmp_path / name / "images").iterdir())]
        for name in ("a", "same", "other")
    }
    assert files["a"] == files["same"]
    assert len({*files["a"], *files["other"]}) == 4


def test_a_folder_that_is_not_empty_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").touch()
    with pytest.raises(ValueError, match=r"is not empty; name a new folder"):
        write_dataset(tmp_path, count=1, width=64, height=64, seed=0)
    with pytest.raises(ValueError, match="at least one image, not 0"):
        write_dataset(tmp_path / "new", count=0, width=64, height=64, seed=0)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_a_scene_is_written_with_its_annotations(tmp_path: Path, suffix: str) -> None:
    annotations = write_scene(tmp_path / f"coast.big{suffix}", 128, 96, seed=1, density=900)
    assert annotations == tmp_path / "coast.big.annotations.json"
    dataset = load_dataset(annotations, tmp_path)
    pixels, people = render_scene(128, 96, seed=1, density=900)
    assert len(dataset.boxes) == len(people)
    error = np.abs(read_pixels(dataset, 0).astype(int) - pixels)
    assert error.mean() < 6  # JPEG artifacts; swapped color channels would give far more
    if suffix != ".jpg":
        assert error.max() == 0


@pytest.mark.parametrize(("name", "message"), [("scene.xyz", "no image format"), ("file/scene.png", "file")])
def test_an_invalid_path_is_rejected_before_the_scene_is_drawn(
    tmp_path: Path, name: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(synthetic, "render_scene", lambda *_, **__: pytest.fail("drawn in vain"))
    with pytest.raises((ValueError, OSError), match=message):
        write_scene(tmp_path / name, 64, 64, seed=0)


def test_the_command_writes_a_dataset_or_a_scene(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "set"), "--images", "2", "--size", "64x48", "--seed", "9"]) == 0
    assert [(image.width, image.height) for image in load_dataset(tmp_path / "set").images] == [(64, 48)] * 2
    assert main([str(tmp_path / "big.png"), "--scene", "--size", "160x120", "--density", "500"]) == 0
    assert cv2.imread(str(tmp_path / "big.png")).shape == (120, 160, 3)
    assert "big.annotations.json" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [["--size", "64"], ["--size", "64x-4"], ["--seed", "-1"], ["--images", "0"], ["--scene", "--images", "2"]],
)
def test_the_command_rejects_invalid_options_in_one_line(
    tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code: object = main([str(tmp_path / "set"), *arguments])
    except SystemExit as left:
        code = left.code
    assert code == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "set").exists()


def test_the_built_in_validation_split_is_generated_once_and_has_tiny_people(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINYDET_CACHE", str(tmp_path))
    folder = builtin_dataset("val")
    dataset = load_dataset(folder)
    assert {(image.width, image.height) for image in dataset.images} == {(384, 384)}
    assert len(dataset.images) == 60
    boxes = dataset.boxes[dataset.objects]
    sizes = np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(axis=1))
    assert len(boxes) > 600
    assert 7.5 <= np.median(sizes) <= 10.5
    assert dataset.ignore.any()
    assert any(len(dataset.of_image(i).boxes) == 0 for i in range(60))
    monkeypatch.setattr(synthetic, "render_scene", lambda *_, **__: pytest.fail("drawn again"))
    assert builtin_dataset("val") == folder


def test_an_unknown_split_is_rejected() -> None:
    with pytest.raises(ValueError, match="train and val, not 'test'"):
        builtin_dataset("test")


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"TINYDET_CACHE": "one", "XDG_CACHE_HOME": "two"}, "one"),
        ({"TINYDET_CACHE": "", "XDG_CACHE_HOME": "two"}, "two/tinydet"),
        ({"HOME": "three"}, "three/.cache/tinydet"),
    ],
)
def test_environment_variables_set_the_cache_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], folder: str
) -> None:
    monkeypatch.setitem(synthetic.BUILTIN, "val", (1, 7))
    monkeypatch.setattr(synthetic, "BUILTIN_SIZE", 32)
    monkeypatch.delenv("TINYDET_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, str(tmp_path / value) if value else "")
    assert builtin_dataset("val") == tmp_path / folder / f"synthetic-{synthetic.VERSION}" / "val"


def test_concurrent_processes_generate_one_cache(tmp_path: Path) -> None:
    program = (
        "from tinydet.data import synthetic\n"
        "synthetic.BUILTIN['train'] = (6, 1)\n"
        "print(synthetic.builtin_dataset('train'))\n"
    )
    root = str(Path(synthetic.__file__).parents[2])
    environment = os.environ | {"TINYDET_CACHE": str(tmp_path), "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    runs = [
        subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    folders = {run.communicate(timeout=120)[0].strip() for run in runs}
    assert [run.returncode for run in runs] == [0, 0, 0]
    assert folders == {str(tmp_path / f"synthetic-{synthetic.VERSION}" / "train")}
    assert len(load_dataset(Path(folders.pop())).images) == 6
    assert os.listdir(tmp_path / f"synthetic-{synthetic.VERSION}") == ["train"]  # no temporary folders are left


def test_the_first_of_two_processes_keeps_its_folder(tmp_path: Path) -> None:
    for name in ("first", "second"):
        write_dataset(tmp_path / name, count=2, width=32, height=32, seed=0)
    first = (tmp_path / "first").stat().st_ino
    synthetic._move_into_place(tmp_path / "second", tmp_path / "first", 2)
    assert (tmp_path / "first").stat().st_ino == first  # so its readers are not disturbed


def test_an_interrupted_generation_leaves_no_partial_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYDET_CACHE", str(tmp_path))
    monkeypatch.setitem(synthetic.BUILTIN, "val", (3, 7))
    monkeypatch.setattr(synthetic, "BUILTIN_SIZE", 32)
    drawn = []

    def interrupted(*_: object, **__: object) -> tuple[np.ndarray, list[Person]]:
        drawn.append(1)
        if len(drawn) == 2:
            raise KeyboardInterrupt
        return render_scene(32, 32, seed=0)

    monkeypatch.setattr(synthetic, "render_scene", interrupted)
    with pytest.raises(KeyboardInterrupt):
        builtin_dataset("val")
    monkeypatch.setattr(synthetic, "render_scene", render_scene)
    assert list((tmp_path / f"synthetic-{synthetic.VERSION}").iterdir()) == []
    assert len(load_dataset(builtin_dataset("val")).images) == 3


@pytest.mark.parametrize("lost", ["annotations.json", "images/000001.jpg"])
def test_a_damaged_cache_is_regenerated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str) -> None:
    monkeypatch.setenv("TINYDET_CACHE", str(tmp_path))
    monkeypatch.setitem(synthetic.BUILTIN, "val", (2, 7))
    monkeypatch.setattr(synthetic, "BUILTIN_SIZE", 32)
    folder = builtin_dataset("val")
    (folder / lost).unlink()
    assert builtin_dataset("val") == folder
    assert len(load_dataset(folder).images) == 2
    assert os.listdir(folder.parent) == ["val"]


def test_an_unwritable_cache_is_reported_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TINYDET_CACHE", str(tmp_path / "file"))
    with pytest.raises(OSError, match=r"cannot be written .*; name a folder for it in TINYDET_CACHE"):
        builtin_dataset("val")
