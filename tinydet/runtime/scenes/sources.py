"""Expand the inputs of a command (files, folders, patterns, COCO files, videos, streams) into a list of sources.

Whether a file is an image or a video is decided by its first bytes, see `signatures`.
"""

from __future__ import annotations

import base64
import glob
import hashlib
import itertools
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit

from tinydet._internal.console import plural
from tinydet._internal.names import printable, public_location
from tinydet._internal.stores import BUCKETS, StorePath, is_bucket, is_store, to_path
from tinydet._internal.suggestions import did_you_mean_path
from tinydet.runtime.scenes.catalogues import CatalogueItem, Entry, read_catalogue
from tinydet.runtime.scenes.folders import SYSTEM, doubles_text, file_key, files_in, files_matching
from tinydet.runtime.scenes.signatures import HEAD, is_motion_jpeg, media_kind
from tinydet.runtime.scenes.window import Corner

logger = logging.getLogger("tinydet.runtime")


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ImportError:
        return False


JPEGS = frozenset({".jfif", ".jpe", ".jpeg", ".jpg", ".jps", ".mpo"})
HEIF = frozenset({".heic", ".heif", ".hif"})  # read by the package pillow-heif, if it is installed
IMAGES = (
    JPEGS
    | {
        ".apng",
        ".avif",
        ".bmp",
        ".dib",
        ".gif",
        ".img",
        ".j2c",
        ".j2k",
        ".jp2",
        ".jpc",
        ".jpf",
        ".jpx",
        ".nitf",
        ".ntf",
    }
    | {".pam", ".pbm", ".pfm", ".pgm", ".png", ".pnm", ".ppm", ".ras", ".tif", ".tiff", ".vrt", ".webp"}
    | (HEIF if _is_installed("pillow_heif") else frozenset())
)  # suffixes that are searched for in a folder; a file that is named directly may have any
VIDEOS = frozenset(
    {".264", ".265", ".3g2", ".3gp", ".asf", ".avi", ".dav", ".divx", ".dv", ".f4v", ".flv", ".h264", ".h265", ".hevc"}
    | {".insv", ".ivf", ".m1v", ".m2t", ".m2ts", ".m2v", ".m4v", ".mjpeg", ".mjpg", ".mkv", ".mov", ".mp4", ".mpe"}
    | {".mpeg", ".mpg", ".mts", ".mxf", ".nut", ".ogm", ".ogv", ".qt", ".rmvb", ".ts", ".vob", ".webm", ".wmv", ".wtv"}
    | {".y4m"}
)
OTHER = frozenset(
    {".aux", ".bat", ".cfg", ".csv", ".db", ".dbf", ".doc", ".docx", ".engine", ".geojson", ".gpkg", ".gpx", ".hdr"}
    | {".htm", ".html", ".ini", ".ipynb", ".jgw", ".journal", ".json", ".jsonl", ".kml", ".log", ".md", ".md5", ".msk"}
    | {".onnx", ".ovr", ".parquet", ".pgw", ".prj", ".pt", ".pth", ".py", ".qgz", ".rpb", ".rpc", ".rst", ".sh"}
    | {".sha256", ".shp", ".shx", ".srt", ".tfw", ".toml", ".tsv", ".txt", ".vtt", ".wld", ".xlsx", ".xml", ".xmp"}
    | {".yaml", ".yml"}
)  # suffixes that are left out without a message
OUTPUT = re.compile(r"\.detections(\.|$)")  # our own output files, which are skipped
LIVE = ("rtsp", "rtsps", "rtmp", "rtmps", "rtp", "udp", "tcp", "srt")
STREAMS = (*LIVE, "http", "https", "ftp", "mmsh")
LOCATION = re.compile(r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE)
_MODEL = "a model, not an image (it is given with --model)"
NOT_SCENES = {
    ".json": "a JSON file, not an image or a STAC item (a COCO file is given with --annotations)",
    ".yaml": "a description of a dataset, not an image",
    ".yml": "a description of a dataset, not an image",
    ".pth": _MODEL,
    ".onnx": _MODEL,
    ".engine": _MODEL,
}
TIMEOUT = 5.0  # seconds to wait for the first bytes of a web address
LONGEST_NAME = 200  # bytes of the name of an output; file systems allow 255 with the suffixes
ID_LIMIT = 2**62  # of image ids, which count up from here in 64 bits
MOST_LOOKED_AT = 8  # scenes, to choose a model or a tile
MOST_KINDS = 8  # suffixes that are listed of the files that were left out


@dataclass(frozen=True)
class Source:
    """A scene to open, or a video or stream of them.

    Attributes:
        location: a path, URL, video device, or the number of a webcam. It may contain a password; show `label` instead.
        image_id: the COCO image id of the scene, or of the first frame.
        moving: whether it is a video or stream.
        size: width and height that an annotation file records; None for any.
        corner: of a sub-image, which is this part of the image; see `part_of`.
        file_name: name for results, with slashes: the path relative to the folder that holds all scenes, as an
            annotation file has it, or the label of a stream.
        listed: `state` as the listing of a store gave it; None if it is still to be asked for.
        item: of a STAC item, where the scene is from; None for other scenes.
        shown: name of the scene in results and messages, in place of its location; empty for the location.
    """

    location: str
    image_id: int
    moving: bool = False
    size: tuple[int, int] | None = None
    corner: Corner | None = None
    file_name: str = ""
    listed: tuple[int, int] | None = None
    item: CatalogueItem | None = None
    shown: str = ""

    @property
    def path(self) -> Path:
        return to_path(self.location)

    @property
    def label(self) -> str:
        """The location for messages and results: printable and without secrets."""
        if self.shown:
            return public_location(self.shown)
        return str(self.path) if is_store(self.location) and not self.moving else public_location(self.location)

    @property
    def name(self) -> str:
        """A base name for output files: the file name without suffix, or the address of a stream without secrets."""
        if is_stream(self.location) and (self.moving or not is_store(self.location)):
            address = re.sub(r"[^/@]*@|\*+", "", LOCATION.sub("", self.label))
            return shortened(re.sub(r"[^\w-]+", "-", address).strip("-") or "stream")
        return shortened(self.part_name(self.path.stem))

    def part_name(self, name: str) -> str:
        """Append the corner of a sub-image to a file name, as `tinydet data cut` does."""
        return name if self.corner is None else "{}_{}_{}".format(name, *self.corner[:2])

    @property
    def live(self) -> bool:
        """Whether it is a live stream or webcam."""
        return is_live(self.location)

    @property
    def state(self) -> tuple[int, int] | None:
        """Size in bytes and time of change in ns, by which a resumed run detects changes; None if there is no file.

        In a store, a number for the version of the object takes the place of the time.
        """
        if isinstance(path := self.path, StorePath):
            return None if self.moving else self.listed or path.info().state
        try:
            state = path.stat()
        except OSError:
            return None
        return state.st_size, state.st_mtime_ns


def find_sources(words: Sequence[str | Path], first_id: int = 1, asset: str | None = None) -> list[Source]:
    """Find the scenes that `words` name: files, folders, patterns (`flight/**/*.tif`), URLs, webcams (`0`), catalogues.

    Files, folders and patterns may be in a store: `s3://bucket/flight/`. A catalogue is a STAC item or item collection,
    or a Parquet table of scenes, see `catalogues`.

    Folders are searched recursively, see `folders.files_in`; what is left out of them is logged. Files of a folder or
    pattern are sorted by name, files that are named twice are dropped, and image ids count up from `first_id`.

    Args:
        asset: name or role of the asset of each STAC item; None for the only image of an item, or its `visual`.

    Raises:
        ValueError: a folder or pattern matches no scene; an address of a kind that cannot be read; a damaged catalogue;
            image ids that need more than 64 bits.
        OSError: a file does not exist, or a store does not list it.
    """
    if not -ID_LIMIT <= first_id <= ID_LIMIT:
        raise ValueError(f"image ids are stored in 64 bits; the first must be within ±2^62, got {first_id}")
    found: dict[object, Entry] = {}
    doubles = 0
    for entry in (entry for word in map(_text, words) for entry in _expand(word, asset)):
        location = entry.location
        kept = found.setdefault(location if is_stream(location) else file_key(Path(location)), entry).location
        doubles += os.path.abspath(kept) != os.path.abspath(location)
    if doubles:
        logger.warning(doubles_text(doubles))
    folder, prefix = _common_folder(map(_text, words)), _common_prefix(map(_text, words))
    sources = []
    for image_id, entry in enumerate(found.values(), first_id):
        moving = not entry.is_scene and _is_moving(entry.location)
        address = is_store(entry.location) and not is_bucket(entry.location) and not moving
        name = str(to_path(entry.location)) if address else _name_in(folder, prefix, entry.location)
        sources.append(Source(entry.location, image_id, moving, file_name=name, listed=entry.state, item=entry.item))
    return sources


def spread(sources: Sequence[Source]) -> list[Source]:
    """Return up to 8 of the scenes, evenly spread, to look at before a run."""
    count = min(MOST_LOOKED_AT, len(sources))
    return [sources[round(i * (len(sources) - 1) / max(1, count - 1))] for i in range(count)]


def path_of(location: str) -> Path:
    """Return the path of a file that is named by its path or a `file:` URI."""
    return _path_of_uri(location) if location.lower().startswith("file:") else to_path(location)


def is_stream(location: str) -> bool:
    """Return whether a location is not a file: a URL, a video device, or the number of a webcam."""
    return bool(LOCATION.match(location)) or _is_camera(location)


def is_live(location: str) -> bool:
    """Return whether a location is a webcam or uses a streaming protocol; a video on a web server does not."""
    return _is_camera(location) or location.partition("://")[0].lower() in LIVE


def shortened(name: str) -> str:
    """Shorten an output file name for any file system: printable, and at most 200 bytes of UTF-8."""
    name = printable(name).replace("\\", "_").replace("/", "_")
    encoded = name.encode()
    if len(encoded) <= LONGEST_NAME:
        return name
    return f"{encoded[: LONGEST_NAME - 9].decode(errors='ignore')}-{hashlib.sha256(encoded).hexdigest()[:8]}"


def _is_camera(location: str) -> bool:
    return location.startswith("/dev/video") or bool(
        re.fullmatch(r"[0-9]{1,3}", location) and not Path(location).exists()
    )


def _text(word: str | Path) -> str:
    return word.address if isinstance(word, StorePath) else str(word)


def _expand(word: str, asset: str | None) -> list[Entry]:
    if not word:
        raise ValueError("an input has an empty name; write . for the current folder")
    if word.lower().startswith("file:"):
        word = str(_path_of_uri(word))
    if (catalogue := read_catalogue(to_path(word), asset)) is not None:
        return [
            replace(entry, location=str(_path_of_uri(entry.location)))
            if entry.location.lower().startswith("file:")
            else entry
            for entry in catalogue
        ]
    if is_store(word) and (kind := NOT_SCENES.get(to_path(word).suffix.lower())):
        raise ValueError(f"{to_path(word)}: {kind}; name images, rasters or prefixes")
    if is_bucket(word):
        return _expand_in_store(StorePath.of(word))
    return [Entry(location) for location in _expand_files(word)]


def _expand_in_store(path: StorePath) -> list[Entry]:
    """Return the scenes that the address of an object, a prefix or a pattern names."""
    if glob.has_magic(path.key):
        found = path.matches()
        if not found:
            raise ValueError(f"no object matches {path}; quote the pattern, and check the bucket and the prefix")
    elif path.suffix and path.is_file():
        return [Entry(path.address, state=path.info().state)]
    else:
        found = path.files()
        if not found and path.suffix:
            raise FileNotFoundError(f"{path}: no such object; check the address")
    scenes = {
        each: info
        for each, info in found.items()
        if each.suffix.lower() in IMAGES | VIDEOS
        and not OUTPUT.search(each.name)
        and not any(part.startswith(".") or part in SYSTEM for part in each.relative_to(path.parent).parts[-1:])
    }
    if not scenes:
        raise ValueError(f"{path}: no images ({', '.join(sorted(IMAGES))}) among {plural(len(found), 'object')}")
    return [Entry(each.address, state=info.state) for each, info in scenes.items()]


def _expand_files(word: str) -> list[str]:
    if scheme := LOCATION.match(word):
        if scheme[1].lower() not in STREAMS:
            raise ValueError(
                f"{public_location(word)}: addresses of this kind cannot be read; download the file and name it. "
                f"Streams have {', '.join(STREAMS)}, files in stores {', '.join(BUCKETS)}"
            )
        return [word]
    path = Path(word)
    if (kind := NOT_SCENES.get(path.suffix.lower())) and path.is_file():
        raise ValueError(f"{printable(word)}: {kind}; name images, rasters, videos or folders")
    if path.is_file() or _is_camera(word):
        return [word]
    if path.is_dir():
        return [str(file) for file in _scenes_in(path)]
    if path.exists():
        raise ValueError(f"{printable(word)} is a device or a pipe; name a file")
    if path.is_symlink():
        raise FileNotFoundError(f"{printable(word)} is a link to {os.readlink(path)}, which does not exist")
    if glob.has_magic(word):
        found = [str(file) for file in files_matching(word) if not OUTPUT.search(file.name)]
        if not found:
            raise ValueError(f"no file matches {printable(word)}; quote the pattern, and try it with ls")
        return found
    if word == "-":
        raise ValueError("-: scenes are not read from standard input; name a file")
    raise FileNotFoundError(f"{printable(word)} does not exist; check the path{printable(did_you_mean_path(path))}")


def _common_folder(words: Iterable[str]) -> str:
    """Return the deepest folder that holds all named folders, files and matches of patterns; empty if there is none."""
    folders = []
    for word in words:
        if word.lower().startswith("file:"):
            word = str(_path_of_uri(word))
        elif is_stream(word):
            continue
        path = Path(word)
        if not path.exists():  # a pattern
            fixed = itertools.takewhile(lambda part: not glob.has_magic(part), path.parts)
            path = Path(*fixed)
        folders.append(os.path.abspath(path.parent if path.is_file() else path))
    try:
        return os.path.commonpath(folders)
    except ValueError:  # no paths, or paths on several drives
        return ""


def _common_prefix(words: Iterable[str]) -> StorePath | None:
    """Return the deepest prefix that holds all named objects of a store; None if there is none."""
    prefixes = []
    for word in filter(is_bucket, words):
        path = StorePath.of(word)
        fixed = list(itertools.takewhile(lambda part: not glob.has_magic(part), path.parts))
        prefixes.append(fixed[:-1] if len(fixed) == len(path.parts) and path.suffix else fixed)
    columns = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*prefixes, strict=False))
    common = [parts[0] for parts in columns]
    return StorePath(*common) if len(common) > 1 else None


def _name_in(folder: str, prefix: StorePath | None, location: str) -> str:
    if is_bucket(location):
        named = StorePath.of(location)
        inside = prefix is not None and named.is_relative_to(prefix)
        return "/".join(named.parts[len(prefix.parts) :]) if prefix and inside else str(named)
    if is_stream(location):
        return public_location(location)
    path = Path(os.path.abspath(location))
    return path.relative_to(folder).as_posix() if folder and path.is_relative_to(folder) else path.as_posix()


def _path_of_uri(uri: str) -> Path:
    """Return the path of a `file:` URI (RFC 8089).

    Raises:
        ValueError: it names another computer, or no absolute path.
    """
    rest = uri[len("file:") :]
    host, slash, path = rest[2:].partition("/") if rest.startswith("//") else ("", rest[:1], rest[1:])
    if host.lower() not in ("", "localhost"):
        raise ValueError(
            f"{printable(uri)} names a file of the host {printable(host)}; files of this computer begin with file:///"
        )
    if slash != "/":
        raise ValueError(f"{printable(uri)} has no absolute path; write file:///folder/file")
    return Path(os.fsdecode(b"/" + unquote_to_bytes(os.fsencode(path))))


def _scenes_in(folder: Path) -> list[Path]:
    """Return the images and videos of a folder, and log which other files it holds.

    Raises:
        ValueError: there are none.
    """
    scenes, others = [], Counter[str]()
    for file in files_in(folder):
        suffix = file.suffix.lower()
        if OUTPUT.search(file.name) or suffix in OTHER:
            continue
        if suffix in IMAGES or suffix in VIDEOS:
            scenes.append(file)
        elif suffix or media_kind(_first_bytes(file)):
            others[printable(suffix) or "without suffix"] += 1
    kinds = [f"{count} {suffix}" for suffix, count in sorted(others.items(), key=lambda item: (-item[1], item[0]))]
    listed = ", ".join(kinds[:MOST_KINDS]) + (
        f" and {len(kinds) - MOST_KINDS} more kinds" if kinds[MOST_KINDS:] else ""
    )
    if not scenes:
        instead = f", it holds {listed}" if kinds else ""
        known = ", ".join(sorted(IMAGES))
        raise ValueError(f"{printable(folder)} is a folder without images or videos ({known}){instead}; name another")
    if kinds:
        count = plural(others.total(), "file")
        logger.warning(
            f"{printable(folder)}: left out {count} of other kinds: {listed}; convert them, or name them directly"
        )
    return scenes


def _is_moving(location: str) -> bool:
    """Return whether a location is a video or stream.

    Raises:
        ValueError: it is a video in a store.
    """
    if is_bucket(location):
        path: Path = to_path(location)
        if path.suffix.lower() not in IMAGES and (
            path.suffix.lower() in VIDEOS or media_kind(_first_bytes(path)) == "video"
        ):
            raise ValueError(f"{path}: videos are read from files and web servers; copy it to a file and name that")
        return False
    if LOCATION.match(location):
        if not location.lower().startswith("http"):
            return True
        kind = media_kind(_first_bytes_of_url(location))
        return kind != "image" and (kind is not None or to_path(location).suffix.lower() not in IMAGES)
    if _is_camera(location):
        return True
    path = Path(location)
    kind = media_kind(head := _first_bytes(path))
    if kind == "image" and head.startswith(b"\xff\xd8") and path.suffix.lower() not in JPEGS:
        return is_motion_jpeg(_first_bytes(path, 1 << 24))
    return kind == "video" or (kind is None and path.suffix.lower() in VIDEOS)


def _first_bytes(path: Path, count: int = HEAD) -> bytes:
    """Return the first bytes of a file; none if it cannot be read, which is reported on opening."""
    try:
        with path.open("rb") as file:
            return file.read(count)
    except OSError:
        return b""


def _first_bytes_of_url(url: str) -> bytes:
    """Return the first bytes of a web address; none if the server does not respond, which is reported on opening."""
    from http.client import HTTPException
    from urllib.request import Request, urlopen

    try:
        parts = urlsplit(url)
        user, at, host = parts.netloc.rpartition("@")
        headers = {"Range": f"bytes=0-{HEAD - 1}", "User-Agent": "tinydet"}
        request = Request(parts._replace(netloc=host, fragment="").geturl(), headers=headers)
        if at:  # not sent to another host that the server redirects to
            code = base64.b64encode(unquote_to_bytes(user)).decode()
            request.add_unredirected_header("Authorization", f"Basic {code}")
        with urlopen(request, timeout=TIMEOUT) as response:
            return bytes(response.read(HEAD))
    except (OSError, ValueError, HTTPException):
        return b""
