"""Images of every format and bit depth have the pixels of Pillow, or the stored ones if Pillow cannot read them."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from tinydet.data.image_files import image_size
from tinydet.runtime.scenes import open_scene, read_image
from tinydet.runtime.scenes.pixels import to_rgb8

pytestmark = pytest.mark.filterwarnings("ignore:Dataset has no geotransform")

HEIGHT, WIDTH = 24, 40
Y, X = np.mgrid[:HEIGHT, :WIDTH]
RGB = np.stack([X * 6, Y * 10, (X * Y) % 256], -1).astype(np.uint8)
PHOTO = Image.fromarray(RGB)
RAMP = Y * WIDTH + X  # 0 to 959
WHITE_IS_ZERO, BLACK_IS_ZERO, IS_RGB, PALETTE, INKS, YCBCR, CIE_LAB, ICC_LAB = 0, 1, 2, 3, 5, 6, 8, 9


def write_tiff(path: Path, pixels: np.ndarray, photometric: int, bits: int, **tags: Any) -> Path:
    """Write an uncompressed TIFF of one strip, (H, W, bands), with tags that no library writes.

    Args:
        tags: `t274=[6]` for tag 274 with one number of 16 bits.
    """
    kind = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    height, width, bands = pixels.shape
    if bits % 8:
        stored = pixels.astype(">u2").view(np.uint8).reshape(height, width * bands, 2)
        raw = np.packbits(np.unpackbits(stored, axis=-1)[..., 16 - bits :].reshape(height, -1), axis=1).tobytes()
    else:
        raw = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    entries = {256: [width], 257: [height], 258: [bits] * bands, 259: [1], 262: [photometric], 277: [bands]}
    entries |= {278: [height], 279: [len(raw)], 273: [0], 339: [kind] * bands}
    entries |= {int(tag[1:]): list(value) for tag, value in tags.items()}
    wide = (273, 279)
    end = 8 + 2 + 12 * len(entries) + 4
    size = {tag: (4 if tag in wide else 2) * len(value) for tag, value in entries.items()}
    entries[273] = [end + sum(n for n in size.values() if n > 4)]
    table, more = b"", b""
    for tag, value in sorted(entries.items()):
        data = struct.pack(f"<{len(value)}{'I' if tag in wide else 'H'}", *value)
        head = struct.pack("<HHI", tag, 4 if tag in wide else 3, len(value))
        table += head + (data.ljust(4, b"\0") if len(data) <= 4 else struct.pack("<I", end + len(more)))
        more += data if len(data) > 4 else b""
    path.write_bytes(b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + table + bytes(4) + more + raw)
    return path


def png(depth: int, color: int, samples: np.ndarray, *chunks: tuple[bytes, bytes]) -> bytes:
    """Encode samples (H, W, bands) as a PNG of any bit depth."""
    if depth == 16:
        rows = [row.astype(">u2").tobytes() for row in samples]
    else:
        bits = np.unpackbits(samples.astype(np.uint8)[..., None], axis=-1)[..., 8 - depth :]
        rows = [row.tobytes() for row in np.packbits(bits.reshape(len(samples), -1), axis=1)]
    header = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], depth, color, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in ((b"IHDR", header), *chunks, (b"IDAT", pixels), (b"IEND", b""))
    )


def shown_by_pillow(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        try:
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        except OSError as error:  # such as TIFF in YCbCr before Pillow 13
            pytest.skip(f"this release of Pillow cannot read the file: {error}")


def assert_like_pillow(path: Path, tolerance: int = 0) -> None:
    seen, shown = read_image(path), shown_by_pillow(path)
    assert seen.shape == shown.shape
    assert np.abs(seen.astype(int) - shown).max() <= tolerance
    assert image_size(path) == seen.shape[1::-1]
    assert seen.flags.writeable  # torch warns otherwise


MODES = {
    "AVIF": "1 L LA P RGB RGBA",
    "BMP": "1 L P RGB RGBA",
    "GIF": "1 L LA P RGB RGBA",
    "JPEG": "1 L RGB CMYK YCbCr",
    "PNG": "1 L LA P RGB RGBA",
    "PPM": "1 L RGB RGBA",
    "TIFF": "1 L LA P RGB RGBA CMYK YCbCr",
    "WEBP": "1 L LA P RGB RGBA",
}
COMPRESSIONS = {"raw": "1 L P RGB CMYK", "tiff_lzw": "1 L P RGB CMYK", "tiff_adobe_deflate": "1 L P RGB CMYK"}
COMPRESSIONS |= {"packbits": "1 L P RGB CMYK", "jpeg": "L RGB CMYK", "group3": "1", "group4": "1", "zstd": "L RGB"}


@pytest.mark.parametrize(("format", "mode"), [(name, mode) for name, modes in MODES.items() for mode in modes.split()])
def test_what_pillow_writes_is_read_as_pillow_reads_it(tmp_path: Path, format: str, mode: str) -> None:
    path = tmp_path / f"a.{format.lower()}"
    PHOTO.convert(mode).save(path, format)
    # GDAL converts CMYK and YCbCr as libtiff does, which rounds differently.
    assert_like_pillow(path, tolerance=1 if format == "TIFF" and mode in ("CMYK", "YCbCr") else 0)


@pytest.mark.parametrize(
    ("compression", "mode"), [(name, mode) for name, modes in COMPRESSIONS.items() for mode in modes.split()]
)
def test_compressed_tiffs_are_read_as_pillow_reads_them(tmp_path: Path, compression: str, mode: str) -> None:
    path = tmp_path / "a.tif"
    try:
        PHOTO.convert(mode).save(path, compression=compression)
    except OSError as error:
        pytest.skip(f"this release of Pillow writes no {compression}: {error}")
    assert_like_pillow(path, tolerance=1 if mode == "CMYK" else 0)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("photometric", [WHITE_IS_ZERO, BLACK_IS_ZERO])
def test_gray_tiffs_of_few_bits_are_read_as_pillow_reads_them(tmp_path: Path, photometric: int, bits: int) -> None:
    path = write_tiff(tmp_path / "a.tif", (RAMP % 2**bits).astype(np.uint8)[..., None], photometric, bits)
    assert_like_pillow(path)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palettes_of_few_bits_are_read_as_pillow_reads_them(tmp_path: Path, bits: int) -> None:
    colors = PHOTO.quantize(2**bits)
    for suffix in ("png", "gif", "bmp", "tif"):
        colors.save(tmp_path / f"a.{suffix}")
        assert_like_pillow(tmp_path / f"a.{suffix}")
    entries = [value * 257 for value in (*range(2**bits), *range(2**bits)[::-1], *([9] * 2**bits))]
    pixels = (RAMP % 2**bits).astype(np.uint8)[..., None]
    assert_like_pillow(write_tiff(tmp_path / "b.tif", pixels, PALETTE, bits, t320=entries))


@pytest.mark.parametrize("dtype", ["u2", "u4", "i1", "i2", "i4", "f4", "f8"])
@pytest.mark.parametrize("windowed", [False, True])
def test_white_is_zero_reverses_numbers_of_any_type(tmp_path: Path, dtype: str, windowed: bool) -> None:
    numbers = (RAMP % 100).astype(dtype)[..., None]
    bits = 8 * numbers.dtype.itemsize
    black = write_tiff(tmp_path / "black.tif", numbers, BLACK_IS_ZERO, bits)
    white = write_tiff(tmp_path / "white.tif", numbers, WHITE_IS_ZERO, bits)
    with open_scene(black) as one, open_scene(white) as other:
        window = (5, 3, 20, 11) if windowed else (0, 0, WIDTH, HEIGHT)
        assert np.abs(one.read(*window).astype(int) + other.read(*window) - 255).max() <= 1
        assert one.read(*window).std() > 50


@pytest.mark.parametrize("options", [{}, {"tiled": True, "blockxsize": 16, "blockysize": 16}])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_nodata_of_a_negative_is_a_stored_number(tmp_path: Path, dtype: str, options: dict[str, Any]) -> None:
    rasterio = pytest.importorskip("rasterio")
    stored = np.tile(np.arange(1, 101, dtype=dtype), (64, 1))
    stored[:, 50:] = 0
    profile = {"driver": "GTiff", "count": 1, "dtype": dtype, "height": 64, "width": 100, "compress": "deflate"}
    with rasterio.open(tmp_path / "a.tif", "w", **profile, nodata=0, photometric="MINISWHITE", **options) as file:
        file.write(stored, 1)
    with open_scene(tmp_path / "a.tif") as scene:
        assert [scene.is_empty(50, 0, 50, 64), scene.is_empty(0, 0, 50, 64)] == [True, False]
        seen = scene.read(0, 0, 100, 64)[0, :, 0].astype(int)
    assert (np.diff(seen[:50]) <= 0).all()
    assert seen[0] > seen[49]
    if dtype != "uint8":
        assert seen[0] == 255  # without nodata values
        assert (seen[50:] == 0).all()


def test_overviews_of_a_negative_are_negatives_too(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    stored = np.tile(np.arange(256, dtype=np.uint8), (256, 1))
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "height": 256, "width": 256}
    with rasterio.open(tmp_path / "a.tif", "w", **profile, photometric="MINISWHITE") as file:
        file.write(stored, 1)
    with rasterio.open(tmp_path / "a.tif", "r+") as file:
        file.build_overviews([2, 4], rasterio.enums.Resampling.average)
    with open_scene(tmp_path / "a.tif") as scene:
        assert np.abs(scene.read(0, 0, 256, 256, (64, 64))[0, :, 0].astype(int) - (253 - 4 * np.arange(64))).max() <= 1


@pytest.mark.parametrize("bits", [10, 12, 16])
def test_numbers_of_10_to_16_bits_are_stretched_alike(tmp_path: Path, bits: int) -> None:
    numbers = (RAMP + 17).astype(np.uint16)
    expected = to_rgb8(numbers)
    path = write_tiff(tmp_path / "a.tif", numbers[..., None], BLACK_IS_ZERO, bits)
    assert np.array_equal(read_image(path), expected)
    if bits == 16:
        (tmp_path / "a.png").write_bytes(png(16, 0, numbers[..., None]))
        assert np.array_equal(read_image(tmp_path / "a.png"), expected)
    size = b"%d %d\n%d\n" % (WIDTH, HEIGHT, 2**bits - 1)
    (tmp_path / "a.pgm").write_bytes(b"P5\n# made here\n" + size + numbers.astype(">u2").tobytes())
    assert np.array_equal(read_image(tmp_path / "a.pgm"), expected)
    text = b" ".join(b"%d" % number for number in numbers.ravel())
    (tmp_path / "b.pgm").write_bytes(b"P2 " + size + text)
    assert np.array_equal(read_image(tmp_path / "b.pgm"), expected)
    assert image_size(tmp_path / "b.pgm") == (WIDTH, HEIGHT)


@pytest.mark.parametrize("dtype", ["u4", "i4", "f8"])
def test_a_small_range_of_large_numbers_is_kept(tmp_path: Path, dtype: str) -> None:
    numbers = ((RAMP % 256) + 2_000_000_000).astype(dtype)
    path = write_tiff(tmp_path / "a.tif", numbers[..., None], BLACK_IS_ZERO, 8 * numbers.dtype.itemsize)
    assert len(np.unique(read_image(path))) > 200  # float32 has 3 numbers in this range
    assert np.array_equal(read_image(path), to_rgb8(numbers))


def test_half_floats_are_read(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", (RAMP % 100).astype(np.float16)[..., None], BLACK_IS_ZERO, 16)
    assert np.array_equal(read_image(path), to_rgb8((RAMP % 100).astype(np.float32)))


@pytest.mark.parametrize("top", [1, 15, 100, 255])
def test_netpbm_files_of_any_maximum_are_read_as_pillow_reads_them(tmp_path: Path, top: int) -> None:
    gray, color = (RAMP % (top + 1)).astype(np.uint8), (RGB.astype(int) % (top + 1)).astype(np.uint8)
    size = b"%d %d\n%d\n" % (WIDTH, HEIGHT, top)
    (tmp_path / "a.pgm").write_bytes(b"P5\n" + size + gray.tobytes())
    (tmp_path / "a.ppm").write_bytes(b"P6\n" + size + color.tobytes())
    (tmp_path / "b.ppm").write_bytes(b"P3\n" + size + b" ".join(b"%d" % value for value in color.ravel()))
    for name in ("a.pgm", "a.ppm", "b.ppm"):
        assert_like_pillow(tmp_path / name)
    lines = b"P7\nWIDTH %d\nHEIGHT %d\nDEPTH 3\nMAXVAL %d\nTUPLTYPE RGB\nENDHDR\n" % (WIDTH, HEIGHT, top)
    (tmp_path / "a.pam").write_bytes(lines + color.tobytes())
    assert np.array_equal(read_image(tmp_path / "a.pam"), shown_by_pillow(tmp_path / "a.ppm"))
    assert image_size(tmp_path / "a.pam") == (WIDTH, HEIGHT)


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_gray_pngs_of_few_bits_are_read_as_pillow_reads_them(tmp_path: Path, depth: int) -> None:
    (tmp_path / "a.png").write_bytes(png(depth, 0, (RAMP % 2**depth)[..., None]))
    assert_like_pillow(tmp_path / "a.png")


@pytest.mark.parametrize("color", [0, 2, 4, 6])
def test_pngs_of_16_bits_keep_them(tmp_path: Path, color: int) -> None:
    bands = {0: 1, 2: 3, 4: 2, 6: 4}[color]
    numbers = np.stack([(RAMP * (n + 3)) % 3000 for n in range(bands)], -1).astype(np.uint16)
    colors = numbers[..., :3] if bands > 2 else numbers[..., 0]
    extra = [(b"tRNS", bytes(2 * bands))] if color in (0, 2) else []
    (tmp_path / "a.png").write_bytes(png(16, color, numbers, *extra))
    assert np.array_equal(read_image(tmp_path / "a.png"), to_rgb8(colors))


@pytest.mark.parametrize("color", ["gray", "color"])
def test_floating_point_formats_are_stretched(tmp_path: Path, color: str) -> None:
    numbers = (RGB if color == "color" else RGB[..., 0]).astype(np.float32) / 300
    head = b"PF" if color == "color" else b"Pf"
    (tmp_path / "a.pfm").write_bytes(
        head + b"\n%d %d\n-1.0\n" % (WIDTH, HEIGHT) + numbers[::-1].astype("<f4").tobytes()
    )
    assert np.array_equal(read_image(tmp_path / "a.pfm"), to_rgb8(numbers))
    assert image_size(tmp_path / "a.pfm") == (WIDTH, HEIGHT)
    if color == "color":
        assert cv2.imwrite(str(tmp_path / "a.hdr"), numbers[..., ::-1] + 1)
        assert np.abs(read_image(tmp_path / "a.hdr").astype(int) - to_rgb8(numbers)).mean() < 2
        assert image_size(tmp_path / "a.hdr") == (WIDTH, HEIGHT)


def test_a_palette_of_16_bits_is_applied(tmp_path: Path) -> None:
    n = 1 << 16
    table = np.stack([np.arange(n) % 256, np.arange(n) // 256, np.full(n, 7)])
    path = write_tiff(
        tmp_path / "a.tif", (RAMP * 60).astype(np.uint16)[..., None], PALETTE, 16, t320=table.ravel() * 257
    )
    assert np.array_equal(read_image(path), table.T[RAMP * 60])


def test_a_palette_with_alpha_is_applied_and_its_alpha_is_where_there_is_data(tmp_path: Path) -> None:
    pixels = np.dstack([RAMP % 256, np.where(X < 20, 255, 0)]).astype(np.uint8)
    entries = [257 * value for value in (*range(256), *range(256)[::-1], *([50] * 256))]
    path = write_tiff(tmp_path / "a.tif", pixels, PALETTE, 8, t320=entries, t338=[2])
    seen = read_image(path)
    assert np.array_equal(seen, np.dstack([RAMP % 256, 255 - RAMP % 256, np.full_like(RAMP, 50)]))
    with open_scene(path) as scene:
        assert [scene.is_empty(20, 0, 20, HEIGHT), scene.is_empty(0, 0, 20, HEIGHT)] == [True, False]


@pytest.mark.parametrize("bits", [8, 16])
def test_premultiplied_colors_are_divided_by_their_alpha_as_pillow_does(tmp_path: Path, bits: int) -> None:
    alpha = (RAMP % 256).astype(np.uint8)
    pixels = np.dstack([RGB.astype(int) * alpha[..., None] // 255, alpha]).astype(np.uint8)
    path = tmp_path / "a.tif"
    if bits == 8:
        assert_like_pillow(write_tiff(path, pixels, IS_RGB, 8, t338=[1]))
        return
    write_tiff(path, pixels.astype(np.uint16) * 257, IS_RGB, 16, t338=[1])
    wide = pixels[..., :3].astype(int) * 257 * 65535 // np.maximum(alpha[..., None].astype(int) * 257, 1)
    straight = np.dstack([np.minimum(wide, 65535), alpha.astype(int) * 257]).astype(np.uint16)
    assert np.array_equal(read_image(path), read_image(write_tiff(tmp_path / "b.tif", straight, IS_RGB, 16, t338=[2])))
    assert_like_pillow(write_tiff(tmp_path / "plain.tif", pixels, IS_RGB, 8, t338=[2]))


@pytest.mark.parametrize("bits", [8, 16])
def test_cmyk_is_converted_as_in_pillow(tmp_path: Path, bits: int) -> None:
    inks = np.dstack([RGB, (RAMP % 200)]).astype(np.uint8)
    path = write_tiff(tmp_path / "a.tif", inks if bits == 8 else inks.astype(np.uint16) * 257, INKS, bits)
    assert_like_pillow(path, tolerance=1)


@pytest.mark.parametrize(("photometric", "bits"), [(CIE_LAB, 8), (CIE_LAB, 16), (ICC_LAB, 8), (ICC_LAB, 16)])
def test_lab_colors_become_rgb(tmp_path: Path, photometric: int, bits: int) -> None:
    lab = cv2.cvtColor(RGB, cv2.COLOR_RGB2Lab)  # L from 0 to 255, and 128 added to a and b, as in ICC
    stored = lab ^ np.array([0, 128, 128], np.uint8) if photometric == CIE_LAB else lab
    if bits == 16:
        stored = stored.astype(np.uint16) * 256
    path = write_tiff(tmp_path / "a.tif", stored, photometric, bits)
    if (photometric, bits) == (CIE_LAB, 8):  # converted by libtiff, which assumes another white
        assert np.array_equal(read_image(path), cv2.imread(str(path))[..., ::-1])
    else:
        assert np.abs(read_image(path).astype(int) - RGB).mean() < 3


def test_ycbcr_is_converted(tmp_path: Path) -> None:
    ycbcr = np.asarray(PHOTO.convert("YCbCr"))
    path = write_tiff(tmp_path / "a.tif", ycbcr, YCBCR, 8, t530=[1, 1])
    assert_like_pillow(path, tolerance=1)


def test_colors_of_4_bits_fill_8(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", RGB >> 4, IS_RGB, 4)
    assert np.array_equal(read_image(path), (RGB >> 4) * 17)


@pytest.mark.parametrize("bits", [4, 12])
def test_bit_depths_of_jpeg_2000(tmp_path: Path, bits: int) -> None:
    rasterio = pytest.importorskip("rasterio")
    numbers = (RAMP % 2**bits).astype(np.uint8 if bits < 8 else np.uint16)
    profile = {"driver": "JP2OpenJPEG", "count": 1, "dtype": numbers.dtype, "height": HEIGHT, "width": WIDTH}
    with rasterio.open(tmp_path / "a.jp2", "w", **profile, NBITS=bits, QUALITY=100, REVERSIBLE="YES") as file:
        file.write(numbers, 1)
    expected = np.repeat((numbers * 17)[..., None], 3, 2) if bits < 8 else to_rgb8(numbers)
    assert np.array_equal(read_image(tmp_path / "a.jp2"), expected)
    data = bytearray((tmp_path / "a.jp2").read_bytes())
    start = data.index(b"colr") - 4
    data[start : start + 4] = bytes(4)  # a box that lasts to the end of its parent
    (tmp_path / "a.jp2").write_bytes(data)
    assert np.array_equal(read_image(tmp_path / "a.jp2"), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_applied_exactly_once_in_every_format(tmp_path: Path, orientation: int) -> None:
    for format, options in {
        "AVIF": {"quality": 100},
        "JPEG": {"quality": 100},
        "PNG": {},
        "TIFF": {},
        "WEBP": {"lossless": True},
    }.items():
        path = tmp_path / f"a.{format.lower()}"
        exif = Image.Exif()  # Pillow takes the orientation out of it when it writes AVIF
        exif[0x0112] = orientation
        PHOTO.save(path, format, exif=exif, **options)
        assert_like_pillow(path)
        size = read_image(path).shape[1::-1]
        assert size == ((HEIGHT, WIDTH) if orientation > 4 else (WIDTH, HEIGHT))


def test_the_orientation_of_a_png_may_follow_its_pixels_and_applies_to_its_alpha(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    rgba = np.dstack([RGB, np.where(X < 20, 255, 0)]).astype(np.uint8)
    data = png(8, 6, rgba)
    content = exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(content)) + b"eXIf" + content + struct.pack(">I", zlib.crc32(b"eXIf" + content))
    (tmp_path / "a.png").write_bytes(data[:-12] + chunk + data[-12:])
    assert_like_pillow(tmp_path / "a.png")
    with open_scene(tmp_path / "a.png") as scene:
        assert [scene.is_empty(0, 20, HEIGHT, 20), scene.is_empty(0, 0, HEIGHT, 20)] == [True, False]


def test_a_georeferenced_tiff_keeps_the_orientation_that_its_geotransform_refers_to(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    path = write_tiff(tmp_path / "a.tif", RGB, IS_RGB, 8, t274=[6])
    assert np.array_equal(read_image(path), np.rot90(RGB, -1))
    with rasterio.open(path, "r+") as file:
        file.transform = rasterio.Affine(1, 0, 500_000, 0, -1, 6_000_000)
        file.crs = "EPSG:32635"
    assert np.array_equal(read_image(path), RGB)


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "avif"])
def test_transparent_pixels_have_no_data_and_keep_their_colors(tmp_path: Path, suffix: str) -> None:
    rgba = np.dstack([RGB, np.where(X < 16, 255, 0)]).astype(np.uint8)
    image, options = Image.fromarray(rgba), {"exact": True, "lossless": True} if suffix == "webp" else {}
    image.save(tmp_path / f"a.{suffix}", **options)
    assert_like_pillow(tmp_path / f"a.{suffix}")
    with open_scene(tmp_path / f"a.{suffix}") as scene:
        assert [scene.is_empty(16, 0, 24, HEIGHT), scene.is_empty(0, 0, 16, HEIGHT)] == [True, False]


@pytest.mark.parametrize("driver", ["HFA", "NITF", "ENVI", "EHdr", "GPKG", "BMP", "PNG", "SAGA"])
def test_rasters_are_opened_by_their_content(tmp_path: Path, driver: str) -> None:
    rasterio = pytest.importorskip("rasterio")
    gray = driver in ("EHdr", "SAGA", "BMP")
    path = tmp_path / {"GPKG": "a.gpkg", "SAGA": "a.sdat"}.get(driver, "a.data")
    bands = RGB[..., :1] if gray else RGB
    profile = {"driver": driver, "count": bands.shape[2], "dtype": "uint8", "height": HEIGHT, "width": WIDTH}
    transform = rasterio.Affine(1e-4, 0, 27, 0, -1e-4, 60)
    place = {"crs": "EPSG:4326", "transform": transform} if driver == "GPKG" else {}
    with rasterio.open(path, "w", **profile, **place) as file:
        file.write(np.moveaxis(bands, -1, 0))
    assert np.array_equal(read_image(path), np.repeat(bands, 3, 2) if gray else RGB)


@pytest.mark.parametrize("driver", ["HFA", "NITF", "ENVI", "EHdr", "SAGA", "SGI"])
def test_a_truncated_raster_is_refused_by_name(tmp_path: Path, driver: str) -> None:
    rasterio = pytest.importorskip("rasterio")
    path = tmp_path / ("a.sdat" if driver == "SAGA" else "a.data")
    if driver == "SGI":
        Image.fromarray(RGB).save(path, "SGI")
    else:
        with rasterio.open(path, "w", driver=driver, count=1, dtype="uint8", height=HEIGHT, width=WIDTH) as file:
            file.write(RGB[..., 0], 1)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 5])
    with pytest.raises(ValueError, match=r"a\.s?data?: (truncated|damaged)"):
        read_image(path)


def test_a_camera_raw_file_is_refused(tmp_path: Path) -> None:
    mosaic = write_tiff(tmp_path / "a.dng", RGB[..., :1], 32803, 8)
    preview = write_tiff(tmp_path / "b.dng", RGB, IS_RGB, 8, t254=[1])
    for path in (mosaic, preview):
        with pytest.raises(ValueError, match=rf"{path.name}: a camera raw file; convert it"):
            read_image(path)


def test_a_heif_image_without_its_library_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    try:
        import pillow_heif  # noqa: F401
    except ModuleNotFoundError:
        for read in (read_image, image_size):
            with pytest.raises(ValueError, match=r"a\.jpg is a HEIC or HEIF image.*pip install 'tinydet\[heif\]'"):
                read(tmp_path / "a.jpg")


def test_disabled_openexr_is_refused_with_the_way_to_enable_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENCV_IO_ENABLE_OPENEXR", raising=False)
    (tmp_path / "a.exr").write_bytes(b"\x76\x2f\x31\x01" + bytes(60))
    with pytest.raises(ValueError, match=r"a\.exr: .*OPENCV_IO_ENABLE_OPENEXR=1"):
        read_image(tmp_path / "a.exr")


def test_a_cmyk_jpeg_is_read_as_pillow_reads_it_with_and_without_inversion(tmp_path: Path) -> None:
    file = io.BytesIO()
    PHOTO.convert("CMYK").save(file, "JPEG", quality=95)
    (tmp_path / "adobe.jpg").write_bytes(file.getvalue())
    assert_like_pillow(tmp_path / "adobe.jpg")
    start = file.getvalue().index(b"\xff\xee")
    length = int.from_bytes(file.getvalue()[start + 2 : start + 4], "big")
    (tmp_path / "plain.jpg").write_bytes(file.getvalue()[:start] + file.getvalue()[start + 2 + length :])
    assert_like_pillow(tmp_path / "plain.jpg")
