from __future__ import annotations

import gzip
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from tinydet.__main__ import main as tinydet
from tinydet.data.coco import load_dataset
from tinydet.data.coco_file import load_document, write_document
from tinydet.data.output_folder import ImageWriter, choose_output, new_folder

NOISE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


def test_a_new_folder_is_complete_or_absent(tmp_path: Path) -> None:
    def interrupted() -> None:
        with new_folder(tmp_path / "set") as work:
            (work / "half").write_text("")
            assert work.parent == tmp_path  # renaming does not cross file systems
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "set").mkdir()  # an empty folder may exist
    with new_folder(tmp_path / "set") as work:
        (work / "whole").write_text("")
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["set", "set/whole"]


def test_a_new_folder_replaces_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path, message in ((tmp_path / "file", "is a file"), (tmp_path, "is not empty")):
        with pytest.raises(ValueError, match=message), new_folder(path):
            raise AssertionError("not reached")


def test_missing_folders_are_created_and_stay_only_with_the_result(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "a" / "b"):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
    with new_folder(tmp_path / "a" / "b"):
        pass
    assert (tmp_path / "a" / "b").is_dir()


@pytest.mark.parametrize(
    ("form", "name", "written"),
    [
        ("same", "deep/er/a.png", "deep/er/a.png"),
        ("same", "a.JPG", "a.JPG"),
        ("same", "a.tif", "a.png"),
        ("same", "a.b", "a.png"),
        ("same", "a", "a.png"),
        ("png", "a.jpg", "a.png"),
        ("jpg", "a.png", "a.jpg"),
    ],
)
def test_an_image_keeps_its_name_as_far_as_its_format_allows(
    tmp_path: Path, form: str, name: str, written: str
) -> None:
    assert ImageWriter(tmp_path / "images", form).write(name, NOISE) == written
    pixels = cv2.imread(str(tmp_path / "images" / written))[..., ::-1]
    assert np.abs(pixels.astype(int) - NOISE).max() <= (0 if written.endswith("png") else 8)


def test_images_of_one_name_get_unique_names(tmp_path: Path) -> None:
    folder = ImageWriter(tmp_path / "images", "png")
    assert [folder.write(name, NOISE) for name in ("a.jpg", "a.png", "a.tif", "b.png")] == [
        "a.png", "a-2.png", "a-3.png", "b.png",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["../a.png", "/a.png", "b/../../a.png", "..\\a.png"])
def test_an_image_cannot_leave_its_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="leaves the image folder"):
        ImageWriter(tmp_path / "images").write(name, NOISE)
    assert [path.name for path in tmp_path.rglob("*")] == ["images"]


@pytest.mark.parametrize(("form", "quality", "message"), [("gif", 90, "same, png, jpg"), ("jpg", 101, "1 to 100")])
def test_a_wrong_format_or_quality_is_refused(tmp_path: Path, form: str, quality: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageWriter(tmp_path / "images", form, quality)


def test_results_are_written_next_to_their_source(squares: Path, tmp_path: Path) -> None:
    with_images, annotations_only = load_dataset(squares), load_dataset(squares / "annotations.json")
    assert choose_output(squares, with_images, None, "cut") == squares.with_name(f"{squares.name}-cut")
    assert (
        choose_output(squares / "annotations.json", annotations_only, None, "cut") == squares / "annotations.cut.json"
    )
    assert choose_output(tmp_path / "a.json.gz", with_images, None, "cut") == tmp_path / "a-cut"
    assert choose_output(tmp_path / "a.json.gz", annotations_only, None, "cut") == tmp_path / "a.cut.json"


def test_a_document_is_written_as_it_was_read(squares: Path, tmp_path: Path) -> None:
    document = load_document(squares / "annotations.json")
    for name in ("a.json", "a.json.gz"):
        write_document(tmp_path / name, document.content)
        assert load_document(tmp_path / name).content == document.content
    assert gzip.decompress((tmp_path / "a.json.gz").read_bytes()) == (tmp_path / "a.json").read_bytes()


@pytest.mark.parametrize(
    "arguments",
    [
        ["cut", "--tile", "64", "--overlap", "16"],
        ["erase"],
        ["rescale", "--factor", "1/2"],
        ["scale-match", "--target", "SOURCE"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_every_tool_writes_a_folder_that_loads_with_its_images(
    squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    words = [str(squares) if word == "SOURCE" else word for word in arguments]
    assert tinydet(["data", words[0], str(squares), *words[1:], "--output", str(tmp_path / "new")]) == 0
    assert str(tmp_path / "new") in capsys.readouterr().out
    document, dataset = load_document(tmp_path / "new"), load_dataset(squares)
    assert document.dataset.classes == dataset.classes
    assert len(document.images) >= len(dataset.images)
    for image in document.images:
        assert document.pixels(image).shape == (image["height"], image["width"], 3)


@pytest.mark.parametrize("tool", [["erase"], ["rescale", "--factor", "2"], ["scale-match", "--target", "corners.json"]])
def test_a_corner_file_is_refused_with_the_command_that_writes_its_tiles(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tool: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert tinydet(["data", "cut", str(squares / "annotations.json"), "--tile", "64", "--output", "corners.json"]) == 0
    assert tinydet(["data", tool[0], "corners.json", *tool[1:]]) == 2
    assert "write the tiles first: tinydet data cut" in capsys.readouterr().err


def test_a_damaged_image_leaves_no_folder(squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads((squares / "annotations.json").read_text())
    (tmp_path / "images").mkdir()
    for image in document["images"]:
        content = (squares / "images" / image["file_name"]).read_bytes()
        (tmp_path / "images" / image["file_name"]).write_bytes(content if image["id"] != 4 else content[:-30])
    (tmp_path / "annotations.json").write_text(json.dumps(document))
    assert tinydet(["data", "cut", str(tmp_path), "--tile", "64", "--output", str(tmp_path / "new")]) == 2
    assert "4.png: truncated PNG" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["annotations.json", "images"]
