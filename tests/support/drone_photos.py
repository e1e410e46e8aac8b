"""Photos with the metadata that drones write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image
from PIL.ExifTags import GPS, IFD, Base
from PIL.PngImagePlugin import PngInfo
from PIL.TiffImagePlugin import IFDRational

DJI = 'xmlns:drone-dji="http://www.dji.com/drone-dji/1.0/"'
NADIR = {
    "drone-dji:RelativeAltitude": "+100.00",
    "drone-dji:GimbalRollDegree": "+0.00",
    "drone-dji:GimbalYawDegree": "+0.00",
    "drone-dji:GimbalPitchDegree": "-90.00",
}
LENS = {Base.FocalLength: IFDRational(88, 10), Base.FocalLengthIn35mmFilm: 24}


def gps(lat: float, lon: float, **more: Any) -> dict[int, Any]:
    """The GPS tags of a position: degrees, minutes and seconds with 1e-8 s, and the hemisphere."""

    def parts(degrees: float) -> tuple[IFDRational, ...]:
        whole = int(degrees)
        minutes = int((degrees - whole) * 60)
        seconds = (degrees - whole - minutes / 60) * 3600
        return IFDRational(whole, 1), IFDRational(minutes, 1), IFDRational(round(max(seconds, 0) * 10**8), 10**8)

    tags = {
        GPS.GPSLatitudeRef: "S" if lat < 0 else "N",
        GPS.GPSLatitude: parts(abs(lat)),
        GPS.GPSLongitudeRef: "W" if lon < 0 else "E",
        GPS.GPSLongitude: parts(abs(lon)),
    }
    return {**tags, **{GPS[name]: value for name, value in more.items()}}


def xmp(attributes: dict[str, str], namespaces: str = DJI, elements: str = "") -> bytes:
    """An XMP packet as drones write it."""
    listed = "\n".join(f'{name}="{value}"' for name, value in attributes.items())
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n<x:xmpmeta xmlns:x="adobe:ns:meta/">\n'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">\n'
        f'<rdf:Description rdf:about="DJI Meta Data" {namespaces}\n{listed}>{elements}</rdf:Description>\n'
        '</rdf:RDF></x:xmpmeta>\n<?xpacket end="w"?>'
    ).encode()


def write_photo(
    path: Path,
    *,
    size: tuple[int, int] = (600, 400),
    position: dict[int, Any] | None = None,
    lens: dict[int, Any] | None = None,
    packet: bytes | None = None,
    orientation: int = 1,
    pixels: Image.Image | None = None,
) -> Path:
    """Write a photo of 3:2 taken straight down from 100 m with a lens of 24 mm, but for what the arguments change."""
    image = Image.new("RGB", size, "gray") if pixels is None else pixels
    exif = Image.Exif()
    exif[Base.Make], exif[Base.Orientation] = "DJI", orientation
    exif[IFD.Exif] = LENS if lens is None else lens
    exif[IFD.GPSInfo] = gps(47.5, 8.25) if position is None else position
    packet = xmp(NADIR) if packet is None else packet
    text = PngInfo()
    text.add_itxt("XML:com.adobe.xmp", packet.decode())
    loaded = Image.Exif()
    loaded.load(exif.tobytes())  # Pillow writes the parts of EXIF to a TIFF only from a loaded block
    image.save(path, exif=loaded, xmp=packet, pnginfo=text)
    return path
