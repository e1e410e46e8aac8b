"""The preview shows the tiles that training sees, with frames around the boxes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from tinydet.data.coco import find_dataset, load_dataset
from tinydet.data.samples import Sample, TrainingTiles
from tinydet.train.__main__ import main
from tinydet.train.preview import draw_sample, write_preview


def test_a_frame_surrounds_the_object_and_leaves_its_pixels() -> None:
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[5:9, 10:16] = 200
    box, none = np.array([[10, 5, 16, 9]], np.float32), np.zeros((0, 4), np.float32)
    drawn = draw_sample(Sample(pixels, box, np.zeros(1, np.int64), none)).permute(1, 2, 0).numpy()
    assert (drawn[5:9, 10:16] == 200).all()
    frame = (drawn == (0, 255, 0)).all(axis=2)
    assert frame[4, 9:17].all() and frame[9, 9:17].all() and frame[4:10, 9].all() and frame[4:10, 16].all()
    assert frame.sum() == 2 * 8 + 2 * 4


def test_the_preview_is_the_same_for_the_same_seed_and_has_eight_tiles(squares: Path, tmp_path: Path) -> None:
    tiles = TrainingTiles(load_dataset(*find_dataset(squares)), 96, 32)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_preview(tiles, tmp_path / f"{name}.png", seed=seed)
    pictures = {name: Image.open(tmp_path / f"{name}.png") for name in "abc"}
    assert pictures["a"].tobytes() == pictures["b"].tobytes() != pictures["c"].tobytes()
    assert pictures["a"].size == (4 * (96 + 4) + 4, 2 * (96 + 4) + 4)


def test_with_a_dry_run_the_preview_is_all_that_is_written(squares: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--preset", "small", "--weights-backbone", "none", "--tile", "96", "--augment", "thermal"]
    assert main(["--data", str(squares), *flags, "--dry-run", "--preview", "out/tiles.png"]) == 0
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["tiles.png"]
    assert main(["--data", str(squares), *flags, "--dry-run", "--preview", "out"]) == 2
    assert main(["--data", str(squares), *flags, "--dry-run", "--preview", "tiles.jpg"]) == 2
