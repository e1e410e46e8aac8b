"""Expand the inputs of a command (files, folders, patterns, COCO files, videos, streams) into a list of sources."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

IMAGES = frozenset(
    {".avif", ".bmp", ".gif", ".img", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff"}
    | {".vrt", ".webp"}
)  # suffixes that are searched for in a folder; a file that is named directly may have any
VIDEOS = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ts", ".webm", ".wmv"})
OUTPUT = re.compile(r"\.detections(\.|$)")  # our own output files, which are skipped
LIVE = ("rtsp", "rtsps", "rtmp", "rtp", "udp", "tcp", "srt")
LOCATION = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)


@dataclass(frozen=True)
class Source:
    """A scene to open, or a video or stream of them.

    Attributes:
        location: a path, URL, video device, or the number of a webcam.
        image_id: the COCO image id of the scene, or of the first frame.
        moving: whether it is a video or stream.
    """

    location: str
    image_id: int
    moving: bool = False

    @property
    def path(self) -> Path:
        return Path(self.location)

    @property
    def name(self) -> str:
        """A base name for output files: the file name without suffix, or the address of a stream."""
        if is_stream(self.location):
            return re.sub(r"[^\w-]+", "-", LOCATION.sub("", self.location)).strip("-") or "stream"
        return self.path.stem

    @property
    def live(self) -> bool:
        """Whether it is a live stream or webcam."""
        return is_live(self.location)


def find_sources(words: Sequence[str | Path], first_id: int = 1) -> list[Source]:
    """Find the scenes that `words` name: files, folders, patterns (`flight/**/*.tif`), URLs, webcams (`0`).

    Folders are searched recursively. Files of a folder or pattern are sorted by name, repeated files are dropped, and
    image ids count up from `first_id`.

    Raises:
        ValueError: a folder or pattern matches no scene.
        FileNotFoundError: a file does not exist.
    """
    found: dict[str, None] = {}
    for word in map(str, words):
        found.update(dict.fromkeys(_expand(word)))
    return [
        Source(location, image_id, is_stream(location) or Path(location).suffix.lower() in VIDEOS)
        for image_id, location in enumerate(found, first_id)
    ]


def is_stream(location: str) -> bool:
    """Return whether a location is not a file: a URL, a video device, or the number of a webcam."""
    if LOCATION.match(location) or location.startswith("/dev/video"):
        return True
    return location.isdecimal() and not Path(location).exists()


def is_live(location: str) -> bool:
    """Return whether a location is a webcam or uses a streaming protocol; a video on a web server does not."""
    camera = location.startswith("/dev/video") or (location.isdecimal() and not Path(location).exists())
    return camera or location.partition("://")[0].lower() in LIVE


def _expand(word: str) -> list[str]:
    path = Path(word)
    if is_stream(word) or path.is_file():
        return [word]
    if path.is_dir():
        found = [str(file) for file in sorted(path.rglob("*")) if _is_scene(file)]
        if not found:
            raise ValueError(f"{path} is a folder without images or videos ({', '.join(sorted(IMAGES))}); name another")
        return found
    if glob.has_magic(word):
        matches = sorted(glob.glob(word, recursive=True))
        found = [match for match in matches if Path(match).is_file() and not OUTPUT.search(match)]
        if not found:
            raise ValueError(f"no file matches {word}; quote the pattern, and try it with ls")
        return found
    raise FileNotFoundError(f"{word} does not exist; check the path")


def _is_scene(path: Path) -> bool:
    is_known = path.suffix.lower() in IMAGES | VIDEOS
    return is_known and not OUTPUT.search(path.name) and not path.name.startswith(".") and path.is_file()
