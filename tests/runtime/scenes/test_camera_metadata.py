"""Camera metadata is compared with what the tests write with Pillow; damaged metadata never ends a run."""

from __future__ import annotations

import logging
import math
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.ExifTags import GPS, Base
from PIL.TiffImagePlugin import IFDRational

from tests.support.drone_photos import LENS, NADIR, gps, write_photo, xmp
from tinydet.runtime.scenes.camera_metadata import read_camera
from tinydet.runtime.scenes.xmp import MAX_XMP, parse_xmp

DIAGONAL = math.hypot(36, 24)


@pytest.mark.parametrize(("lat", "lon"), [(47.5, 8.25), (-33.9, 151.2), (40.7, -74.0), (-54.8, -68.3), (0.0, 8.0)])
def test_the_position_has_the_sign_of_its_hemisphere(tmp_path: Path, lat: float, lon: float) -> None:
    camera = read_camera(write_photo(tmp_path / "a.jpg", position=gps(lat, lon)))
    assert camera is not None
    assert camera.lon_lat == pytest.approx((lon, lat), abs=1e-11)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "avif"])
def test_every_format_with_metadata_is_read(tmp_path: Path, suffix: str) -> None:
    camera = read_camera(write_photo(tmp_path / f"a.{suffix}"))
    assert camera is not None
    assert camera.lon_lat == pytest.approx((8.25, 47.5))
    assert camera.size == (600, 400)
    if suffix != "tif":  # Pillow does not write XMP to it
        assert (camera.height, camera.angles) == (100, (0, -90, 0))


def test_xmp_in_a_tiff_is_read(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[700] = xmp({**NADIR, "drone-dji:GpsLatitude": "47.5", "drone-dji:GpsLongtitude": "8.25"})
    Image.new("RGB", (60, 40)).save(tmp_path / "a.tif", exif=exif)
    camera = read_camera(tmp_path / "a.tif")
    assert camera is not None
    assert camera.lon_lat == (8.25, 47.5)
    assert camera.height == 100


def test_a_picture_without_metadata_has_no_camera(tmp_path: Path) -> None:
    Image.new("RGB", (60, 40)).save(tmp_path / "a.jpg")
    assert read_camera(tmp_path / "a.jpg") is None
    (tmp_path / "a.txt").write_text("no image")
    assert read_camera(tmp_path / "a.txt") is None
    (tmp_path / "b.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:40])
    assert read_camera(tmp_path / "b.jpg") is None


PIX4D = 'xmlns:Camera="http://pix4d.com/camera/1.0/"'
VENDORS = {
    "DJI, as elements": (
        xmp({}, elements="".join(f"<{name}>{value}</{name}>" for name, value in NADIR.items())),
        ((0, -90, 0), "axis", 100),
    ),
    "DJI, with another prefix": (
        xmp(
            {f"ns1:{k.partition(':')[2]}": v for k, v in NADIR.items()}, 'xmlns:ns1="http://www.dji.com/drone-dji/1.0/"'
        ),
        ((0, -90, 0), "axis", 100),
    ),
    "DJI, only the yaw of the aircraft": (
        xmp({**{k: v for k, v in NADIR.items() if "Yaw" not in k}, "drone-dji:FlightYawDegree": "-12.5"}),
        ((-12.5, -90, 0), "axis", 100),
    ),
    "Parrot": (
        xmp(
            {"drone-parrot:CameraYawDegree": "10.5", "drone-parrot:CameraPitchDegree": "-89"},
            f'xmlns:drone-parrot="http://www.parrot.com/drone-parrot/1.0/" {PIX4D}',
            "<drone-parrot:CameraRollDegree>1</drone-parrot:CameraRollDegree>"
            "<Camera:AboveGroundAltitude>605/10</Camera:AboveGroundAltitude>",
        ),
        ((10.5, -89, 1), "axis", 60.5),
    ),
    "Pix4D and senseFly: a pitch of 0 looks down": (
        xmp(
            {"Camera:Yaw": "30", "Camera:Pitch": "2", "Camera:Roll": "-1", "Camera:AboveGroundAltitude": "80 m"}, PIX4D
        ),
        ((30, 2, -1), "mount", 80),
    ),
    "Autel: -90 looks down": (
        xmp({"Camera:Yaw": "30", "Camera:Pitch": "-90.0", "Camera:Roll": "0", "drone-x:RelativeAltitude": "50"}, PIX4D),
        ((30, -90, 0), "axis", 50),
    ),
    "Skydio, a structure": (
        xmp(
            {"drone-skydio:RelativeAltitude": "42.5"},
            'xmlns:drone-skydio="https://www.skydio.com/drone-skydio/1.0/"',
            '<drone-skydio:CameraOrientationNED drone-skydio:Roll="0.2" drone-skydio:Pitch="-88" drone-skydio:Yaw="7"/>'
            '<drone-skydio:CameraOrientationFLU rdf:parseType="Resource"><drone-skydio:Yaw>1</drone-skydio:Yaw>'
            "</drone-skydio:CameraOrientationFLU>",
        ),
        ((7, -88, 0.2), "axis", 42.5),
    ),
}


@pytest.mark.parametrize("vendor", VENDORS)
def test_angles_and_altitude_of_every_maker_are_read(tmp_path: Path, vendor: str) -> None:
    packet, expected = VENDORS[vendor]
    camera = read_camera(write_photo(tmp_path / "a.jpg", packet=packet))
    assert camera is not None
    assert (camera.angles, camera.convention, camera.height) == expected


LENSES: dict[str, tuple[dict[int, Any], dict[str, str], float]] = {
    "35 mm equivalent, 3:2": ({Base.FocalLengthIn35mmFilm: 24}, {}, 24 / DIAGONAL * math.hypot(600, 400)),
    "sensor resolution": (
        {Base.FocalLength: 8.8, Base.FocalPlaneXResolution: IFDRational(6000, 132), Base.FocalPlaneResolutionUnit: 4},
        {},
        400,
    ),
    "sensor resolution in inches": (
        {Base.FocalLength: 8.8, Base.FocalPlaneXResolution: 600 / 13.2 * 25.4, Base.FocalPlaneResolutionUnit: 2},
        {},
        400,
    ),
    "calibrated": (LENS, {"drone-dji:CalibratedFocalLength": "412.5"}, 412.5),
    "digital zoom, which the 35 mm equivalent includes": (
        {Base.FocalLengthIn35mmFilm: 24, Base.DigitalZoomRatio: IFDRational(20, 10)},
        {},
        24 / DIAGONAL * math.hypot(600, 400),
    ),
    "digital zoom of a calibrated lens": (
        {**LENS, Base.DigitalZoomRatio: IFDRational(20, 10)},
        {"drone-dji:CalibratedFocalLength": "412.5"},
        825,
    ),
    "not calibrated": (
        {Base.FocalLengthIn35mmFilm: 24},
        {"drone-dji:CalibratedFocalLength": "0.000000"},
        24 / DIAGONAL * math.hypot(600, 400),
    ),
    "a photo reduced to half its size, which EXIF does not tell": (
        {**LENS, Base.ExifImageWidth: 600, Base.ExifImageHeight: 400},
        {
            "drone-dji:CalibratedFocalLength": "825",
            "drone-dji:CalibratedOpticalCenterX": "600.0",
            "drone-dji:CalibratedOpticalCenterY": "400.0",
        },
        412.5,
    ),
    "an optical center that is not exactly in the middle": (
        LENS,
        {"drone-dji:CalibratedFocalLength": "412.5", "drone-dji:CalibratedOpticalCenterX": "305.0"}
        | {"drone-dji:CalibratedOpticalCenterY": "196.0"},
        412.5,
    ),
    "a photo reduced to half its size": (
        {**LENS, Base.ExifImageWidth: 1200, Base.ExifImageHeight: 800},
        {"drone-dji:CalibratedFocalLength": "825"},
        412.5,
    ),
    "zeros stand for unknown": (
        {
            Base.FocalLengthIn35mmFilm: 24,
            Base.FocalLength: IFDRational(0, 0),
            Base.DigitalZoomRatio: IFDRational(0, 0),
            Base.FocalPlaneXResolution: IFDRational(0, 0),
        },
        {},
        24 / DIAGONAL * math.hypot(600, 400),
    ),
}


@pytest.mark.parametrize("lens", LENSES)
def test_the_focal_length_in_pixels(tmp_path: Path, lens: str, caplog: pytest.LogCaptureFixture) -> None:
    tags, more, expected = LENSES[lens]
    camera = read_camera(write_photo(tmp_path / "a.jpg", lens=tags, packet=xmp({**NADIR, **more})))
    assert camera is not None
    assert camera.focal == pytest.approx(expected)
    assert not camera.cropped
    assert not caplog.records


def test_a_picture_of_16_to_9_is_cut_from_a_sensor_of_4_to_3(tmp_path: Path) -> None:
    """DJI states the equivalent focal length of the whole sensor; photos of 16:9 have its full width."""
    whole, cut = (
        read_camera(write_photo(tmp_path / f"{height}.jpg", size=(640, height), lens={Base.FocalLengthIn35mmFilm: 24}))
        for height in (480, 360)
    )
    assert whole is not None
    assert cut is not None
    assert whole.focal == cut.focal == pytest.approx(24 / DIAGONAL * 800)


def test_a_cropped_photo_is_recognized(tmp_path: Path) -> None:
    lens = {**LENS, Base.ExifImageWidth: 4000, Base.ExifImageHeight: 3000}
    camera = read_camera(write_photo(tmp_path / "a.jpg", lens=lens))
    assert camera is not None
    assert camera.cropped == "it is cropped or rotated: 600x400 pixels, and 4000x3000 in its EXIF"


def test_a_crop_that_exif_does_not_tell_is_recognized_by_the_calibration(tmp_path: Path) -> None:
    center = {"drone-dji:CalibratedOpticalCenterX": "2000.0", "drone-dji:CalibratedOpticalCenterY": "1500.0"}
    packet = xmp({**NADIR, **center, "drone-dji:CalibratedFocalLength": "3000"})
    lens = {**LENS, Base.ExifImageWidth: 2000, Base.ExifImageHeight: 2000}
    cropped = read_camera(write_photo(tmp_path / "a.jpg", size=(2000, 2000), lens=lens, packet=packet))
    assert cropped is not None
    assert cropped.cropped == (
        "it is cropped or rotated: 2000x2000 pixels, and its calibrated optical center is at 2000, 1500"
    )
    wide = read_camera(write_photo(tmp_path / "b.jpg", size=(2000, 1125), lens={}, packet=packet))  # 16:9, reduced
    assert wide is not None
    assert not wide.cropped
    assert wide.focal == pytest.approx(1500)


def test_a_calibrated_focal_length_in_millimeters_is_ignored_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    packet = xmp({**NADIR, "drone-dji:CalibratedFocalLength": "10.26"})
    camera = read_camera(write_photo(tmp_path / "a.jpg", lens={Base.FocalLengthIn35mmFilm: 24}, packet=packet))
    assert camera is not None
    assert camera.focal == pytest.approx(24 / DIAGONAL * math.hypot(600, 400))
    assert "CalibratedFocalLength '10.26 pixels'" in caplog.text


@pytest.mark.parametrize(
    ("lat", "lon", "expected"),
    [
        ("46,30.0000N", "6,15.5W", (-(6 + 15.5 / 60), 46.5)),
        ("33,52,4.8S", "151,12,36.0E", (151.21, -(33 + 52 / 60 + 4.8 / 3600))),
        ("46,30.0E", "6,15.5W", None),
        ("95,0.0N", "6,15.5W", None),
    ],
)
def test_a_position_in_standard_xmp_is_read(
    tmp_path: Path, lat: str, lon: str, expected: tuple[float, float] | None
) -> None:
    names = {"exif:GPSLatitude": lat, "exif:GPSLongitude": lon}
    packet = xmp({**NADIR, **names}, namespaces='xmlns:drone-dji="d" xmlns:exif="http://ns.adobe.com/exif/1.0/"')
    camera = read_camera(write_photo(tmp_path / "a.jpg", position={}, packet=packet))
    assert camera is not None
    assert camera.lon_lat == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    ("tags", "packet", "expected"),
    [
        ({"GPSHPositioningError": 2.5}, {}, 2.5),
        ({"GPSDOP": 2.0}, {}, 6.0),
        ({}, {"drone-dji:RtkStdLon": "0.03", "drone-dji:RtkStdLat": "0.04"}, 0.05),
        ({"GPSDOP": IFDRational(0, 0)}, {"drone-dji:RtkStdLon": "0", "drone-dji:RtkStdLat": "0"}, None),
    ],
)
def test_the_error_of_the_position_is_what_the_receiver_states(
    tmp_path: Path, tags: dict[str, Any], packet: dict[str, str], expected: float | None
) -> None:
    position = gps(47.5, 8.25, **tags)
    camera = read_camera(write_photo(tmp_path / "a.jpg", position=position, packet=xmp({**NADIR, **packet})))
    assert camera is not None
    assert camera.position_error == (None if expected is None else pytest.approx(expected))


BAD: dict[str, tuple[dict[int, Any], dict[str, str], str]] = {
    "a denominator of zero": ({GPS.GPSLatitude: (IFDRational(47, 0), 30.0, 0.0)}, {}, "GPSLatitude"),
    "beyond the pole": ({GPS.GPSLatitude: (91.0, 0.0, 0.0)}, {}, "GPSLatitude"),
    "beyond the antimeridian": ({GPS.GPSLongitude: (180.0, 30.0, 0.0)}, {}, "GPSLongitude"),
    "no hemisphere": ({GPS.GPSLatitudeRef: ""}, {}, "GPSLatitudeRef"),
    "an unknown hemisphere": ({GPS.GPSLongitudeRef: "Q"}, {}, "GPSLongitudeRef 'Q'"),
    "no fix": ({GPS.GPSLatitude: (0.0, 0.0, 0.0), GPS.GPSLongitude: (0.0, 0.0, 0.0)}, {}, "'0, 0'"),
    "a void status": ({GPS.GPSStatus: "V"}, {}, "GPSStatus 'V'"),
    "text in place of a number": ({}, {"drone-dji:GimbalPitchDegree": "down"}, "drone-dji:GimbalPitchDegree 'down'"),
    "NaN": ({}, {"drone-dji:RelativeAltitude": "nan"}, "drone-dji:RelativeAltitude 'nan'"),
    "infinity": ({}, {"drone-dji:RelativeAltitude": "1e999"}, "drone-dji:RelativeAltitude"),
    "a fraction over zero": ({}, {"drone-dji:RelativeAltitude": "5/0"}, "drone-dji:RelativeAltitude"),
}


@pytest.mark.parametrize("fault", BAD)
def test_an_invalid_value_is_ignored_with_one_warning(
    tmp_path: Path, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    tags, attributes, named = BAD[fault]
    path = write_photo(tmp_path / "bad.jpg", position={**gps(47.5, 8.25), **tags}, packet=xmp({**NADIR, **attributes}))
    camera = read_camera(path)
    assert camera is not None
    assert None in (camera.lon_lat, camera.angles, camera.height)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith(f"{path}: ignored invalid metadata: ")
    assert named in record.getMessage()


def test_the_position_of_xmp_replaces_an_invalid_one_of_exif(tmp_path: Path) -> None:
    packet = xmp({**NADIR, "drone-dji:GpsLatitude": "-10.5", "drone-dji:GpsLongtitude": "+20.25"})
    camera = read_camera(
        write_photo(tmp_path / "a.jpg", position={**gps(1, 1), GPS.GPSLatitudeRef: "?"}, packet=packet)
    )
    assert camera is not None
    assert camera.lon_lat == (20.25, -10.5)


BOMB = b"""<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>
<x:xmpmeta xmlns:x="adobe:ns:meta/">&b;</x:xmpmeta>"""
HOSTILE = {
    "entities": BOMB,
    "entities in UTF-16": BOMB.decode().replace("?>", "?>", 1).encode("utf-16"),
    "not XML": b"<x:xmpmeta><unclosed",
    "a file": b'<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><x>&a;</x>',
    "an unknown encoding": b'<?xml version="1.0" encoding="x-none"?><x/>',
    "deep": b"<a>" * 100_000,
    "many fields": b"<x>" + b"".join(b"<f%d>1</f%d>" % (n, n) for n in range(20_000)) + b"</x>",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_packet_is_ignored(tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    exif = Image.Exif()
    exif[700] = HOSTILE[kind]
    Image.new("RGB", (60, 40)).save(tmp_path / "a.tif", exif=exif)
    camera = read_camera(tmp_path / "a.tif")
    assert camera is None or camera.lon_lat is None
    if camera is not None:
        (record,) = caplog.records
        assert re.match(re.escape(f"{tmp_path / 'a.tif'}: ignored invalid metadata: XMP ("), record.getMessage())


def test_a_packet_has_a_largest_size() -> None:
    with pytest.raises(ValueError, match="larger than"):
        parse_xmp(b"<x>" + b" " * MAX_XMP + b"</x>")
    with pytest.raises(ValueError, match="not a packet"):
        parse_xmp(1 << 40)  # bytes(n) would allocate as much
    assert parse_xmp(tuple(b'<x a="1"/>')) == {"x/a": "1"}
    assert parse_xmp(b"\0\0 \n") == {}


def test_metadata_with_any_byte_changed_never_raises(tmp_path: Path) -> None:
    whole = write_photo(tmp_path / "a.jpg").read_bytes()
    for position in range(2, 1500, 31):
        (tmp_path / "b.jpg").write_bytes(whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :])
        read_camera(tmp_path / "b.jpg")
