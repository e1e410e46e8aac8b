from __future__ import annotations

import builtins
import concurrent.futures
import resource
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest

from tinydet.runtime.scenes import Scene, image_file, open_scene, raster, read_image
from tinydet.runtime.scenes.pixels import Limits, measure_limits, to_rgb8

pytestmark = pytest.mark.filterwarnings("ignore:Dataset has no geotransform")  # from the files that the tests write


def gradient(height: int = 60, width: int = 90) -> np.ndarray:
    """An RGB image that varies along both axes and in each band."""
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
    colors = options.pop("colorinterp", None)
    with rasterio.open(path, "w", **profile | options) as file:
        file.write(np.moveaxis(bands, -1, 0))
        if colors:
            file.colorinterp = [rasterio.enums.ColorInterp[name] for name in colors]
    return path


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".jp2"])
def test_a_lossless_file_is_read_exactly_as_rgb(tmp_path: Path, suffix: str) -> None:
    if suffix == ".tif":
        path = write_raster(tmp_path / "a.tif", gradient(), photometric="RGB")
    elif suffix == ".jp2":
        pytest.importorskip("rasterio")
        path = write(tmp_path / "a.jp2", gradient(), cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000)
    else:
        path = write(tmp_path / f"a{suffix}", gradient())
    assert np.array_equal(read_image(path), gradient())


def test_windows_equal_crops_of_the_whole_image(tmp_path: Path) -> None:
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


def write_turned(path: Path, orientation: int) -> np.ndarray:
    """Write a JPEG with an EXIF orientation and return its upright pixels."""
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
    write(path, np.ascontiguousarray(stored), cv2.IMWRITE_JPEG_QUALITY, 100)
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01" + struct.pack(">HHIHHI", 0x0112, 3, 1, orientation, 0, 0)
    data = path.read_bytes()
    path.write_bytes(data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:])
    return upright


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    upright = write_turned(tmp_path / "a.jpg", orientation)
    seen = read_image(tmp_path / "a.jpg").astype(int)
    assert seen.shape == upright.shape
    assert np.abs(seen - upright).mean() < 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_windows_of_a_raster_with_exif_orientation_are_upright(
    tmp_path: Path, orientation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("rasterio")
    upright = write_turned(tmp_path / "a.jpg", orientation)
    monkeypatch.setattr(image_file, "MAX_DECODED", 1000)
    with open_scene(tmp_path / "a.jpg") as scene:
        assert isinstance(scene, raster.RasterScene)
        assert (scene.width, scene.height) == (64, 40)
        for x, y, width, height in ((0, 0, 64, 40), (0, 0, 20, 10), (3, 28, 30, 12), (50, 1, 14, 39)):
            window = scene.read(x, y, width, height).astype(int)
            assert np.abs(window - upright[y : y + height, x : x + width]).mean() < 8  # JPEG blurs color edges
        assert scene.read(0, 0, 64, 40, (32, 20)).shape == (20, 32, 3)


def test_grayscale_and_alpha_become_three_bands(tmp_path: Path) -> None:
    gray = gradient()[..., 0]
    assert np.array_equal(read_image(write(tmp_path / "gray.png", gray)), np.repeat(gray[..., None], 3, 2))
    alpha = np.dstack(
        [gradient()[..., ::-1], np.zeros((60, 90), np.uint8)]
    )  # fully transparent, which keeps the colors
    assert np.array_equal(read_image(write(tmp_path / "alpha.png", alpha)), gradient())
    assert np.array_equal(to_rgb8(np.dstack([gray, gray * 0])), np.repeat(gray[..., None], 3, 2))
    assert np.array_equal(to_rgb8(np.dstack([gradient(), gradient()])), gradient())
    assert to_rgb8(np.array([[True, False]])).tolist() == [[[255] * 3, [0] * 3]]


def test_alpha_bands_of_a_raster_are_dropped(tmp_path: Path) -> None:
    bands = np.dstack([np.full((60, 90), 9, np.uint8), gradient()])
    path = write_raster(tmp_path / "argb.tif", bands, colorinterp=["alpha", "red", "green", "blue"])
    assert np.array_equal(read_image(path), gradient())


def test_bands_marked_red_green_and_blue_are_used_in_this_order(tmp_path: Path) -> None:
    rgb = gradient()
    bands = np.dstack([np.full((60, 90), 9, np.uint8), rgb[..., 2], rgb[..., 1], rgb[..., 0]])
    path = write_raster(tmp_path / "nbgr.tif", bands, colorinterp=["undefined", "blue", "green", "red"])
    assert np.array_equal(read_image(path), rgb)


def test_selected_bands_are_used_whatever_their_color_is(tmp_path: Path) -> None:
    rgb = gradient()
    five = np.dstack([rgb, np.full((60, 90), 50, np.uint8), np.full((60, 90), 77, np.uint8)])
    sources = {"array": five, "a.tif": write_raster(tmp_path / "a.tif", five)}
    for name, source in sources.items():
        with open_scene(source, bands=(5, 3, 1)) as scene:
            assert np.array_equal(scene.read(0, 0, 90, 60), five[..., [4, 2, 0]])
        with open_scene(source, bands=(4,)) as scene:
            assert (scene.read(0, 0, 90, 60) == 50).all()
        for wrong in ((6,), (0, 1, 2), (1, 2), (1, 2, 3, 4)):
            with pytest.raises(ValueError, match=f"{name}: bands are one .* of 1 to 5, got {wrong[0]}"):
                open_scene(source, bands=wrong)
    with open_scene(write(tmp_path / "a.png", rgb), bands=(3, 2, 1)) as scene:
        assert np.array_equal(scene.read(0, 0, 90, 60), rgb[..., ::-1])


def test_selected_16_bit_bands_are_stretched_separately(tmp_path: Path) -> None:
    ramp = np.arange(10_000, dtype=np.uint16).reshape(100, 100)
    path = write_raster(tmp_path / "a.tif", np.dstack([ramp, ramp // 2 + 7, ramp * 3, 500 - ramp // 100]))
    with open_scene(path, bands=(4, 3, 2)) as scene:
        seen = scene.read(0, 0, 100, 100)
    assert np.abs(seen[..., 1].astype(int) - seen[..., 2]).max() <= 1
    assert np.abs(seen[..., 0].astype(int) + seen[..., 1] - 255).max() <= 4


def empty_windows(source: object) -> list[bool]:
    """Whether windows of a 90x60 scene are empty, if its right half has no data: right half, left half, across, all."""
    with open_scene(source) as scene:
        return [scene.is_empty(*window) for window in ((45, 0, 45, 60), (0, 0, 45, 60), (44, 10, 2, 2), (0, 0, 90, 60))]


@pytest.mark.parametrize("kind", ["nodata", "float nodata", "alpha", "mask", "png alpha", "masked array"])
def test_a_window_without_data_is_empty(tmp_path: Path, kind: str) -> None:
    rgb = gradient() // 2 + 1
    hole = np.zeros((60, 90, 1), bool)
    hole[:, 45:] = True
    alpha = np.where(hole, 0, 255).astype(np.uint8)
    path = tmp_path / "a.tif"
    if kind == "nodata":
        write_raster(path, np.where(hole, 0, rgb), nodata=0)
    elif kind == "float nodata":
        write_raster(path, np.where(hole, np.nan, rgb).astype(np.float32), nodata=np.nan)
    elif kind == "alpha":
        write_raster(path, np.dstack([rgb, alpha]), colorinterp=["red", "green", "blue", "alpha"])
    elif kind == "mask":
        rasterio = pytest.importorskip("rasterio")
        write_raster(path, rgb)
        with rasterio.open(path, "r+") as file:
            file.write_mask(alpha[..., 0])
    elif kind == "png alpha":
        path = tmp_path / "a.png"
        assert cv2.imwrite(str(path), np.dstack([rgb, alpha]))
    source = np.ma.masked_array(rgb, np.repeat(hole, 3, 2)) if kind == "masked array" else path
    assert empty_windows(source) == [True, False, False, False]


def test_a_single_pixel_of_data_counts_even_with_overviews(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    pixels = np.zeros((512, 512, 1), np.uint8)
    pixels[301, 77] = 9
    path = write_raster(tmp_path / "a.tif", pixels, nodata=0, tiled=True, blockxsize=128, blockysize=128)
    with rasterio.open(path, "r+") as file:
        file.build_overviews([2, 4, 8, 16], rasterio.enums.Resampling.nearest)
    with open_scene(path) as scene:
        assert not scene.is_empty(0, 0, 512, 512)
        assert not scene.is_empty(70, 300, 10, 10)
        assert scene.is_empty(78, 0, 434, 512)


def test_a_scene_without_nodata_has_no_empty_windows(tmp_path: Path) -> None:
    black = np.zeros((60, 90, 3), np.uint8)
    assert empty_windows(black) == empty_windows(write_raster(tmp_path / "a.tif", black)) == [False] * 4


def windows_of(scene: Scene) -> list[np.ndarray]:
    return [scene.read(x, y, 10, 10) for y in range(0, 90, 10) for x in range(0, 90, 10)]


def test_a_reopened_scene_reads_the_same_pixels_in_another_thread(tmp_path: Path) -> None:
    pixels = np.arange(10_000, dtype=np.uint16).reshape(100, 100, 1)
    for source in (pixels, write_raster(tmp_path / "a.tif", pixels)):
        with open_scene(source) as scene:
            second = scene.reopen()
            assert second is not None
            with second, concurrent.futures.ThreadPoolExecutor(2) as pool:
                # One task per handle, as a handle may be used by one thread at a time.
                one, two = (pool.submit(windows_of, handle) for handle in (scene, second))
                assert np.array_equal(one.result(), two.result())
            assert scene.read(0, 0, 100, 100).shape == (100, 100, 3)  # still open


def test_a_raster_of_wide_strips_is_not_reopened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raster, "WIDE_BLOCK", 64)
    with open_scene(write_raster(tmp_path / "strips.tif", gradient())) as scene:
        assert scene.reopen() is None
    tiled = write_raster(tmp_path / "tiled.tif", gradient(), tiled=True, blockxsize=16, blockysize=16)
    with open_scene(tiled) as scene:
        assert scene.reopen() is not None


def test_a_file_of_one_huge_strip_is_refused_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_raster(tmp_path / "strip.tif", gradient(), compress="deflate", blockysize=60)
    open_scene(path).close()
    monkeypatch.setattr(raster, "MAX_BLOCK", 60 * 90 * 3 - 1)
    with pytest.raises(ValueError, match=r"strip.tif: stored in blocks of 90x60 pixels.*gdal_translate -co TILED=YES"):
        open_scene(path)


def test_a_gif_or_bitmap_that_claims_too_many_pixels_is_refused_without_decoding(tmp_path: Path) -> None:
    gif = b"GIF89a" + struct.pack("<HHBBB", 40_000, 20_000, 0xF0, 0, 0) + bytes(6)
    gif += b"," + struct.pack("<HHHHB", 0, 0, 40_000, 20_000, 0) + b"\x02\x02\x4c\x01\x00;"
    header = struct.pack("<IiiHHIIiiII", 40, 30_000, 30_000, 1, 24, 0, 0, 0, 0, 0, 0)
    bmp = b"BM" + struct.pack("<IHHI", 154, 0, 0, 54) + header + bytes(100)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, data in (("a.gif", gif), ("a.bmp", bmp)):
        (tmp_path / name).write_bytes(data)
        with pytest.raises((ValueError, ModuleNotFoundError), match=name):
            read_image(tmp_path / name)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # KiB; each claims 2.4 GB


def test_a_large_file_is_read_by_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rasterio")
    path = write(tmp_path / "a.png", gradient())
    monkeypatch.setattr(image_file, "MAX_ENCODED", 1000)
    with open_scene(path) as scene:
        assert isinstance(scene, raster.RasterScene)
        assert np.array_equal(scene.read(30, 20, 40, 30), gradient()[20:50, 30:70])


def test_the_ground_sample_distance_is_read_from_the_georeference(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    affine = rasterio.transform.Affine
    rotated = affine(0.03, -0.04, 500_000, -0.04, -0.03, 5_000_000)  # 5 cm, rotated
    degrees = affine(9e-6, 0, 27.5, 0, -9e-6, 60.0)  # 1 m along the meridian, half of it across, at 60 degrees
    for crs, transform, gsd in (("EPSG:32635", rotated, 0.05), ("EPSG:4326", degrees, 1.0018 * 0.5**0.5)):
        path = write_raster(tmp_path / "a.tif", gradient(), crs=crs, transform=transform)
        with open_scene(path) as scene:
            assert scene.gsd == pytest.approx(gsd, rel=0.001)
    with open_scene(write(tmp_path / "a.png", gradient())) as scene:
        assert scene.gsd is None


def test_a_palette_is_applied(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    index = np.array([[0, 1], [2, 1]], np.uint8)
    colors = {0: (10, 20, 30, 255), 1: (200, 0, 0, 255), 2: (0, 0, 250, 255)}
    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", count=1, dtype="uint8", width=2, height=2) as file:
        file.write(index, 1)
        file.write_colormap(1, colors)
    expected = np.array([[colors[int(i)][:3] for i in row] for row in index])
    assert np.array_equal(read_image(tmp_path / "a.tif"), expected)


def test_16_bit_pixels_are_stretched_equally_in_every_format(tmp_path: Path) -> None:
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


def test_nodata_and_nan_are_black_and_excluded_from_the_stretch(tmp_path: Path) -> None:
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
    assert (
        to_rgb8(np.full((2, 2), 700, np.uint16)).tolist() == [[[0] * 3] * 2] * 2
    )  # a flat image has no range to stretch
    with pytest.raises(ValueError, match=r"got \(5, 5\)"):
        measure_limits(pixels, (5, 5))


@pytest.mark.parametrize("pixels", [np.zeros((2, 2, 2, 2)), np.zeros((0, 5, 3)), np.array([["a"]]), np.zeros(7)])
def test_arrays_that_are_not_images_are_refused(pixels: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected an image"):
        open_scene(pixels)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp", ".tif", ".jp2"])
def test_a_truncated_file_is_refused_by_name(tmp_path: Path, suffix: str, capfd: pytest.CaptureFixture) -> None:
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


def test_a_jpeg_that_ends_in_zeros_or_has_a_complete_thumbnail_only_is_truncated(tmp_path: Path) -> None:
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


def test_bytes_after_the_end_of_a_jpeg_are_ignored(tmp_path: Path) -> None:
    for progressive in (0, 1):
        path = write(
            tmp_path / "a.jpg", gradient(), cv2.IMWRITE_JPEG_PROGRESSIVE, progressive, cv2.IMWRITE_JPEG_RST_INTERVAL, 2
        )
        expected = read_image(path)
        path.write_bytes(path.read_bytes() + b"trailer of a camera" + bytes(100))
        assert np.array_equal(read_image(path), expected)


def test_a_file_that_is_not_an_image_is_refused_by_name(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
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
    with pytest.raises(FileNotFoundError, match=r"gone.jpg: no such file"):
        read_image(tmp_path / "gone.jpg")
    with pytest.raises(IsADirectoryError, match="a folder, not a file"):
        read_image(tmp_path)
    assert capfd.readouterr() == ("", "")


def test_a_file_of_too_many_pixels_is_read_by_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rasterio")
    monkeypatch.setattr(image_file, "MAX_DECODED", 1000)
    path = write(tmp_path / "large.png", gradient())
    with open_scene(path) as scene:
        assert np.array_equal(scene.read(30, 20, 40, 30), gradient()[20:50, 30:70])
    with pytest.raises(ValueError, match="90x60 pixels are too many"):
        read_image(path)


def test_a_tiff_without_rasterio_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_rotated_geotiff_has_the_pixels_of_its_photo(shared: Path) -> None:
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
        assert scene.gsd == pytest.approx(0.025)


def test_windows_of_a_mosaic_are_empty_exactly_if_all_bands_are_nodata(shared: Path) -> None:
    pytest.importorskip("rasterio")
    (path,) = (shared / "data" / "bigscene-brighton-geotiff" / "images").glob("*.tif")
    with open_scene(path) as scene:
        windows = [(x, y, 640, 640) for y in range(0, 5907 - 640, 1756) for x in range(0, 6175 - 640, 1107)]
        empty = [scene.is_empty(*window) for window in windows]
        assert empty == [not scene.read(*window).any() for window in windows]
        assert any(empty) and not all(empty)
