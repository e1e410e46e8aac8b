"""`tinydet data compose`: render people and vehicles into aerial photos and drawn streets, with exact boxes.

Image `i` depends only on the seed and `i`, so runs can be interrupted, extended and divided among processes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import cv2

from tinydet._internal.arguments import number, seed, size, whole
from tinydet._internal.atomic import atomic_path, claim
from tinydet._internal.console import plural
from tinydet._internal.interrupt import deferred_interrupt
from tinydet._internal.progress import Bar
from tinydet._internal.shell import tinydet_command
from tinydet.data.composites.body import check_mesh_folder, load_body
from tinydet.data.composites.folder import (
    ATTRIBUTION,
    JOURNAL,
    Settings,
    begin,
    entry_of,
    finish,
    hash_of_photos,
    image_name,
    read_journal,
)
from tinydet.data.composites.manifest import Photo, read_manifest
from tinydet.data.composites.photos import check_photos
from tinydet.data.composites.scene import compose

SIZES = (128, 4096)  # pixels, lowest and highest width and height of an image

EXAMPLES = (
    "town --mesh makehuman/data --images 500",
    "mixed --mesh makehuman/data --backgrounds photos/backgrounds.json --images 4000 --streets 0.4 --workers 2",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Compose training images for people and vehicles seen from above, with the exact boxes of their visible\n"
        "pixels: rendered figures and vehicles in your aerial photos and in drawn streets, at 7 to 42 pixels per\n"
        "meter, from straight above to about 45°, with shadows, street furniture, noise and JPEG compression.\n"
        f"Image i depends only on the seed and i: an interrupted run continues, and a larger --images extends it.\n"
        f"OUTPUT becomes a COCO folder with the classes person and vehicle; {ATTRIBUTION} lists all licenses."
    )
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="folder of the images, new or begun before")
    parser.add_argument(
        "--mesh",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder with MakeHuman's base mesh and rig (CC0): `makehuman/data` of "
        "https://github.com/makehumancommunity/makehuman",
    )
    parser.add_argument(
        "--backgrounds",
        type=Path,
        metavar="FILE",
        help="JSON manifest of aerial photos: licenses, scale, free ground (default: drawn streets only)",
    )
    parser.add_argument(
        "--photos", type=Path, metavar="DIR", help="folder of the photos (default: that of the manifest)"
    )
    parser.add_argument(
        "--images", type=whole(1, 1_000_000), default=100, metavar="N", help="number of images (default: 100)"
    )
    parser.add_argument(
        "--size",
        type=size,
        default=(640, 640),
        metavar="WxH",
        help=f"width and height in pixels, {SIZES[0]} to {SIZES[1]} each (default: 640x640)",
    )
    parser.add_argument(
        "--seed", type=seed, default=0, metavar="N", help="seed of the random generator, 0 or more (default: 0)"
    )
    parser.add_argument(
        "--streets",
        type=number(0, 1),
        metavar="SHARE",
        help="share of images with drawn streets, 0 to 1 (default: 0.4; without --backgrounds 1)",
    )
    parser.add_argument(
        "--workers",
        type=whole(1, 256),
        metavar="N",
        help="processes that draw at the same time; the images do not depend on it (default: one per CPU)",
    )


def run(args: argparse.Namespace) -> str:
    """Compose what is missing and return a summary."""
    width, height = args.size
    if not SIZES[0] <= min(args.size) <= max(args.size) <= SIZES[1]:
        raise ValueError(f"--size must be {SIZES[0]} to {SIZES[1]} pixels in width and height, got {width}x{height}")
    if args.backgrounds is None:
        if args.photos is not None:
            raise ValueError(f"--photos {args.photos} needs a manifest of the photos; name it with --backgrounds")
        if args.streets is not None and args.streets < 1:
            raise ValueError(f"--streets {args.streets:g} needs photos for the other images; name a manifest with "
                             "--backgrounds")  # fmt: skip
    check_mesh_folder(args.mesh)
    photos = [] if args.backgrounds is None else read_manifest(args.backgrounds, args.photos)
    share = args.streets if args.streets is not None else 0.4 if photos else 1.0
    settings = Settings(args.seed, width, height, share, hash_of_photos(photos))
    output: Path = args.output
    with claim(output, folder=True):
        done = read_journal(output, settings)
        load_body(args.mesh)  # a damaged mesh is reported before anything is written
        if not done:  # later, a photo cannot be removed from the manifest without losing the finished images
            check_photos(photos)
        begin(output, settings, (done[n] for n in sorted(done)))
        missing = [n for n in range(args.images) if n not in done]
        with (
            Bar(max(args.images, len(done)), "image", "compose") as bar,
            (output / JOURNAL).open("a", encoding="utf-8") as file,
        ):
            bar.skip(len(done))
            work = _Work(output, settings, photos, args.mesh)
            workers = min(args.workers or _cpus(), max(1, len(missing)))
            for entry in _composed(work, missing, workers):
                with deferred_interrupt():
                    file.write(json.dumps(entry) + "\n")
                    file.flush()
                    done[entry["image"]] = entry
                bar.update()
        entries = [done[n] for n in sorted(done)]
        finish(output, settings, entries, photos)
    counts = {name: sum(label[0] == name and not label[2] for entry in entries for label in entry["labels"])
              for name in ("person", "vehicle")}  # fmt: skip
    return (f"{output}: {plural(len(entries), 'image', ',')}, {plural(counts['person'], 'person', ',')}, "
            f"{plural(counts['vehicle'], 'vehicle', ',')}; licenses in {output / ATTRIBUTION}\n"
            f"next: {tinydet_command('train', '--data', output)}")  # fmt: skip


class _Work(NamedTuple):
    """What a process needs to compose images."""

    output: Path
    settings: Settings
    photos: list[Photo]
    mesh: Path

    def __call__(self, n: int) -> dict[str, Any]:
        """Write image `n` and return its journal entry."""
        settings, body = self.settings, load_body(self.mesh)
        composite = compose((settings.seed, n), (settings.width, settings.height), self.photos, settings.streets, body)
        with atomic_path(self.output / "images" / image_name(n)) as temporary:
            temporary.write_bytes(composite.jpeg)
        return entry_of(n, composite)


_work: _Work | None = None  # of a worker process


def _start_worker(work: _Work) -> None:
    global _work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process stops the workers
    cv2.setNumThreads(1)
    _work = work


def _one(n: int) -> dict[str, Any]:
    assert _work is not None
    return _work(n)


def _composed(work: _Work, missing: list[int], workers: int) -> Iterator[dict[str, Any]]:
    """Compose images and yield their entries as they are finished."""
    if workers == 1:
        cv2.setNumThreads(1)
        for n in missing:
            yield work(n)
        return
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=spawn, initializer=_start_worker, initargs=(work,))
    waiting: set[Future[dict[str, Any]]] = set()
    queue = iter(missing)
    try:
        while True:
            for n in queue:
                waiting.add(pool.submit(_one, n))
                if len(waiting) >= 2 * workers:
                    break
            if not waiting:
                return
            finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in finished:
                yield future.result()
    except BrokenProcessPool as error:
        raise OSError("a process that draws images was stopped, perhaps for lack of memory; start again with fewer "
                      "--workers to continue") from error  # fmt: skip
    finally:
        pool.shutdown(cancel_futures=True)


def _cpus() -> int:
    """Return how many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
