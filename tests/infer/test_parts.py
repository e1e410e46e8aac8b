"""`--part i/n` and `--join`: many processes that share a folder write what one process writes."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from tinydet._internal.locks import lock_path, locked
from tinydet.infer import parts
from tinydet.infer.__main__ import main
from tinydet.runtime.backends.onnx_runtime import OnnxRuntimeBackend
from tinydet.runtime.scenes import raster
from tinydet.spec import ModelSpec

SPEC = ModelSpec(
    classes=("square", "bar"),
    category_ids=(7, 0),
    detector="cells",
    backbone="none",
    tile=64,
    max_batch=4,
    max_detections=50,
    nms_in_graph=True,
    object_sizes=(6.0, 8.0, 40.0),  # larger than the overlap: there is a coarse pass
)
FORMATS = "coco,csv,geojson"
pytestmark = pytest.mark.filterwarnings("ignore:Dataset has no geotransform")


def cells(seed: int, width: int, height: int) -> np.ndarray:
    """Black pixels with white squares of 8 or 32 pixels."""
    rng, pixels = np.random.default_rng(seed), np.zeros((height, width), np.uint8)
    for _ in range(width * height // 2000):
        side = int(rng.choice([8, 8, 8, 32]))
        x, y = (int(rng.integers(0, max(1, limit - side))) // 8 * 8 for limit in (width, height))
        pixels[y : y + side, x : x + side] = 255
    return pixels


@pytest.fixture(scope="module")
def survey(make_onnx: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, scenes of several sizes and depths, and what one process writes."""
    rasterio = pytest.importorskip("rasterio")
    folder = tmp_path_factory.mktemp("survey")
    make_onnx(folder / "model.onnx", spec=SPEC)
    (folder / "flight").mkdir()
    for n, size in enumerate([(150, 90), (40, 40), (320, 400)]):
        assert cv2.imwrite(str(folder / "flight" / f"{n}.png"), cells(n, *size))
    deep = np.random.default_rng(5).integers(0, 300, (500, 230)).astype(np.uint16)
    deep[cells(6, 230, 500) > 0] = 4000
    where = {"crs": "EPSG:32632", "transform": rasterio.Affine(0.1, 0, 5e5, 0, -0.1, 5e6)}
    with rasterio.open(
        folder / "flight" / "deep.tif", "w", driver="GTiff", count=1, dtype="uint16", width=230, height=500, **where
    ) as file:
        file.write(deep, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run("--output", "one.csv") == 0
    return folder


@pytest.fixture
def folder(survey: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    shutil.copytree(survey, tmp_path, dirs_exist_ok=True, copy_function=shutil.copy2)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words: object, image: str = "flight") -> int:
    options = ("--overlap", "24", "--model", "model.onnx", "--backend", "onnx", "--threads", "1")
    return main(["--image", image, *options, *map(str, words)])


def run_parts(count: int, *words: object, leave_out: int = 0) -> None:
    numbers = [number for number in range(1, count + 1) if number != leave_out]
    random.Random(count).shuffle(numbers)
    for number in numbers:
        assert run(*words, "--part", f"{number}/{count}") == 0


def same(one: Path, two: Path) -> bool:
    return one.read_bytes() == two.read_bytes()


def test_the_join_of_parts_in_any_order_is_the_output_of_one_process(
    folder: Path, capsys, runs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []
    original = raster.measure_limits
    monkeypatch.setattr(raster, "measure_limits", lambda *given: measured.append(1) or original(*given))
    run_parts(3, "--output", "all.csv")
    assert len(measured) == 1  # the stretch of the 16-bit raster, whose rows are in several parts
    assert len(list((folder / "all.parts").glob("deep.*-*.journal"))) > 1
    tiles = sum(runs)
    runs.clear()
    assert run("--output", "all.csv", "--join") == 0
    assert runs == []
    assert len(measured) == 1
    assert same(folder / "all.csv", folder / "one.csv")
    run_parts(3, "--output", "all.csv")  # a second run finds everything done
    assert (runs, tiles > 0) == ([], True)
    assert "in place of --part" in capsys.readouterr().out


def test_only_a_missing_or_stale_part_is_run_again(folder: Path, capsys, runs: list[int]) -> None:
    run_parts(4, "--output", "all.csv", leave_out=3)
    capsys.readouterr()
    assert run("--output", "all.csv", "--join") == 2
    error = capsys.readouterr().err
    assert (
        "all.parts has 3 of 4 parts; part 3/4: it was not run. Run the same command with --part i/4 for i = 3" in error
    )
    assert not (folder / "all.csv").exists()
    assert run("--output", "all.csv", "--part", "3/4") == 0
    # A scene that is replaced by one of the same size makes the parts stale that have tiles of it.
    scene = folder / "flight" / "1.png"
    scene.write_bytes(scene.read_bytes())
    assert run("--output", "all.csv", "--join") == 2
    error = capsys.readouterr().err
    assert "its scenes have changed since: 1.png. Run the same command with --part" in error
    (number,) = error.rpartition("i = ")[2].split(",")
    runs.clear()
    assert run("--output", "all.csv", "--part", f"{int(number)}/4") == 0
    assert sum(runs) == 1  # the only tile of that scene
    assert run("--output", "all.csv", "--join") == 0
    assert same(folder / "all.csv", folder / "one.csv")
    # So does a journal that was cut off after its part was complete.
    journal = max((folder / "all.parts").glob("2.*.journal"), key=lambda path: path.stat().st_size)
    journal.write_bytes(journal.read_bytes()[:-9])
    assert run("--output", "all.csv", "--join") == 2
    assert f"its journal {journal.name} is not complete" in capsys.readouterr().err


def test_parts_of_other_settings_are_refused(folder: Path, capsys) -> None:
    words = ("--output", "all.csv")
    assert run(*words, "--part", "1/2") == 0
    assert run(*words, "--part", "2/2", "--score", "0.6") == 2
    assert (
        "part 1/2 in all.parts was run with other settings (score was 0.3); use the same ones"
        in capsys.readouterr().err
    )
    assert run(*words, "--part", "2/3") == 2
    assert "part 1/2 in all.parts belongs to a run of 2 parts, not 3" in capsys.readouterr().err
    assert run(*words, "--join", "--merge", "nms") == 2
    assert 'all parts in all.parts were run with other settings (merge was "seam")' in capsys.readouterr().err
    assert run("--output", "other.csv", "--join") == 2
    assert "other.parts has no parts to join" in capsys.readouterr().err
    with locked(lock_path(folder / "all.parts" / "1-of-2.json")):
        assert run(*words, "--part", "1/2") == 2
    assert "part 1/2 is being run by another process" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "1/0", "a/b", "1/1000000", "1 / 3"])
def test_a_part_that_does_not_exist_is_refused(text: str, capsys) -> None:
    with pytest.raises(SystemExit):
        main(["--image", "x.png", "--part", text])
    assert "argument --part: expected i/n, such as 1/8 to 8/8" in capsys.readouterr().err


@pytest.mark.slow
def test_an_interrupted_part_continues(folder: Path, runs: list[int], monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    counted = OnnxRuntimeBackend.run

    def stops(self: OnnxRuntimeBackend, images: np.ndarray) -> object:
        if len(runs) == 5:
            raise KeyboardInterrupt
        return counted(self, images)

    with monkeypatch.context() as patch:
        patch.setattr(OnnxRuntimeBackend, "run", stops)
        assert run("--output", "all.csv", "--part", "1/1") == 130
    assert "finished tiles of part 1/1 are kept in all.parts" in capsys.readouterr().out
    assert run("--output", "all.csv", "--join") == 2
    assert "part 1/1: it is still running, or was interrupted" in capsys.readouterr().err
    done = sum(runs)
    assert run("--output", "all.csv", "--part", "1/1") == 0
    again = sum(runs) - done
    runs.clear()
    assert run("--output", "whole.csv", "--overlap", "24") == 0
    assert done + again == sum(runs)
    assert run("--output", "all.csv", "--join") == 0
    assert same(folder / "all.csv", folder / "one.csv")


@pytest.mark.slow
def test_an_unreadable_scene_is_skipped_by_its_part_and_by_the_join(folder: Path, capsys) -> None:
    (folder / "flight" / "0.png").write_bytes((folder / "flight" / "0.png").read_bytes()[:60])
    assert run("--output", "whole.csv", "--skip-unreadable") == 3
    assert run("--output", "all.csv", "--part", "1/2") == 2
    assert [run("--output", "all.csv", "--skip-unreadable", "--part", f"{n}/2") for n in (1, 2)] == [3, 0]
    assert run("--output", "all.csv", "--join") == 2
    assert "0.png" in capsys.readouterr().err
    assert run("--output", "all.csv", "--skip-unreadable", "--join", "--summary", "run.json") == 3
    assert same(folder / "all.csv", folder / "whole.csv")
    assert json.loads((folder / "run.json").read_text())["total"]["skipped"] == 1


def test_videos_are_left_out_with_a_reason(folder: Path, capsys) -> None:
    writer = cv2.VideoWriter("flight/clip.avi", cv2.VideoWriter_fourcc(*"MJPG"), 5, (64, 64))
    writer.write(np.zeros((64, 64, 3), np.uint8))
    writer.release()
    assert run("--output", "found/", "--part", "1/1", image="flight/clip.avi") == 2
    assert "flight/clip.avi: a video is not divided into parts, because its frames depend" in capsys.readouterr().err
    assert run("--output", "found/", "--part", "1/1") == 0
    assert "flight/clip.avi is left out: a video is not divided" in capsys.readouterr().err
    assert run("--output", "found/", "--join") == 3
    assert "clip.avi: a video is not divided" in capsys.readouterr().err
    assert sorted(path.name for path in (folder / "found").glob("*.json")) == [
        f"{name}.detections.json" for name in ("0", "1", "2", "deep")
    ]


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 7, 60])
def test_all_outputs_are_those_of_one_process(folder: Path, count: int) -> None:
    (folder / "maps").mkdir()
    for name in ("deep.tif",):
        shutil.move(folder / "flight" / name, folder / "maps" / name)
    for image, formats in (("flight", "coco,csv,yolo"), ("maps", FORMATS)):
        words = ("--format", formats, "--draw")
        one, many = (folder / f"{image}-{name}" for name in ("one", "many"))
        assert run("--output", f"{one}/", *words, f"{one}/", "--crops", f"{one}/", image=image) == 0
        for number in range(1, count + 1):
            part = ("--part", f"{number}/{count}")
            assert run("--output", f"{many}/", *words, f"{many}/", "--crops", f"{many}/", *part, image=image) == 0
        assert run("--output", f"{many}/", *words, f"{many}/", "--crops", f"{many}/", "--join", image=image) == 0
        shutil.rmtree(many / "parts")
        names = sorted(path.relative_to(one) for path in one.rglob("*"))
        assert names == sorted(path.relative_to(many) for path in many.rglob("*"))
        assert all(same(one / name, many / name) for name in names if (one / name).is_file())


def test_outputs_name_the_folder_of_the_parts(folder: Path) -> None:
    from tinydet.infer.jobs import OutputOptions
    from tinydet.runtime.scenes.sources import find_sources

    sources = find_sources(["flight"])
    for outputs, expected in (
        (OutputOptions("all.json"), "all.parts"),
        (OutputOptions("found/"), "found/parts"),
        (OutputOptions(draw="drawn"), "drawn/parts"),
        (OutputOptions(), folder / "flight" / "detections.parts"),
    ):
        assert parts.parts_folder(outputs, sources) == Path(expected)
    with pytest.raises(ValueError, match="is a device"):
        parts.parts_folder(OutputOptions("/dev/null"), sources)
