"""Distinguish images from videos by their first bytes. A suffix may be wrong, missing or unknown."""

from __future__ import annotations

import re
from typing import Literal

HEAD = 4096  # bytes that identify a format
Kind = Literal["image", "video"]

_IMAGES = (
    *(b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),  # JPEG, PNG, GIF, TIFF, BigTIFF
    *(b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  ", b"\xff\x0a", b"\0\0\0\x0cJXL "),  # JPEG 2000, JPEG XL
    *(
        b"8BPS",
        b"qoif",
        b"\x76\x2f\x31\x01",
        b"#?RADIANCE",
        b"DDS ",
        b"\0\0\1\0",
    ),  # PSD, QOI, EXR, HDR, DDS, ICO
    *(b"EHFA_HEADER_TAG", b"NITF", b"NSIF", b"SIMPLE  =", b"\x89HDF", b"CDF\1", b"CDF\2"),  # rasters of GDAL
    *(b"IIU\0", b"IIRO", b"FUJIFILM", b"%PDF"),  # camera raw files and documents, which are not supported
)
_IMAGE_BRANDS = frozenset({b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"}) | frozenset(
    {b"mif1", b"mif2", b"msf1", b"miaf", b"crx "}
)
_VIDEOS = (
    *(b"\x1aE\xdf\xa3", b"FLV\1", b"OggS", b"\x30\x26\xb2\x75", b"\x06\x0e\x2b\x34"),  # Matroska, FLV, Ogg, ASF, MXF
    *(b".RMF", b"DKIF", b"YUV4MPEG2", b"nut/multimedia", b"DHAV", b"IMKH", b"\xb7\xd8\0\x20"),
    *(b"\0\0\1", b"\0\0\0\1"),  # MPEG program and elementary streams, H.264, H.265; an icon was recognized before
)
_BOXES = frozenset({b"ftyp", b"styp", b"moov", b"moof", b"mdat", b"sidx", b"wide", b"free", b"skip", b"pnot"})
_NETPBM = re.compile(rb"P[1-7fF]\s")
_VIRTUAL = re.compile(rb"\s*(<\?xml[^>]*>\s*)?<VRTDataset")
JPEG_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7\x01])")  # neither a stuffed zero nor a restart


def media_kind(head: bytes) -> Kind | None:
    """Return the kind of a file from its first HEAD bytes; None if it is unknown."""
    if head[4:8] in _BOXES:  # MP4, QuickTime, 3GP; AVIF and HEIC have the same boxes
        return "image" if head[4:8] == b"ftyp" and head[8:12] in _IMAGE_BRANDS else "video"
    if head.startswith(b"RIFF"):
        return {b"WEBP": "image", b"AVI ": "video"}.get(head[8:12])  # type: ignore[return-value]
    is_bitmap = head.startswith(b"BM") and head[6:10] == bytes(4)
    if (
        head.startswith(_IMAGES)
        or is_bitmap
        or _NETPBM.match(head)
        or _VIRTUAL.match(head.removeprefix(b"\xef\xbb\xbf"))
    ):
        return "video" if head[16:24] == b"ftypmjp2" else "image"
    if head.startswith(_VIDEOS) or _is_transport_stream(head):
        return "video"
    return None


def is_motion_jpeg(data: bytes) -> bool:
    """Return whether the data is a sequence of JPEG images, which is a video.

    A multi-picture file (MPO) also holds several JPEG images; it is an image.
    """
    position = 2
    while data.startswith(b"\xff\xd8\xff") and (found := JPEG_MARKER.search(data, position)):
        marker, position = found[1][0], found.end()
        if marker == 0xD9:
            return data[position : position + 3] == b"\xff\xd8\xff"
        if marker == 0xE2 and data[position + 2 : position + 6] == b"MPF\0":
            return False
        position += int.from_bytes(data[position : position + 2], "big")
    return False


def _is_transport_stream(head: bytes) -> bool:
    """Return whether packets of MPEG-TS begin at equal distances: alone, after 4 bytes, or before a checksum."""
    return any(head[first : first + 2 * size + 1 : size] == b"GGG" for first, size in ((0, 188), (4, 192), (0, 204)))
