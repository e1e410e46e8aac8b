"""Read where a photo was taken, and with which camera, from its EXIF and XMP metadata.

Drones of DJI, Autel, Parrot, Skydio and senseFly are known, and cameras with the `Camera:` tags of Pix4D. All values
come from files that anyone may have written: an invalid one is ignored, and one warning per file names the fields.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from xml.parsers import expat

from tinydet._internal.errors import reason
from tinydet.runtime.scenes.image_file import image_format, open_with_pillow, warn_once
from tinydet.runtime.scenes.signatures import HEAD
from tinydet.runtime.scenes.tiff_tags import TIFF
from tinydet.runtime.scenes.xmp import parse_xmp

EXIF_IFD, GPS_IFD = 0x8769, 0x8825
FILM_DIAGONAL = math.hypot(36.0, 24.0)  # mm; the equivalent focal length refers to the diagonal (CIPA DCG-001)
RANGE_ERROR = 3.0  # m; of a satellite receiver without corrections at a dilution of precision of 1
MM_PER_UNIT = {2: 25.4, 3: 10.0, 4: 1.0, 5: 0.001}  # of FocalPlaneResolutionUnit
WIDEST_CROP = 0.75  # of a sensor of 4:3 to 16:9
WIDE = 1.6  # photos of a larger ratio of sides, 16:9, are cut from a sensor of 4:3, whose diagonal is 5/4 of the width
NUMBER = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,2})?)(?:/(\d+(?:\.\d*)?))?\s*(?:m|mm|px|deg|°)?")

# XMP fields by meaning, best first. A name without a prefix is matched in every namespace.
LATITUDE = ("GpsLatitude", "drone-dji:Latitude", "drone-skydio:Latitude", "drone-skydio:GPSLatitude")
LONGITUDE = (
    *("GpsLongitude", "GpsLongtitude"),  # the second as DJI spells it
    *("drone-dji:Longitude", "drone-skydio:Longitude", "drone-skydio:GPSLongitude"),
)
HEIGHT = ("RelativeAltitude", "Camera:AboveGroundAltitude", "AboveGroundAltitude")
# Angles of the optical axis in the frame north, east, down: a pitch of -90 degrees looks down.
AXIS_ANGLES = (
    ("GimbalYawDegree", "GimbalPitchDegree", "GimbalRollDegree"),
    ("drone-parrot:CameraYawDegree", "drone-parrot:CameraPitchDegree", "drone-parrot:CameraRollDegree"),
    ("CameraOrientationNED/Yaw", "CameraOrientationNED/Pitch", "CameraOrientationNED/Roll"),
)
# Angles of a camera that is mounted to look down: a pitch of 0 looks down, of 90 degrees ahead (Pix4D).
MOUNT_ANGLES = ("Camera:Yaw", "Camera:Pitch", "Camera:Roll")
FLIGHT_YAW = ("FlightYawDegree", "DroneYawDegree")
CALIBRATED_FOCAL = ("CalibratedFocalLength", "CalibratedFocalLength/X")
CALIBRATED_CENTER = (  # pixels
    ("CalibratedOpticalCenterX", "CalibratedOpticalCenter/X"),
    ("CalibratedOpticalCenterY", "CalibratedOpticalCenter/Y"),
)
SHORTEST, LONGEST = 0.2, 500.0  # plausible focal lengths, in widths of the photo; some drones state millimeters
CENTERED = 0.1  # largest distance of a calibrated optical center from that of the photo, as a fraction of its half side
# As standard XMP writes positions: "48,21.1367N" or "48,21,8.2N".
STANDARD_POSITION = re.compile(r"(\d{1,3}),(\d{1,2}(?:\.\d*)?)(?:,(\d{1,2}(?:\.\d*)?))?([NSEW])")


@dataclass(frozen=True)
class CameraMetadata:
    """What the metadata of a photo states. None stands for what it does not state, or not validly.

    Attributes:
        path: of the photo.
        size: width and height in pixels, as stored.
        orientation: of EXIF, 1 to 8, which turns the stored pixels upright.
        lon_lat: position of the camera in degrees, WGS 84.
        height: altitude above the take-off point, or above the ground where the camera states it, in meters.
        angles: yaw, pitch and roll in degrees; yaw is clockwise from north.
        convention: what the angles describe: the optical "axis", where a pitch of -90 looks down, or the "mount" of a
            camera that looks down at a pitch of 0.
        yaw_source: field that states the yaw.
        focal: focal length in pixels of the stored image.
        focal_source: where it is from.
        focal_error: relative standard error of the focal length.
        position_error: horizontal standard error of the position in meters, as the receiver states it.
        cropped: why the center or scale of the photo is unknown; empty if it is the whole picture of the camera.
    """

    path: Path
    size: tuple[int, int]
    orientation: int = 1
    lon_lat: tuple[float, float] | None = None
    height: float | None = None
    angles: tuple[float, float, float] | None = None
    convention: Literal["axis", "mount"] = "axis"
    yaw_source: str = ""
    focal: float | None = None
    focal_source: str = ""
    focal_error: float = 0.0
    position_error: float | None = None
    cropped: str = ""


def read_camera(path: Path) -> CameraMetadata | None:
    """Read the camera metadata of an image file; None if it has none that is of use, or is not a photo.

    JPEG, PNG, WebP, HEIF, AVIF and TIFF files have metadata. Only the header is read, not the pixels.
    """
    blocks = _read_blocks(path)
    if blocks is None or not (blocks.exif or blocks.gps or blocks.xmp):
        return None
    fields = _Fields(blocks)
    lon_lat = fields.lon_lat()
    angles, convention, yaw_source = fields.angles()
    focal, focal_source, focal_error = fields.focal()
    found = CameraMetadata(
        path,
        blocks.size,
        blocks.orientation,
        lon_lat,
        fields.xmp_number(HEIGHT, -1000, 1e5),
        angles,
        convention,
        yaw_source,
        focal,
        focal_source,
        focal_error,
        fields.position_error(),
        fields.cropped(),
    )
    if fields.invalid:
        listed = ", ".join(fields.invalid[:5]) + (f" and {len(fields.invalid) - 5} more" if fields.invalid[5:] else "")
        warn_once(f"{path}: ignored invalid metadata: {listed}")
    return found


@dataclass
class _Blocks:
    """Metadata as read: EXIF tags by number, XMP texts by name."""

    size: tuple[int, int]
    orientation: int
    exif: Mapping[int, Any]
    gps: Mapping[int, Any]
    xmp: Mapping[str, str]
    problems: list[str]


def _read_blocks(path: Path) -> _Blocks | None:
    from PIL import Image, TiffImagePlugin

    problems: list[str] = []
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about damaged tags
            head = file.read(HEAD)
            file.seek(0)
            kind = image_format(head)
            if head.startswith(TIFF):
                image: Image.Image = TiffImagePlugin.TiffImageFile(file, "")
                exif = image.getexif()
                packet = exif.get(700, b"")
            elif kind in ("JPEG", "PNG", "WEBP", "HEIF", "AVIF"):
                image = open_with_pillow(path, kind, file)
                exif = Image.Exif()
                exif.load(image.info.get("exif") or b"")
                packet = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or b""
            else:
                return None
            ifds = []
            for number, name in ((EXIF_IFD, "EXIF"), (GPS_IFD, "EXIF GPS")):
                try:
                    ifds.append(dict(exif.get_ifd(number)))
                except Exception as error:  # Pillow raises errors of any class
                    ifds.append({})
                    problems.append(f"{name} ({reason(error)})")
            orientation = exif.get(0x0112, 1)
            size = image.size
    except Exception:  # Pillow raises errors of any class; opening the scene reports a damaged file
        return None
    xmp: dict[str, str] = {}
    try:
        xmp = parse_xmp(packet)
    except (ValueError, LookupError, expat.ExpatError) as error:  # LookupError: an unknown encoding
        problems.append(f"XMP ({error})")
    known = isinstance(orientation, int) and orientation in range(1, 9)
    return _Blocks(size, orientation if known else 1, ifds[0], ifds[1], xmp, problems)


class _Fields:
    """Validated values. `invalid` lists the fields that were ignored, each with its value."""

    def __init__(self, blocks: _Blocks) -> None:
        self._blocks, self._xmp = blocks, blocks.xmp
        self.invalid: list[str] = list(blocks.problems)
        self._by_local_name: dict[str, str] = {}
        for name in self._xmp:
            self._by_local_name.setdefault("/".join(part.rpartition(":")[2] for part in name.split("/")), name)

    def lon_lat(self) -> tuple[float, float] | None:
        """Return the position; EXIF takes precedence over XMP. Receivers write 0, 0 or the status V without a fix."""
        if _text(self._blocks.gps.get(9)) == "V":
            self._ignore("GPSStatus", "V")
            return None
        exif = self._degrees(2, "GPSLatitude", "NS", 90), self._degrees(4, "GPSLongitude", "EW", 180)
        xmp = self.xmp_number(LATITUDE, -90, 90), self.xmp_number(LONGITUDE, -180, 180)
        standard = self._standard_degrees("exif:GPSLatitude", 90), self._standard_degrees("exif:GPSLongitude", 180)
        for lat, lon in (exif, xmp, standard):
            if lat is None or lon is None:
                continue
            if lat or lon:
                return lon, lat
            self._ignore("GPSLatitude, GPSLongitude", "0, 0")
        return None

    def angles(self) -> tuple[tuple[float, float, float] | None, Literal["axis", "mount"], str]:
        """Return yaw, pitch and roll, their convention, and the field that states the yaw."""
        conventions: tuple[Literal["axis", "mount"], ...] = ("axis", "axis", "axis", "mount")
        for names, convention in zip((*AXIS_ANGLES, MOUNT_ANGLES), conventions, strict=True):
            pitch = self.xmp_number(names[1:2], -360, 360)
            if pitch is None:
                continue
            yaw, roll = self.xmp_number(names[:1], -360, 360), self.xmp_number(names[2:], -360, 360)
            source = names[0]
            if yaw is None:
                yaw, source = self.xmp_number(FLIGHT_YAW, -360, 360), "flight yaw"
            if yaw is None:
                yaw = self._exif_number(self._blocks.gps, 17, "GPSImgDirection", 360, unknown_zero=False)
                source = "GPSImgDirection"
            if yaw is None:
                continue
            if convention == "mount" and abs(pitch + 90) <= 10:  # not backwards to the horizon: the other convention
                convention = "axis"
            return (yaw, pitch, roll or 0.0), convention, source
        return None, "axis", ""

    def focal(self) -> tuple[float | None, str, float]:
        """Return the focal length in pixels of the stored image, its source, and its relative standard error."""
        width, height = self._blocks.size
        original_width, original_height = self._original_size() or (width, height)
        scale = max(width, height) / max(original_width, original_height)
        zoom = max(self._exif_number(self._blocks.exif, 41988, "DigitalZoomRatio", 1000) or 1.0, 1.0)
        zoomed = "" if zoom == 1 else f", digital zoom {zoom:g}"
        calibrated = self.xmp_number(CALIBRATED_FOCAL, 0, 1e6)
        if calibrated:  # 0 stands for unknown
            reduction = self._calibrated_reduction() or scale
            found = calibrated * reduction
            if SHORTEST * max(width, height) <= found <= LONGEST * max(width, height):
                # A reduction that the optical center shows is not more accurate than the center.
                error = 0.005 if reduction == scale else 0.03
                return found * zoom, f"CalibratedFocalLength {calibrated:g} px{zoomed}", error
            self._ignore("CalibratedFocalLength", f"{calibrated:g} pixels")
        focal = self._exif_number(self._blocks.exif, 37386, "FocalLength", 1e5)
        resolution = self._exif_number(self._blocks.exif, 41486, "FocalPlaneXResolution", 1e9)
        unit = MM_PER_UNIT.get(self._blocks.exif.get(41488, 2))
        if focal and resolution and unit:
            return (
                focal * resolution / unit * scale * zoom,
                f"FocalLength {focal:g} mm and FocalPlaneXResolution{zoomed}",
                0.01,
            )
        equivalent = self._exif_number(self._blocks.exif, 41989, "FocalLengthIn35mmFilm", 1e5)
        if equivalent:
            long, short = max(original_width, original_height), min(original_width, original_height)
            diagonal = math.hypot(long, short) if long <= WIDE * short else 1.25 * long
            # Rounded to millimeters, and makers differ in whether they compare the diagonals or the widths. It includes
            # a digital zoom, as ExifTool assumes for its ScaleFactor35efl.
            source = f"FocalLengthIn35mmFilm {equivalent:g} mm"
            return equivalent / FILM_DIAGONAL * diagonal * scale, source, 0.04
        return None, "", 0.0

    def position_error(self) -> float | None:
        """Return the horizontal standard error of the position in meters."""
        rtk = [self.xmp_number((name,), 0, 1e4) for name in ("RtkStdLon", "RtkStdLat")]
        if rtk[0] is not None and rtk[1] is not None and max(rtk[0], rtk[1]) > 0:
            return math.hypot(rtk[0], rtk[1])
        stated = self._exif_number(self._blocks.gps, 31, "GPSHPositioningError", 1e5)
        stated = stated or self.xmp_number(("Camera:GPSXYAccuracy", "GPSXYAccuracy"), 0, 1e5)
        if stated:
            return stated
        dilution = self._exif_number(self._blocks.gps, 11, "GPSDOP", 1e4)
        return dilution * RANGE_ERROR if dilution else None

    def cropped(self) -> str:
        """Return how the photo differs from the picture that the camera took, except for a reduction; else ''."""
        original = self._original_size()
        width, height = self._blocks.size
        if original is not None and abs(width * original[1] - height * original[0]) > max(*original, width, height):
            # by more than rounding
            return f"it is cropped or rotated: {width}x{height} pixels, and {original[0]:g}x{original[1]:g} in its EXIF"
        center = self._calibrated_center()
        if self._calibrated_reduction() is not None and center is not None:
            proportions = width / height * center[1] / center[0]
            if min(abs(proportions - 1), abs(proportions * WIDEST_CROP - 1)) > 2 * CENTERED:
                return (
                    f"it is cropped or rotated: {width}x{height} pixels, and its calibrated optical center is at "
                    f"{center[0]:g}, {center[1]:g}"
                )
        return ""

    def xmp_number(self, names: Iterable[str], low: float, high: float) -> float | None:
        """Return the first of these XMP fields that is present and valid."""
        for name in names:
            key = name if ":" in name else self._by_local_name.get(name, "")
            if key not in self._xmp:
                continue
            found = NUMBER.fullmatch(self._xmp[key].strip())
            if found is not None and not (found[2] and float(found[2]) == 0):
                value = float(found[1]) / float(found[2] or 1)
                if low <= value <= high:
                    return value
            self._ignore(key, self._xmp[key])
        return None

    def _exif_number(
        self, tags: Mapping[int, Any], number: int, name: str, high: float, *, unknown_zero: bool = True
    ) -> float | None:
        """Return a number of EXIF from 0 to `high`; None if it is missing, invalid, or a zero that stands for unknown.

        Cameras write 0 or 0/0 for what they do not know.
        """
        value = tags.get(number)
        if value is None:
            return None
        try:
            found = float(value)
        except (TypeError, ValueError, OverflowError, ZeroDivisionError):
            found = math.nan
        if getattr(value, "numerator", value) == 0:
            return None if unknown_zero or math.isnan(found) else 0.0
        if 0 <= found <= high:
            return found
        self._ignore(name, value)
        return None

    def _degrees(self, number: int, name: str, hemispheres: str, limit: float) -> float | None:
        """Return a latitude or longitude of EXIF: degrees, minutes and seconds, and its hemisphere."""
        value, reference = self._blocks.gps.get(number), _text(self._blocks.gps.get(number - 1)).upper()
        if value is None:
            return None
        try:
            parts = [float(part) for part in (value if isinstance(value, tuple) else (value,))]
        except (TypeError, ValueError, OverflowError, ZeroDivisionError):
            parts = []
        degrees = math.fsum(part / 60**n for n, part in enumerate(parts))
        if not 1 <= len(parts) <= 3 or not all(0 <= part < math.inf for part in parts) or degrees > limit:
            self._ignore(name, value)
            return None
        if len(reference) != 1 or reference not in hemispheres:
            self._ignore(f"{name}Ref", reference or "missing")
            return None
        return -degrees if reference in "SW" else degrees

    def _calibrated_center(self) -> tuple[float, float] | None:
        """Return the optical center in pixels of the picture that the camera took."""
        x, y = (self.xmp_number(names, 0, 1e6) for names in CALIBRATED_CENTER)
        return (x, y) if x and y else None

    def _calibrated_reduction(self) -> float | None:
        """Return how much smaller the photo is than the one of the calibration; None if as large, or as EXIF says.

        Programs that reduce a photo often replace its size in EXIF, too, but not its calibration.
        """
        center, original = self._calibrated_center(), self._original_size() or self._blocks.size
        if center is None or abs(2 * center[0] / original[0] - 1) <= CENTERED:
            return None
        return self._blocks.size[0] / (2 * center[0])

    def _standard_degrees(self, name: str, limit: float) -> float | None:
        """Return a latitude or longitude as standard XMP writes it."""
        if name not in self._xmp:
            return None
        found = STANDARD_POSITION.fullmatch(self._xmp[name])
        if found is None or (found[4] in "NS") != (limit == 90):
            self._ignore(name, self._xmp[name])
            return None
        degrees = int(found[1]) + float(found[2]) / 60 + float(found[3] or 0) / 3600
        if degrees > limit:
            self._ignore(name, self._xmp[name])
            return None
        return -degrees if found[4] in "SW" else degrees

    def _original_size(self) -> tuple[float, float] | None:
        """Return the size of the picture that the camera took, from EXIF."""
        sizes = [self._exif_number(self._blocks.exif, tag, "PixelXDimension", 1e7) for tag in (40962, 40963)]
        return None if sizes[0] is None or sizes[1] is None else (sizes[0], sizes[1])

    def _ignore(self, name: str, value: Any) -> None:
        text = ascii(value if isinstance(value, str) else str(value))
        entry = f"{name} {text if len(text) < 60 else text[:57] + '...'}"
        if entry not in self.invalid:
            self.invalid.append(entry)


def _text(value: Any) -> str:
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else value if isinstance(value, str) else ""
    return text.strip("\0 ")
