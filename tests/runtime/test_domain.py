"""Scenes that differ from the training images: by color, by brightness and detail, by the size of a pixel."""

from __future__ import annotations

import dataclasses
import random
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from tinydet.runtime.bundled import model_path
from tinydet.runtime.domain import doubt, doubtful_below, look_at, unlike_training
from tinydet.runtime.model_files import read_spec
from tinydet.runtime.scenes import ArrayScene, Image, Scene, open_scene
from tinydet.runtime.scenes.window import Window
from tinydet.spec import Domain, ModelSpec

GRAY = Domain(30, (0, 0, 1), (90, 120, 150), (20, 35, 50), (2, 4, 6), class_sizes=((10, 15, 30), (20, 45, 120)))
COLOR = dataclasses.replace(GRAY, chroma=(9, 30, 70))
BOTH = dataclasses.replace(GRAY, chroma=(0, 5, 70))


def spec_of(domain: Domain | None) -> ModelSpec:
    return ModelSpec(("person", "car"), (1, 2), "retinanet", "any", tile=64, domain=domain)


def textured(seed: int = 0, side: int = 300) -> np.ndarray:
    """A gray image (side, side, 3) with a mean of 120, a deviation of 35 and smooth structures."""
    noise = np.random.default_rng(seed).normal(size=(side, side)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 4)
    gray = np.clip(120 + 35 * smooth / smooth.std(), 1, 254).astype(np.uint8)
    return np.repeat(gray[..., None], 3, axis=2)


def tinted(pixels: np.ndarray, amount: int) -> np.ndarray:
    """The red channel raised and the blue one lowered, by `amount` together."""
    shift = np.array([amount - amount // 2, 0, -(amount // 2)])
    return np.clip(pixels.astype(int) + shift, 0, 255).astype(np.uint8)


def unlike(pixels: np.ndarray, domain: Domain | None, **options: float) -> str:
    return unlike_training(ArrayScene("scene.png", pixels), spec_of(domain), **options)


def test_the_look_of_an_image_is_that_of_its_pixels() -> None:
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, :30], pixels[:, 30:] = (100, 100, 100), (150, 130, 140)
    look = look_at(ArrayScene("halves", pixels))
    assert look is not None
    gray = np.array([100.0, cv2.cvtColor(pixels[:1, 59:], cv2.COLOR_RGB2GRAY)[0, 0]])
    assert look.chroma == 20  # more than a tenth of the pixels have max - min = 20
    assert (look.brightness, look.contrast) == pytest.approx((gray.mean(), gray.std()), abs=0.5)


def test_borders_and_pixels_without_data_do_not_count() -> None:
    pixels = tinted(textured(), 30)
    framed = cv2.copyMakeBorder(pixels, 90, 90, 200, 200, cv2.BORDER_CONSTANT, value=(0, 0, 0))
    inside, outside = look_at(ArrayScene("a", pixels)), look_at(ArrayScene("b", framed))
    assert inside is not None and outside is not None
    assert outside.brightness == pytest.approx(inside.brightness, abs=6)
    assert abs(outside.chroma - inside.chroma) <= 1
    assert look_at(ArrayScene("black", np.zeros((50, 50, 3), np.uint8))) is None
    masked = np.ma.masked_all((50, 50, 3), np.uint8)
    assert look_at(ArrayScene("masked", masked)) is None


@pytest.mark.parametrize("shape", [(1, 1), (1, 700), (2, 3), (127, 129), (640, 512)])
def test_an_image_of_any_shape_has_a_look(shape: tuple[int, int]) -> None:
    look = look_at(ArrayScene("any", np.full((*shape, 3), 77, np.uint8)))
    assert look is not None and tuple(look) == (0, 77, 0, 0)


class Counted(Scene):
    """Gray, of a size that fits no memory; counts the pixels that are read."""

    name, width, height = "huge", 10**6, 10**6

    def __init__(self) -> None:
        self.pixels, self.lowest = 0, 0

    def _read(self, x: int, y: int, width: int, height: int, size: tuple[int, int]) -> Image:
        self.pixels += width * height
        self.lowest = max(self.lowest, y + height)
        return np.full((*size[::-1], 3), 90, np.uint8)


def test_a_terapixel_scene_costs_a_few_windows() -> None:
    scene = Counted()
    assert look_at(scene) is not None and scene.pixels < 200_000


def test_of_a_file_that_is_decoded_from_its_start_only_the_start_is_read() -> None:
    scene = Counted()
    scene.in_order = True
    assert look_at(scene) is not None and scene.lowest < 200
    scene.lowest = 0
    assert look_at(Window(scene, (0, 0, 5000, 5000))) is not None and scene.lowest < 200


@pytest.mark.parametrize("amount", [8, 15, 40, 90])
def test_color_against_gray_is_noticed_both_ways(amount: int) -> None:
    gray, color = textured(), tinted(textured(), amount)
    assert "it is in color, and they are gray" in unlike(color, GRAY)
    assert "it is gray, and they are in color" in unlike(gray, COLOR)
    for domain, pixels in ((GRAY, gray), (COLOR, color), (BOTH, gray), (BOTH, color), (None, color)):
        assert unlike(pixels, domain) == ""


def test_what_a_camera_or_a_codec_adds_to_a_gray_image_is_no_color() -> None:
    marked = textured()
    marked[:20, :200] = (255, 120, 0)  # a logo
    marked[140:160, 148:152] = (0, 255, 0)  # a cross hair
    _, encoded = cv2.imencode(".jpg", textured(), [cv2.IMWRITE_JPEG_QUALITY, 30])
    for pixels in (marked, cv2.imdecode(encoded, cv2.IMREAD_COLOR), tinted(textured(), 3)):
        assert unlike(pixels, GRAY) == ""


def test_frames_of_another_sensor_or_of_16_bits_are_like_those_of_training() -> None:
    wide = textured()[..., 0].astype(np.uint16) * 20 + 7000
    assert unlike(wide, GRAY) == ""
    for gain in (0.6, 1.4):
        assert unlike(np.clip(120 + gain * (textured().astype(float) - 120), 1, 254).astype(np.uint8), GRAY) == ""
    assert unlike(np.full((90, 90, 3), 110, np.uint8), GRAY) == ""  # there is nothing to find


def test_a_dark_a_bright_and_a_noisy_scene_are_named() -> None:
    noisy = np.random.default_rng(0).integers(1, 254, (300, 300, 1)).repeat(3, axis=2).astype(np.uint8)
    for pixels, word in ((textured() // 8 + 1, "darker"), (255 - textured() // 10, "brighter"), (noisy, "fine detail")):
        assert word in unlike(pixels, GRAY)


@pytest.mark.parametrize("gsd", [0.002, 0.01, 0.3, 1.0])
@pytest.mark.parametrize("domain", [GRAY, dataclasses.replace(GRAY, gsd=(0.04, 0.06, 0.09))], ids=["lengths", "gsd"])
def test_the_scale_that_is_advised_settles_the_warning_about_the_scale(gsd: float, domain: Domain) -> None:
    """Within the factors that a scene may be resized by; a resized image shows nothing more."""
    assert unlike(textured(), domain, gsd=0.06) == ""
    warning = unlike(textured(), domain, gsd=gsd)
    assert "on the ground" in warning or "a person measures" in warning
    advised = re.search(r"--scale ([0-9.]+)", warning)
    if advised is not None:
        assert "training" not in unlike(textured(), domain, gsd=gsd, scale=float(advised[1]))
    else:
        assert gsd / 0.06 > 4 or gsd < 0.06 / 16


def test_classes_of_unknown_size_have_no_scale() -> None:
    spec = dataclasses.replace(spec_of(GRAY), classes=("ship", "kelp"))
    assert unlike_training(ArrayScene("a", textured()), spec, gsd=30.0) == ""


def test_a_scene_that_cannot_be_read_is_left_to_the_scan() -> None:
    class Broken(Counted):
        def _read(self, x: int, y: int, width: int, height: int, size: tuple[int, int]) -> Image:
            raise ValueError("damaged")

    assert unlike_training(Broken(), spec_of(GRAY)) == ""


def test_doubt_needs_many_detections_most_of_them_near_the_threshold() -> None:
    assert doubt(49, 49, [0.51]) == "" and doubt(69, 100, [0.51]) == ""
    assert "70 of 100 detections (70 %) score below 0.51" in doubt(70, 100, [0.51])
    assert doubtful_below(0.05) == 0.05  # all boxes are above it: a low threshold is for measuring
    assert [doubtful_below(each) for each in (0.3, 0.6, 1.0)] == sorted(
        doubtful_below(each) for each in (0.3, 0.6, 1.0)
    )


@pytest.mark.parametrize(("suffix", "in_order"), [(".png", True), (".jpg", True), (".tif", False)])
def test_a_raster_says_whether_it_is_decoded_from_its_start(tmp_path: Path, suffix: str, in_order: bool) -> None:
    pytest.importorskip("rasterio")
    from tinydet.runtime.scenes.raster import RasterScene

    path = tmp_path / f"scene{suffix}"
    cv2.imwrite(str(path), textured())
    with RasterScene(path, (0.5, 99.5)) as scene:
        assert scene.in_order == in_order
        assert unlike_training(scene, spec_of(GRAY)) == ""


# ---------------------------------------------------------------------------------------------------- real images


def images(folder: Path, count: int | None) -> list[Path]:
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".png", ".tif"))
    return found if count is None else random.Random(0).sample(found, min(count, len(found)))


@pytest.mark.parametrize("count", [12, pytest.param(None, marks=pytest.mark.slow)])
def test_no_frame_of_its_kind_is_unlike_the_bundled_model(shared: Path, count: int | None) -> None:
    spec = read_spec(model_path("thermal"))
    for path in images(shared / "data" / "hituav-val", count):
        with open_scene(path) as scene:
            assert unlike_training(scene, spec) == ""


@pytest.mark.parametrize("count", [2, pytest.param(25, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["rgb-minsk-val", "tinyperson640-val", "aerialcars-kitais"])
def test_every_color_scene_is_unlike_it(shared: Path, name: str, count: int) -> None:
    spec = read_spec(model_path("thermal"))
    for path in images(shared / "data" / name, count):
        with open_scene(path) as scene:
            assert "it is in color, and they are gray" in unlike_training(scene, spec), path
