"""Claims of an image file are checked before it is decoded, and missing or omitted parts are reported."""

from __future__ import annotations

import contextlib
import io
import logging
import resource
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from tinydet.data.image_files import image_size
from tinydet.runtime.scenes import image_file, open_scene, read_image
from tinydet.runtime.scenes.signatures import JPEG_MARKER

NOISE = np.random.default_rng(0).integers(0, 256, (15, 20, 3), dtype=np.uint8)
PHOTO = Image.fromarray(NOISE).resize((200, 150))


def encoded(format: str, image: Image.Image = PHOTO, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def encoded16() -> bytes:
    return bytes(cv2.imencode(".png", NOISE.astype(np.uint16) * 200)[1])


def jpeg(kind: str) -> bytes:
    if kind == "restarts":
        return bytes(cv2.imencode(".jpg", np.asarray(PHOTO), [cv2.IMWRITE_JPEG_RST_INTERVAL, 3])[1])
    return encoded("JPEG", PHOTO.convert("L") if kind == "gray" else PHOTO, progressive=kind == "progressive")


@pytest.mark.parametrize("kind", ["baseline", "gray", "progressive", "restarts"])
def test_a_jpeg_without_its_end_marker_is_read_with_a_warning(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture
) -> None:
    data = jpeg(kind)
    (tmp_path / "whole.jpg").write_bytes(data)
    expected = read_image(tmp_path / "whole.jpg")
    assert not caplog.records
    tails = (b"", b"\xff", b"SEFHe\0\1\2trailer of a camera" * 20, bytes(500), b"\xff" * 500, data)
    for n, tail in enumerate(tails):
        (tmp_path / f"{n}.jpg").write_bytes(data[:-2] + tail)
        assert np.array_equal(read_image(tmp_path / f"{n}.jpg"), expected)
        assert image_size(tmp_path / f"{n}.jpg") == (200, 150)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == len(tails)
    assert all("no end marker, but all of its rows" in message for message in said)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", ["baseline", "gray", "progressive", "restarts"])
def test_a_jpeg_cut_anywhere_in_its_scans_is_refused(tmp_path: Path, kind: str) -> None:
    data, path = jpeg(kind), tmp_path / "cut.jpg"
    for end in range(2, len(data) - 12, len(data) // 40):
        for tail in (b"", bytes(100), b"\xff" * 100):
            path.write_bytes(data[:end] + tail)
            with pytest.raises(ValueError, match=r"cut\.jpg: truncated JPEG"):
                read_image(path)


@pytest.mark.parametrize("kind", ["baseline", "gray", "restarts"])
def test_a_jpeg_cut_in_its_scan_is_refused_although_it_has_an_end_marker(tmp_path: Path, kind: str) -> None:
    data, path = jpeg(kind), tmp_path / "cut.jpg"
    start = data.index(b"\xff\xda") + 20
    for end in np.linspace(start, start + 0.95 * (len(data) - start), 12).astype(int):
        path.write_bytes(data[:end].rstrip(b"\xff") + b"\xff\xd9")
        with pytest.raises(ValueError, match=r"cut\.jpg: truncated JPEG, rows are missing before its end marker"):
            read_image(path)


def test_a_gray_corner_is_not_taken_for_missing_rows(tmp_path: Path) -> None:
    pixels = np.full((64, 96, 3), 128, np.uint8)
    pixels[:20, :30] = 7
    Image.fromarray(pixels).save(tmp_path / "gray.jpg")
    expected = np.asarray(Image.open(tmp_path / "gray.jpg").convert("RGB"))
    assert (expected[-1, -1] == 128).all()
    assert np.array_equal(read_image(tmp_path / "gray.jpg"), expected)


@pytest.mark.parametrize("kind", ["baseline", "gray", "progressive", "restarts"])
def test_whatever_follows_the_rows_of_a_jpeg_without_end_marker_is_left_out(tmp_path: Path, kind: str) -> None:
    data, path = jpeg(kind), tmp_path / "pano.jpg"
    path.write_bytes(data)
    expected = read_image(path)
    for trailer in (
        b"\0\0SEFH\xffSEFT",
        bytes(range(256)) * 8 + b"SEFT",
        b"\xff\x02" * 9,
        b"\xff\xc0\0\x08" + bytes(8),
    ):
        path.write_bytes(data[:-2] + trailer)
        assert np.array_equal(read_image(path), expected)


def test_a_progressive_jpeg_cut_between_two_scans_is_refused(tmp_path: Path) -> None:
    data = jpeg("progressive")
    starts = [n for n in range(len(data)) if data[n : n + 2] in (b"\xff\xda", b"\xff\xc4")]
    assert len(starts) > 5
    for start in starts[1:]:
        (tmp_path / "cut.jpg").write_bytes(data[:start])
        with pytest.raises(ValueError, match=r"cut\.jpg: truncated JPEG"):
            read_image(tmp_path / "cut.jpg")


def test_a_png_with_a_text_that_is_too_long_for_pillow_is_read(tmp_path: Path) -> None:
    text = b"zTXtComment\0\0"[4:] + zlib.compress(bytes(1 << 21))
    chunk = struct.pack(">I", len(text)) + b"zTXt" + text + struct.pack(">I", zlib.crc32(b"zTXt" + text))
    data = encoded("PNG")
    (tmp_path / "a.png").write_bytes(data[:33] + chunk + data[33:])
    assert np.array_equal(read_image(tmp_path / "a.png"), np.asarray(PHOTO))


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("mode", ["1", "P", "L", "RGB"])
def test_a_png_with_fewer_rows_than_it_claims_is_refused(tmp_path: Path, mode: str, interlaced: bool) -> None:
    image = PHOTO.convert(mode)
    data = bytearray(encoded("PNG", image))
    if interlaced:  # the seven passes have the same bytes as one, if the image is one pixel wide
        data = bytearray(encoded("PNG", image.crop((0, 0, 1, 1))))
        data[28] = 1
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    (tmp_path / "a.png").write_bytes(data)
    assert read_image(tmp_path / "a.png").shape[2] == 3
    (height,) = struct.unpack_from(">I", data, 20)
    struct.pack_into(">I", data, 20, height + 3)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.png: (truncated|damaged) PNG"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("format", ["JPEG", "PNG", "PNG16", "TIFF", "WEBP", "GIF", "JPEG2000"])
def test_damaged_files_print_nothing(tmp_path: Path, format: str, capfd: pytest.CaptureFixture) -> None:
    data, rng = encoded16() if format == "PNG16" else encoded(format), np.random.default_rng(1)
    for n in range(80):
        damaged = bytearray(data)
        for place in rng.integers(0, len(data) if n % 2 else 60, 3):
            damaged[place] = rng.integers(256)
        (tmp_path / "a").write_bytes(damaged)
        with contextlib.suppress(ValueError):
            read_image(tmp_path / "a")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("bits", [8, 16])
def test_a_png_without_its_end_chunk_is_read_with_a_warning(
    tmp_path: Path, bits: int, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture
) -> None:
    data = encoded("PNG") if bits == 8 else encoded16()
    (tmp_path / "a.png").write_bytes(data)
    expected = read_image(tmp_path / "a.png")
    for missing in (1, 4, 12, 14, 16, 20):  # the last chunk has 12 bytes, and 8 checksums of the pixels precede it
        path = tmp_path / f"{missing}.png"
        path.write_bytes(data[:-missing])
        assert np.array_equal(read_image(path), expected)
        assert "no end chunk, but all of its rows" in caplog.records[-1].getMessage()
    for share in (0.1, 0.5, 0.9):
        (tmp_path / "cut.png").write_bytes(data[: int(len(data) * share)])
        with pytest.raises(ValueError, match=r"cut\.png: (truncated PNG|damaged)"):
            read_image(tmp_path / "cut.png")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("suffix", [".gif", ".avif", ".ppm", ".bmp", ".hdr", ".pfm", ".pam", ".pgm", ".webp"])
def test_a_truncated_file_of_another_format_is_refused_by_name(
    tmp_path: Path, suffix: str, capfd: pytest.CaptureFixture
) -> None:
    numbers = {".hdr": np.float32, ".pfm": np.float32, ".pgm": np.uint16}.get(suffix)
    if numbers is not None or suffix == ".pam":
        pixels = np.asarray(PHOTO).astype(numbers or np.uint8)
        data = bytes(cv2.imencode(suffix, pixels[..., 0] if suffix == ".pgm" else pixels)[1])
    else:
        data = encoded(suffix[1:].upper())
    path = tmp_path / f"a{suffix}"
    path.write_bytes(data)
    assert read_image(path).shape == (150, 200, 3)
    for share in (0.01, 0.1, 0.5, 0.9, 0.99):
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(ValueError, match=rf"a{suffix}[: ]") as error:
            read_image(path)
        assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_a_truncated_file_is_refused_before_it_is_read_by_windows(
    tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("rasterio")
    monkeypatch.setattr(image_file, "MAX_DECODED", 1000)
    data = encoded(format)
    (tmp_path / "a").write_bytes(data)
    open_scene(tmp_path / "a").close()
    (tmp_path / "a").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=f"truncated {format}"):
        open_scene(tmp_path / "a")


FRAMES = [Image.fromarray(np.full((12, 16, 3), 40 * n, np.uint8)) for n in range(3)]


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "AVIF", "TIFF", "MPO"])
def test_the_first_of_several_images_is_read_and_the_others_are_counted_once(
    tmp_path: Path, format: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a b.image"
    FRAMES[1].save(path, format, save_all=True, append_images=[FRAMES[0], FRAMES[2]])
    for _ in range(2):
        assert np.abs(read_image(path).astype(int) - 40).max() <= 2
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("tinydet.runtime.scenes", logging.WARNING)
    assert str(path) in record.getMessage()
    assert "holds 3 " in record.getMessage()
    assert "the first is read and the other 2 are left out. To extract them: " in record.getMessage()
    assert "'" in record.getMessage()  # the path, quoted for a shell


def test_a_preview_inside_an_mpo_is_not_another_image(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    FRAMES[1].save(tmp_path / "a.mpo", "MPO", save_all=True, append_images=[FRAMES[0].resize((8, 6))])
    assert read_image(tmp_path / "a.mpo").shape == (12, 16, 3)
    assert not caplog.records


def test_a_sequence_of_jpegs_is_not_taken_for_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.jpg").write_bytes(b"".join(encoded("JPEG", frame) for frame in FRAMES))
    assert (read_image(tmp_path / "a.jpg") == 0).all()
    assert "holds several frames; the first is read" in caplog.text
    caplog.clear()
    (tmp_path / "b.jpg").write_bytes(encoded("JPEG", FRAMES[0]) + encoded("JPEG", FRAMES[0].resize((8, 6))))
    assert (read_image(tmp_path / "b.jpg") == 0).all()  # followed by a preview
    assert not caplog.records


def test_overviews_and_masks_are_not_pages(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rasterio = pytest.importorskip("rasterio")
    path = tmp_path / "a.tif"
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "height": 128, "width": 128, "crs": "EPSG:32635"}
    with rasterio.open(path, "w", **profile, transform=rasterio.Affine(1, 0, 5e5, 0, -1, 5e6)) as file:
        file.write(np.full((128, 128), 9, np.uint8), 1)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as file:
        file.build_overviews([2, 4], rasterio.enums.Resampling.average)
        file.write_mask(np.full((128, 128), 255, np.uint8))
    assert (read_image(path) == 9).all()
    assert not caplog.records


def claims(width: int, height: int) -> dict[str, bytes]:
    """About 100 bytes of each format that claim an image of this size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    scan = b"\3\1\x22\0\2\x11\1\3\x11\1\xff\xda\0\x0c\x03\1\0\2\x11\3\x11\0\x3f\0some bytes\xff\xd9"
    return {
        "a.jpg": b"\xff\xd8\xff\xc0\0\x11\x08" + struct.pack(">HH", height, width) + scan,
        "a.png": b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(bytes(100)))
        + chunk(b"IEND", b""),
        "a.gif": b"GIF89a" + struct.pack("<HHBBB", width, height, 0xF0, 0, 0) + bytes(6)
        + b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\2\2\x4c\1\0;",
        "a.bmp": b"BM" + struct.pack("<IHHI", 154, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0) + bytes(100),
        "a.ppm": b"P6\n%d %d\n255\n" % (width, height) + bytes(60),
        "a.pgm": b"P5\n%d %d\n65535\n" % (width, height) + bytes(60),
        "a.pfm": b"PF\n%d %d\n-1.0\n" % (width, height) + bytes(60),
        "a.pam": b"P7\nWIDTH %d\nHEIGHT %d\nDEPTH 3\nMAXVAL 255\nTUPLTYPE RGB\nENDHDR\n" % (width, height) + bytes(60),
        "a.hdr": b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y %d +X %d\n" % (height, width) + bytes(60),
        "a.webp": b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\2\0\0\0"
        + max(width - 1, 0).to_bytes(3, "little") + max(height - 1, 0).to_bytes(3, "little"),
        "a16.png": b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(bytes(100)))
        + chunk(b"IEND", b""),
        "a.tga": bytes([0, 0, 10]) + bytes(9) + struct.pack("<HHBB", width, height, 24, 0) + bytes(60),
    }  # fmt: skip


@pytest.mark.parametrize("name", claims(1, 1))
def test_a_file_that_claims_much_and_holds_little_is_refused_at_once(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(claims(60_000, 60_000)[name])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=name):
        open_scene(tmp_path / name)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB; the pixels need 10 GB


@pytest.mark.parametrize("size", [(0, 9), (9, 0)])
@pytest.mark.parametrize("name", claims(1, 1))
def test_an_image_without_width_or_height_is_refused_by_name(tmp_path: Path, name: str, size: tuple[int, int]) -> None:
    (tmp_path / name).write_bytes(claims(*size)[name])
    with pytest.raises(ValueError, match=name):
        read_image(tmp_path / name)


@pytest.mark.parametrize("block", [4, 7, 64])
def test_markers_of_a_jpeg_are_found_in_blocks_as_by_the_regular_expression(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_file, "BLOCK", block)
    rng = np.random.default_rng(block)
    for _ in range(300):
        content = rng.choice([0xFF, 0xFF, 0, 1, 0xD0, 0xD7, 0xD8, 0xD9, 5], rng.integers(0, 40)).astype(np.uint8)
        data = content.tobytes()
        expected, found = (JPEG_MARKER.search(data, start) for start in (2, image_file._skip_coded(data, 2)))
        assert (expected and expected.span()) == (found and found.span()), data.hex()
