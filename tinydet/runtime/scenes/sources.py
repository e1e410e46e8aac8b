"""What a user names, as a list of scenes: files, folders, patterns, COCO sets, videos, streams."""

from __future__ import annotations

import glob
import gzip
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

IMAGES = frozenset(
    {".avif", ".bmp", ".gif", ".img", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff"}
    | {".vrt", ".webp"}
)  # what is taken from a folder; a file that is named may be called anything
VIDEOS = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ts", ".webm", ".wmv"})
OUTPUT = re.compile(r"\.detections(\.|$)")  # what we wrote beside a scene is no scene
LIVE = ("rtsp", "rtsps", "rtmp", "rtp", "udp", "tcp", "srt")
LOCATION = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)


@dataclass(frozen=True)
class Source:
    """A scene to open, or a video or stream of them.

    Attributes:
        location: a path, or of a stream what the user named.
        image_id: its COCO id, or that of the first frame.
        moving: whether it has frames.
    """

    location: str
    image_id: int
    moving: bool = False

    @property
    def path(self) -> Path:
        return Path(self.location)

    @property
    def name(self) -> str:
        """A name for files that belong to it, without folder and suffix."""
        if is_stream(self.location):
            return re.sub(r"[^\w-]+", "-", LOCATION.sub("", self.location)).strip("-") or "stream"
        return self.path.stem

    @property
    def live(self) -> bool:
        """Whether it goes on while nobody looks."""
        return is_live(self.location)


def find_sources(words: Sequence[str | Path], first_id: int = 1) -> list[Source]:
    """Files, folders (with all below), patterns such as `flight/**/*.tif`, videos, `rtsp://...`, a webcam as `0`.

    What a folder or a pattern gives is sorted by name; the ids count on from `first_id`. A file that is named twice
    is taken once.

    Raises:
        ValueError: a folder or a pattern that holds no scene.
        FileNotFoundError: a file that does not exist.
    """
    found: dict[str, None] = {}
    for word in map(str, words):
        found.update(dict.fromkeys(_expand(word)))
    return [
        Source(location, image_id, is_stream(location) or Path(location).suffix.lower() in VIDEOS)
        for image_id, location in enumerate(found, first_id)
    ]


def coco_sources(annotations: Path, images: Path | None = None) -> list[Source]:
    """The images of a COCO file, with the ids that it gives them, in its order.

    Args:
        annotations: `.json`, or gzipped `.json.gz`; only its `images` are looked at.
        images: their folder; None for `images` beside the file, or its own folder where there is none.

    Raises:
        ValueError: the file is no COCO file, or two images have one id.
        OSError: the file, or an image of it, is missing.
    """
    entries = _image_entries(annotations)
    folder = images
    if folder is None:
        folder = annotations.parent / "images"
        folder = folder if folder.is_dir() else annotations.parent
    sources = [Source(str(folder / entry["file_name"]), int(entry["id"])) for entry in entries]
    missing = [source.location for source in sources if not source.path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{annotations} names {len(missing)} of {len(sources)} images that do not exist, first {missing[0]}; "
            "--images names their folder"
        )
    if len({source.image_id for source in sources}) != len(sources):
        raise ValueError(f"{annotations}: two images have one id; correct the file (tinydet data check)")
    return sources


def is_stream(location: str) -> bool:
    """Whether it is no file: a URL, a video device, or the number of a webcam."""
    if LOCATION.match(location) or location.startswith("/dev/video"):
        return True
    return location.isdecimal() and not Path(location).exists()


def is_live(location: str) -> bool:
    """Whether it is a webcam, or of a protocol of streams; a video on a web server is not."""
    camera = location.startswith("/dev/video") or (location.isdecimal() and not Path(location).exists())
    return camera or location.partition("://")[0].lower() in LIVE


def _expand(word: str) -> list[str]:
    path = Path(word)
    if is_stream(word) or path.is_file():
        return [word]
    if path.is_dir():
        held = [str(one) for one in sorted(path.rglob("*")) if _is_scene(one)]
        if not held:
            raise ValueError(f"{path} is a folder without images or videos ({', '.join(sorted(IMAGES))}); name another")
        return held
    if glob.has_magic(word):
        held = [
            one for one in sorted(glob.glob(word, recursive=True)) if Path(one).is_file() and not OUTPUT.search(one)
        ]
        if not held:
            raise ValueError(f"no file is called {word}; quote the pattern, and try it with ls")
        return held
    raise FileNotFoundError(f"{word} does not exist; check the path")


def _is_scene(path: Path) -> bool:
    known = path.suffix.lower() in IMAGES | VIDEOS
    return known and not OUTPUT.search(path.name) and not path.name.startswith(".") and path.is_file()


def _image_entries(path: Path) -> list[dict[str, Any]]:
    try:
        data = path.read_bytes()
        document = json.loads(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
        entries: list[dict[str, Any]] = document["images"]
        for entry in entries:
            if not (isinstance(entry["id"], int) and isinstance(entry["file_name"], str)):
                raise TypeError("an id is a whole number, a file name a text")
    except (ValueError, EOFError, KeyError, TypeError, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: no COCO file with `images` of `id` and `file_name` ({error!r})") from error
    if not entries:
        raise ValueError(f"{path} has no images; name another annotation file")
    return entries
