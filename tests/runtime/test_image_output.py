from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from tinydet.runtime.image_output import check_image_path, longest_side, save_image


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".jpg", ".jpeg", ".webp", ".tif", ".bmp"])
def test_a_suffix_that_passes_the_check_is_written(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    check_image_path(path)
    save_image(path, np.full((30, 40, 3), (200, 100, 50), np.uint8))
    with Image.open(path) as image:
        assert image.size == (40, 30)
        assert image.convert("RGB").getpixel((20, 15)) == pytest.approx((200, 100, 50), abs=4)


@pytest.mark.parametrize("suffix", ["", ".txt", ".xyz", ".exr", ".pgm", ".pbm", ".j", ".json", "."])
def test_a_suffix_without_an_encoder_for_color_images_is_refused_before_the_work(
    suffix: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=r"use \.jpg, \.png or \.webp"):
        check_image_path(Path(f"a{suffix}"))
    assert capfd.readouterr() == ("", ""), "OpenCV prints nothing"


@pytest.mark.parametrize("suffix", [".webp", ".jpg", ".png"])
def test_an_image_of_the_longest_side_can_be_written(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    save_image(path, np.zeros((4, longest_side(path), 3), np.uint8))
    assert cv2.imread(str(path)).shape == (4, longest_side(path), 3)


def test_a_larger_image_is_an_error_of_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.webp"
    with pytest.raises(ValueError, match=r"a\.webp: OpenCV cannot write 16384x4 pixels"):
        save_image(path, np.zeros((4, longest_side(path) + 1, 3), np.uint8))
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []
