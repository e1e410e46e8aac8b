"""Open rasters with GDAL, but no files that they refer to elsewhere unless TINYDET_ALLOW_REFERENCES=1 is set.

GDAL follows references to other files and to servers: from VRT files and other descriptions of services, from HDF5, and
from the metadata and sidecars of any raster. A file that was sent by somebody else could so show files of this machine
in its pixels, or call servers. Therefore:

- only formats that keep their pixels in the file, or in one of the same name next to it, are opened;
- a VRT is opened if its suffix is `.vrt` and it refers only to rasters in its folder or below;
- overviews and masks in sidecars (`.ovr`, `.msk`) must be TIFF files next to the raster;
- no file is fetched from a server, except a raster that the user names by its address: GDAL may read that object and
  no other, so a raster in a store is one file without sidecars.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any
from xml.etree import ElementTree

import numpy as np

from tinydet._internal import stores
from tinydet._internal.errors import name_failures, reason
from tinydet._internal.extras import needs_extra
from tinydet._internal.stores import StorePath
from tinydet.runtime.scenes.image_file import image_format
from tinydet.runtime.scenes.signatures import HEAD
from tinydet.runtime.scenes.tiff_tags import TIFF, read_tiff_tags

VARIABLE = "TINYDET_ALLOW_REFERENCES"
DRIVERS = (
    *("GTiff", "JP2OpenJPEG", "JP2KAK", "JP2ECW", "JP2MrSID", "JPEGXL", "PNG", "JPEG", "GIF", "BIGGIF", "BMP", "WEBP"),
    *("AVIF", "HEIF", "PNM", "SGI", "HFA", "NITF", "ENVI", "EHdr", "ECW", "MrSID", "GPKG", "MBTiles", "FITS"),
    *("GRIB", "DTED", "SRTMHGT", "USGSDEM", "AAIGrid", "GRASSASCIIGrid", "GSAG", "GSBG", "GS7BG", "RST", "SAGA"),
    *("ROI_PAC", "PCRaster", "BSB", "LAN", "KRO", "BT", "HF2", "RMF", "SIGDEM", "Terragen", "ZMap"),
)  # of GDAL; names that a build lacks are ignored
OPTIONS = {
    "GDAL_NUM_THREADS": "1",  # windows are read by several threads; those of GDAL print errors instead of raising them
}
GUARDS = {
    "GDAL_VRT_ENABLE_PYTHON": "NO",  # pixel functions in a VRT are code
    "CPL_VSIL_CURL_ALLOWED_EXTENSIONS": "{none}",
}
SIDECARS = ("", ".ovr", ".msk", ".OVR", ".MSK", ".ovr.ovr", ".msk.ovr", ".ovr.msk")  # "" for its own .aux.xml
_VRT = re.compile(rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*<VRTDataset", re.DOTALL)
_REFERRING = (b"\x89HDF", b"CDF\1", b"CDF\2", b"CDF\5", b"<GDAL_", b"<WMS", b"<MRF", b"<VRTDataset")
_RASTERS = (*TIFF, b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  ", b"EHFA_HEADER_TAG", b"NITF", b"NSIF")  # that GDAL reads
_BLANK = b"\xef\xbb\xbf \t\r\n"  # before the first character of a text, with the mark of UTF-8
_FILE_ELEMENTS = frozenset({"SourceFilename", "SourceDataset"})
_TEXT_ELEMENTS = frozenset({"SRS", "SourceSRS", "TargetSRS", "Description", "UnitType", "Category", "FieldDefn", "F"})
_SERVICE = re.compile(r"/vsi|://|^\s*<|^\s*(?!EPSG:|OGC:|ESRI:)\w{2,}:", re.IGNORECASE)  # not the name of a file
_ELSEWHERE = re.compile(r"^\s*[/\\~]|^\s*[A-Za-z]:[\\/]|\.\.")

logging.getLogger("rasterio").addHandler(logging.NullHandler())  # our exceptions carry its errors


def references_allowed() -> bool:
    """Return whether the user lets rasters refer to other files and servers."""
    return os.environ.get(VARIABLE, "") not in ("", "0")


@contextmanager
def gdal_options(path: Path, **options: Any) -> Iterator[None]:
    """Apply the GDAL options of this module while a raster is read in this block."""
    with needs_extra("geo"):
        import rasterio
    chosen = {name: value for name, value in OPTIONS.items() if name not in os.environ}
    _ignore_undecodable_messages()
    guards = {} if references_allowed() else dict(GUARDS)
    if isinstance(path, StorePath):
        guards.pop("CPL_VSIL_CURL_ALLOWED_EXTENSIONS", None)
        chosen |= stores.gdal_options(path)
    with rasterio.Env(**chosen, **guards, **options):
        yield


@functools.cache  # once for the process: threads that took turns would restore each other's hooks
def _ignore_undecodable_messages() -> None:
    """Keep Python from printing that rasterio cannot decode a GDAL message, which may quote a damaged file.

    The error itself is still raised. Python calls both hooks for exceptions that cannot be raised.
    """
    show, report = sys.excepthook, sys.unraisablehook

    def show_others(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not _is_undecodable_message(error):
            show(kind, error, trace)

    def report_others(unraisable: Any) -> None:
        if not _is_undecodable_message(unraisable.exc_value):
            report(unraisable)

    sys.excepthook, sys.unraisablehook = show_others, report_others


def _is_undecodable_message(error: BaseException | None) -> bool:
    if not isinstance(error, UnicodeDecodeError):
        return False
    frames = traceback.extract_tb(error.__traceback__)
    return not frames or "rasterio" in frames[-1].filename  # compiled code may leave no frame


def open_raster(path: Path) -> Any:
    """Open a raster as a rasterio dataset, after checking its references.

    Raises:
        ValueError: the file is damaged, not an image, or refers to other files.
        ModuleNotFoundError: rasterio is not installed.
    """
    try:
        with needs_extra("geo"):
            import rasterio
    except ModuleNotFoundError as error:
        head = _head(path)
        if head.startswith(_RASTERS) or image_format(head) is not None:
            raise ModuleNotFoundError(f"{path} is read by windows, with rasterio. {error}", name=error.name) from None
        raise ValueError(
            f"{path}: damaged, or not an image that OpenCV or Pillow reads; for VRT, NITF, ENVI and others, {error}"
        ) from None
    allowed = references_allowed()
    is_virtual = allowed or _check_references(path)
    try:
        with gdal_options(path):
            file = _open(path, None if allowed else ["VRT"] if is_virtual else DRIVERS)
            if not is_virtual:
                _check_sidecars(path, file)
                _check_length(path, file)
            return file
    except rasterio.errors.RasterioError as error:
        if isinstance(path, StorePath):
            check_readable(path)
        head = _head(path)
        if head.startswith(_REFERRING):
            raise _refused(path, "a format that may refer to other files or servers") from error
        raise _unknown(path, f" ({reason(error)})" if head.startswith(TIFF) else "") from error


def check_readable(path: StorePath) -> None:
    """Check that a store still delivers an object, to tell its errors from those of a damaged file.

    Raises:
        OSError: it does not. Names the object and the reason.
    """
    stores.read_byte(path)


def _open(path: Path, drivers: Sequence[str] | None) -> Any:
    """Open a raster with one of these drivers; None allows all."""
    with needs_extra("geo"):
        import rasterio
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        if isinstance(path, StorePath):
            return rasterio.io.DatasetReader(stores.gdal_name(path), driver=drivers and list(drivers), sharing=False)
        # An absolute path cannot be taken for the name of a server, or of a part of a file.
        return rasterio.io.DatasetReader(path.absolute(), driver=drivers and list(drivers), sharing=False)


def _check_length(path: Path, file: Any) -> None:
    """Check that an ENVI file has all of its pixels; GDAL would fill missing ones with zeros.

    Raises:
        ValueError: it has not.
    """
    tags = file.tags(ns="ENVI")
    if file.driver != "ENVI" or tags.get("file_compression", "0") != "0":
        return
    size, offset = path.stat().st_size, int(tags.get("header_offset", 0))
    expected = offset + file.width * file.height * sum(np.dtype(kind).itemsize for kind in file.dtypes)
    if size < expected:
        raise ValueError(f"{path}: truncated ENVI image, it has {size} of {expected} bytes; get the file again")


def is_vrt(head: bytes) -> bool:
    """Return whether a file is a VRT, from its first HEAD bytes."""
    return _VRT.match(head) is not None


def _head(path: Path) -> bytes:
    with path.open("rb", buffering=0) as file:
        return file.read(HEAD)


def _is_text(head: bytes) -> bool:
    """Return whether a file looks like XML or HTML."""
    return head.lstrip(_BLANK).startswith(b"<")


def _unknown(path: Path, why: str = "") -> ValueError:
    return ValueError(
        f"{path}: damaged, or not an image that OpenCV, Pillow or GDAL reads{why}; get the file again or convert it to "
        "PNG or TIFF"
    )


def _refused(path: Path, what: str) -> ValueError:
    return ValueError(
        f"{path}: {what}; if you trust the file, set {VARIABLE}=1 in the environment, or convert it to TIFF"
    )


def _check_references(path: Path) -> bool:
    """Check a file and everything it refers to before GDAL opens it; return whether it is a VRT.

    Raises:
        ValueError: it refers to a file outside its folder, or to one that is not a raster.
    """
    head = _head(path)
    if not is_vrt(head):
        if _is_text(head):  # other descriptions, which GDAL need not parse
            what = "a format that may refer to other files or servers"
            raise _refused(path, what) if head.lstrip(_BLANK).startswith(_REFERRING) else _unknown(path)
        _check_metadata(path)
        return False
    if isinstance(path, StorePath):
        raise ValueError(f"{path}: a VRT refers to other files, which are not read from a store; name those files")
    if path.suffix.lower() != ".vrt":
        raise _refused(path, "a VRT, which refers to other files, with another suffix")
    state = path.stat()
    _check_virtual_raster(path, state.st_mtime_ns, state.st_size)
    return True


@functools.lru_cache(maxsize=16)  # several handles are opened on a file, and it may refer to thousands
def _check_virtual_raster(path: Path, changed: int, size: int) -> None:
    first = path.resolve()  # GDAL, too, resolves links before it looks for neighboring files
    folder, pending, seen = first.parent, [first], {first}
    while pending:
        virtual = pending.pop()
        for name, is_relative in _references(path, virtual):
            target = (virtual.parent / name if is_relative else Path(name)).resolve()
            if not target.is_relative_to(folder):
                raise _refused(path, f"it refers to {name}, outside its folder")
            if not target.is_file():
                raise ValueError(f"{path}: it refers to {name}, which does not exist; get that file too")
            if target in seen:
                continue
            seen.add(target)
            _check_metadata(target)
            head = _head(target)
            if is_vrt(head):
                pending.append(target)
            elif not head.startswith(_RASTERS) and image_format(head) is None:
                with name_failures(path, "read", f"check {name}, which it refers to"):
                    _open(target, DRIVERS).close()


def _references(path: Path, virtual: Path) -> Iterator[tuple[str, bool]]:
    """Yield the files that a VRT names, and whether the name is relative to the VRT.

    Raises:
        ValueError: the VRT is damaged, runs code, or may refer to something other than a file.
    """
    text = virtual.read_bytes()
    if b"<!DOCTYPE" in text or b"<!ENTITY" in text:
        raise _refused(path, "a VRT with a document type definition")
    try:
        pending = [ElementTree.fromstring(text)]
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise ValueError(f"{virtual}: damaged VRT ({error}); get the file again") from error
    while pending:
        element = pending.pop()
        if element.tag in _TEXT_ELEMENTS or (element.tag == "Metadata" and not element.get("domain")):
            continue
        pending.extend(reversed(element))
        value = (element.text or "").strip()
        if element.tag == "PixelFunctionLanguage" and value.lower() == "python":
            raise _refused(path, "it contains Python code")
        if element.tag in _FILE_ELEMENTS and value:
            if _SERVICE.search(value):
                raise _refused(path, f"it refers to {value[:80]}")
            yield value, element.get("relativeToVRT", element.get("relativetoVRT", "0")) == "1"
        elif any(_SERVICE.search(each) or _ELSEWHERE.search(each) for each in (value, *element.attrib.values())):
            raise _refused(path, f"its element {element.tag} may refer to other files ({value[:80]})")


def _check_metadata(path: Path) -> None:
    """Check that the metadata of a raster and its sidecars do not make GDAL open another file.

    Raises:
        ValueError: they do.
    """
    texts = [read_tiff_tags(path).metadata]
    for suffix in () if isinstance(path, StorePath) else SIDECARS:
        name = f"{path}{suffix}"
        if suffix and os.path.isfile(name):
            if not _head(Path(name)).startswith(TIFF):
                raise _refused(Path(name), "not a TIFF, as overviews and masks are")
            texts.append(read_tiff_tags(Path(name)).metadata)
        about = f"{name}.aux.xml"
        texts += [Path(about).read_text("utf-8", "replace")] if os.path.isfile(about) else []
    if any("OVERVIEW_FILE" in text or "ProxyOverviewRequest" in text for text in texts):
        raise _refused(path, "its metadata refer to overviews in another file")


def _check_sidecars(path: Path, file: Any) -> None:
    """Check that the parts of an open raster are in its folder; close the raster if not.

    Raises:
        ValueError: one is not.
    """
    if file.tags(ns="OVERVIEWS"):  # looked up before GDAL opens them
        file.close()
        raise _refused(path, "its metadata refer to overviews in another file")
    if isinstance(path, StorePath):
        return
    folder = os.path.dirname(os.path.abspath(path))
    for name in file.files:
        if os.path.commonpath([folder, os.path.abspath(name)]) != folder:
            file.close()
            raise _refused(path, f"it refers to {name}, outside its folder")
