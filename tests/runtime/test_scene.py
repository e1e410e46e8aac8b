from __future__ import annotations

import builtins
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest

from tinydet.runtime import scene as module
from tinydet.runtime.scene import Limits, measure_limits, open_scene, read_image, to_rgb8

pytestmark = pytest.mark.filterwarnings("ignore:Dataset has no geotransform")  # of the files that are written here


def gradient(height: int = 60, width: int = 90) -> np.ndarray:
    """RGB that differs along both axes and in each band."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 2, y * 3, 255 - x - y], -1).astype(np.uint8)


def write(path: Path, rgb: np.ndarray, *parameters: int) -> Path:
    assert cv2.imwrite(str(path), rgb[..., ::-1] if rgb.ndim == 3 and rgb.shape[2] == 3 else rgb, parameters)
    return path


def write_raster(path: Path, bands: np.ndarray, **options: object) -> Path:
    rasterio = pytest.importorskip("rasterio")
    profile = {
        "driver": "GTiff",
        "count": bands.shape[2],
        "dtype": bands.dtype,
        "height": bands.shape[0],
        "width": bands.shape[1],
    }
    colours = options.pop("colorinterp", None)
    with rasterio.open(path, "w", **profile | options) as file:
        file.write(np.moveaxis(bands, -1, 0))
        if colours:
            file.colorinterp = [rasterio.enums.ColorInterp[name] for name in colours]
    return path


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".jp2"])
def test_a_lossless_file_gives_its_pixels_in_rgb(tmp_path: Path, suffix: str) -> None:
    if suffix == ".tif":
        path = write_raster(tmp_path / "a.tif", gradient(), photometric="RGB")
    elif suffix == ".jp2":
        pytest.importorskip("rasterio")
        path = write(tmp_path / "a.jp2", gradient(), cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000)
    else:
        path = write(tmp_path / f"a{suffix}", gradient())
    assert np.array_equal(read_image(path), gradient())


def test_windows_are_what_the_whole_image_shows_there(tmp_path: Path) -> None:
    whole = gradient()
    sources = [whole, write(tmp_path / "a.png", whole), write_raster(tmp_path / "a.tif", whole, photometric="RGB")]
    for source in sources:
        with open_scene(source) as scene:
            assert (scene.width, scene.height) == (90, 60)
            assert np.array_equal(scene.read(7, 11, 20, 30), whole[11:41, 7:27])
            half = scene.read(10, 20, 40, 20, (20, 10))
            expected = whole[20:40, 10:50].reshape(10, 2, 20, 2, 3).mean((1, 3))
            assert np.abs(half - expected).max() <= 0.5
            with pytest.raises(ValueError, match="no window 20x30 at"):
                scene.read(80, 11, 20, 30)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    upright = np.zeros((40, 64, 3), np.uint8)
    upright[:8, :16] = 255, 0, 0
    upright[-8:, :16] = 0, 0, 255
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: np.rot90(upright.transpose(1, 0, 2), 2),
        8: np.rot90(upright, -1),
    }[orientation]
    path = write(tmp_path / "a.jpg", np.ascontiguousarray(stored), cv2.IMWRITE_JPEG_QUALITY, 100)
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01" + struct.pack(">HHIHHI", 0x0112, 3, 1, orientation, 0, 0)
    data = path.read_bytes()
    path.write_bytes(data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:])
    seen = read_image(path).astype(int)
    assert seen.shape == upright.shape
    assert np.abs(seen - upright).mean() < 3


def test_grey_and_alpha_become_three_bands(tmp_path: Path) -> None:
    grey = gradient()[..., 0]
    assert np.array_equal(read_image(write(tmp_path / "grey.png", grey)), np.repeat(grey[..., None], 3, 2))
    alpha = np.dstack([gradient()[..., ::-1], np.zeros((60, 90), np.uint8)])  # wholly transparent: the colours stay
    assert np.array_equal(read_image(write(tmp_path / "alpha.png", alpha)), gradient())
    assert np.array_equal(to_rgb8(np.dstack([grey, grey * 0])), np.repeat(grey[..., None], 3, 2))
    assert np.array_equal(to_rgb8(np.dstack([gradient(), gradient()])), gradient())
    assert to_rgb8(np.array([[True, False]])).tolist() == [[[255] * 3, [0] * 3]]


def test_bands_of_a_raster_that_are_alpha_are_dropped(tmp_path: Path) -> None:
    bands = np.dstack([np.full((60, 90), 9, np.uint8), gradient()])
    path = write_raster(tmp_path / "argb.tif", bands, colorinterp=["alpha", "red", "green", "blue"])
    assert np.array_equal(read_image(path), gradient())


def test_a_palette_is_looked_up(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    index = np.array([[0, 1], [2, 1]], np.uint8)
    colours = {0: (10, 20, 30, 255), 1: (200, 0, 0, 255), 2: (0, 0, 250, 255)}
    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", count=1, dtype="uint8", width=2, height=2) as file:
        file.write(index, 1)
        file.write_colormap(1, colours)
    expected = np.array([[colours[int(i)][:3] for i in row] for row in index])
    assert np.array_equal(read_image(tmp_path / "a.tif"), expected)


def test_sixteen_bits_are_stretched_between_percentiles_and_the_same_in_every_format(tmp_path: Path) -> None:
    pixels = np.arange(10_000, dtype=np.uint16).reshape(100, 100) + 5000
    seen = [
        to_rgb8(pixels, (10, 90)),
        read_image(write(tmp_path / "a.png", pixels), (10, 90)),
        read_image(write_raster(tmp_path / "a.tif", pixels[..., None]), (10, 90)),
    ]
    flat = seen[0][..., 0].ravel()
    assert (flat[:1000] == 0).all()
    assert (flat[9000:] == 255).all()
    assert flat[5000] == 128
    assert (np.diff(flat.astype(int)) >= 0).all()
    for other in seen[1:]:
        assert np.array_equal(seen[0], other)


def test_all_windows_of_a_scene_share_one_stretch(tmp_path: Path) -> None:
    pixels = np.arange(10_000, dtype=np.uint16).reshape(100, 100)
    whole = to_rgb8(pixels)
    for source in (pixels, write_raster(tmp_path / "a.tif", pixels[..., None])):
        with open_scene(source) as scene:
            assert np.array_equal(scene.read(0, 90, 100, 10), whole[90:])


def test_nodata_and_nan_count_neither_in_the_stretch_nor_in_the_picture(tmp_path: Path) -> None:
    pixels = np.linspace(0, 100, 10_000, dtype=np.float32).reshape(100, 100)
    path = write_raster(tmp_path / "a.tif", np.where(pixels < 50, -9999, pixels)[..., None], nodata=-9999)
    seen = read_image(path)[..., 0]
    assert seen[:50].max() == 0
    assert seen[75, 0] == pytest.approx(128, abs=2)
    assert np.array_equal(to_rgb8(np.where(pixels < 50, np.nan, pixels))[..., 0], seen)


def test_limits_apply_to_each_band() -> None:
    pixels = np.array([[[0, 100, 7], [50, 300, 7], [100, 500, 9]]], np.uint16)
    assert measure_limits(pixels, (0, 100)) == Limits((0, 100, 7), (100, 500, 9))
    assert to_rgb8(pixels, (0, 100))[0].tolist() == [[0, 0, 0], [128, 128, 0], [255, 255, 255]]
    assert to_rgb8(np.full((2, 2), 700, np.uint16)).tolist() == [[[0] * 3] * 2] * 2  # flat: nothing to divide by
    with pytest.raises(ValueError, match=r"got \(5, 5\)"):
        measure_limits(pixels, (5, 5))


@pytest.mark.parametrize("pixels", [np.zeros((2, 2, 2, 2)), np.zeros((0, 5, 3)), np.array([["a"]]), np.zeros(7)])
def test_arrays_that_are_no_image_are_refused(pixels: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected an image"):
        open_scene(pixels)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp", ".tif", ".jp2"])
def test_a_truncated_file_is_refused_in_one_line_that_names_it(
    tmp_path: Path, suffix: str, capfd: pytest.CaptureFixture
) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (300, 400, 3), dtype=np.uint8)
    path = tmp_path / f"scene{suffix}"
    if suffix == ".tif":
        write_raster(path, image, compress="deflate", blockysize=16)
    else:
        if suffix == ".jp2":
            pytest.importorskip("rasterio")
        write(path, image)
    whole = path.read_bytes()
    assert read_image(path).shape == image.shape
    for share in (0.001, 0.1, 0.5, 0.9, 0.99):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ValueError, match=f"scene{suffix}: ") as error:
            read_image(path)
        assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_a_jpeg_whose_end_is_zeros_or_whose_thumbnail_alone_is_whole_is_truncated(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jpg", gradient(300, 120))
    whole = path.read_bytes()
    thumbnail = b"Exif\0\0" + whole
    segment = b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    path.write_bytes(whole[:2] + segment + whole[2:])
    assert np.array_equal(read_image(path).shape, (300, 120, 3))
    for damaged in (
        whole[: len(whole) // 2] + bytes(len(whole) // 2),
        whole[:2] + segment + whole[2 : len(whole) // 2],
    ):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="truncated JPEG"):
            read_image(path)


def test_bytes_after_the_end_of_a_jpeg_do_no_harm(tmp_path: Path) -> None:
    for progressive in (0, 1):
        path = write(
            tmp_path / "a.jpg", gradient(), cv2.IMWRITE_JPEG_PROGRESSIVE, progressive, cv2.IMWRITE_JPEG_RST_INTERVAL, 2
        )
        expected = read_image(path)
        path.write_bytes(path.read_bytes() + b"trailer of a camera" + bytes(100))
        assert np.array_equal(read_image(path), expected)


def test_what_is_no_image_is_refused_in_one_line_that_names_it(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    empty, text, fake = tmp_path / "empty.jpg", tmp_path / "text.jpg", tmp_path / "fake.tif"
    empty.write_bytes(b"")
    text.write_text("<html>not found</html>")
    fake.write_bytes(b"II*\0" + bytes(50))
    with pytest.raises(ValueError, match=r"empty.jpg is empty \(0 bytes\)"):
        read_image(empty)
    with pytest.raises(ValueError, match=r"text.jpg: damaged, or not an image"):
        read_image(text)
    pytest.importorskip("rasterio")
    with pytest.raises(ValueError, match=r"fake.tif: damaged, or not an image"):
        read_image(fake)
    with pytest.raises(FileNotFoundError, match=r"gone.jpg does not exist"):
        read_image(tmp_path / "gone.jpg")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        read_image(tmp_path)
    assert capfd.readouterr() == ("", "")


def test_a_file_of_too_many_pixels_is_read_by_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rasterio")
    monkeypatch.setattr(module, "MAX_DECODED", 1000)
    path = write(tmp_path / "large.png", gradient())
    with open_scene(path) as scene:
        assert np.array_equal(scene.read(30, 20, 40, 30), gradient()[20:50, 30:70])
    with pytest.raises(ValueError, match="90x60 pixels are too many"):
        read_image(path)


def test_without_rasterio_a_tiff_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(b"II*\0" + bytes(50))
    imported = builtins.__import__

    def without(name: str, *rest: object, **options: object) -> object:
        if name.partition(".")[0] == "rasterio":
            raise ModuleNotFoundError("No module named 'rasterio'", name="rasterio")
        return imported(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModuleNotFoundError, match=r"a.tif.*pip install 'tinydet\[geo\]'"):
        open_scene(path)


def test_a_rotated_geotiff_shows_what_the_photo_of_it_shows(shared: Path) -> None:
    pytest.importorskip("rasterio")
    folder = shared / "data" / "bigscene-plaza" / "images"
    with (
        open_scene(folder / "minsk_plaza_DJI_0010.jpg") as photo,
        open_scene(folder / "minsk_plaza_DJI_0010_rotated.tif") as raster,
    ):
        assert (photo.width, photo.height) == (raster.width, raster.height) == (4000, 2250)
        for x, y in ((0, 0), (1700, 900), (3360, 1610)):
            difference = photo.read(x, y, 640, 640).astype(int) - raster.read(x, y, 640, 640)
            assert np.abs(difference).mean() < 6


def test_a_large_mosaic_is_read_by_windows_and_as_an_overview(shared: Path) -> None:
    pytest.importorskip("rasterio")
    (path,) = (shared / "data" / "bigscene-brighton-geotiff" / "images").glob("*.tif")
    with open_scene(path) as scene:
        assert (scene.width, scene.height) == (6175, 5907)
        window = scene.read(3000, 2500, 1024, 1024)
        assert window.std() > 10
        half = scene.read(3000, 2500, 1024, 1024, (512, 512))
        mean = window.reshape(512, 2, 512, 2, 3).mean((1, 3))
        assert np.abs(half - mean).max() <= 0.5
        assert scene.read(0, 0, scene.width, scene.height, (617, 590)).shape == (590, 617, 3)
