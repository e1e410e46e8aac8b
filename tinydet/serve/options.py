"""ServeOptions: what the service may read, store and accept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ServeOptions:
    """Limits and places of a service.

    Attributes:
        folder: of uploads, jobs and their results; created if missing.
        roots: folders whose scenes jobs may name by path.
        allow_vrt: admit VRT files below the roots, which may refer to other rasters in their folder or below.
        token: clients must send it as `Authorization: Bearer TOKEN`; empty for no check.
        queue: jobs that may wait.
        keep_jobs: finished jobs that are kept; the oldest are deleted.
        max_pixels: of a scene of a job.
        max_detect_pixels: of an image of `/detect` and `/predict`.
        max_body: bytes of a request other than an upload.
        max_upload: bytes of an upload.
        quota: bytes of all uploads together.
        cors: origins whose pages may call the service; none by default.
    """

    folder: Path
    roots: tuple[Path, ...] = ()
    allow_vrt: bool = False
    token: str = ""
    queue: int = 100
    keep_jobs: int = 1000
    max_pixels: int = 1 << 36
    max_detect_pixels: int = 1 << 24
    max_body: int = 1 << 26
    max_upload: int = 1 << 35
    quota: int = 1 << 37
    cors: tuple[str, ...] = ()
