"""`tinydet synthetic`: generate annotated scenes with tiny people, among them the built-in dataset.

A scene shows a coast from the air at an oblique angle: the sea, a beach, and bands of grass and pavement behind it,
with people 3 to 24 pixels tall and many distractors of similar size. The seed determines every pixel.

The layers from back to front are ground, shadows, distractors and people (nearer ones occlude farther ones), camera.
Each is a module of `tinydet.data.scenery`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tinydet._internal.arguments import number, seed, size, whole
from tinydet._internal.atomic import atomic_path, claim, write_json
from tinydet._internal.cache import cache_folder
from tinydet._internal.command import command
from tinydet._internal.parser import Parser
from tinydet._internal.progress import track
from tinydet.data.output_folder import new_folder
from tinydet.data.scenery.camera import photograph
from tinydet.data.scenery.compositing import Person, cast_shadows, paste, visible_people
from tinydet.data.scenery.distractors import place_distractors
from tinydet.data.scenery.ground import draw_ground
from tinydet.data.scenery.people import place_people
from tinydet.data.scenery.view import choose_view

__all__ = ["Person", "builtin_dataset", "main", "render_scene", "write_dataset", "write_scene"]

VERSION = 1  # of the generator; part of the cache path, so raise it when a seed gives other pixels
BUILTIN = {"train": (240, 1), "val": (60, 2)}  # images, seed
BUILTIN_SIZE = 384  # width and height, pixels
DENSITY = 120.0  # people per million pixels in a dataset, on average
SCENE_DENSITY = 40.0  # people per million pixels in a single scene: several hundred on 4096 x 4096
MAX_SIDE = 16_384  # pixels; drawing takes about 100 bytes per pixel
MOST_PIXELS = 10**10  # of a dataset; hours of drawing
CATEGORY = {"id": 1, "name": "person", "supercategory": "person"}


def render_scene(
    width: int, height: int, *, seed: int | Sequence[int], density: float = DENSITY
) -> tuple[NDArray[np.uint8], list[Person]]:
    """Draw a scene.

    Args:
        density: people per million pixels, on average. It affects only the people, not the ground, the distractors or
            the noise.

    Returns:
        (H, W, 3) RGB, and the people in no particular order.

    Raises:
        ValueError: a size or density out of range.
    """
    if not 16 <= min(width, height) <= max(width, height) <= MAX_SIDE:
        raise ValueError(f"a scene is 16 to {MAX_SIDE} pixels wide and high, not {width}x{height}")
    if not 0 <= density <= 20_000:
        raise ValueError(f"density is 0 to 20000 people per million pixels, not {density:g}")
    layout, ground_noise, distractor_noise, people_noise, camera = np.random.default_rng(seed).spawn(5)
    view = choose_view(layout, width, height)
    ground = draw_ground(layout, ground_noise, view)
    sprites = place_distractors(distractor_noise, view, ground) + place_people(people_noise, view, ground, density)
    sprites.sort(key=lambda sprite: (not sprite.flat, sprite.base[1]))  # lower in the image is nearer
    people = visible_people(sprites, view)
    image = ground.color
    cast_shadows(image, sprites, view)
    for sprite in sprites:
        paste(image, sprite)
    return photograph(camera, image, view), people


def write_dataset(folder: Path, *, count: int, width: int, height: int, seed: int, density: float = DENSITY) -> None:
    """Write a COCO folder of `count` scenes, which appears once it is complete.

    The density varies between images, with mean `density`; every 16th image has no people.

    Raises:
        ValueError: the folder is not empty, or `count` is not positive.
    """
    if count < 1:
        raise ValueError(f"a dataset needs at least one image, not {count}")
    folder = Path(folder)
    images, scenes = [], []
    with new_folder(folder) as work:
        (work / "images").mkdir()
        for n in track(range(count), "image", "synthetic scenes"):
            crowd = np.random.default_rng((seed, n)).gamma(1.6, density / 1.6) if n % 16 else 0.0
            pixels, people = render_scene(width, height, seed=(seed, n), density=crowd)
            name = f"{n:06d}.jpg"
            _write_image(work / "images" / name, pixels)
            images.append({"id": n + 1, "file_name": name, "width": width, "height": height, "license": 1})
            scenes.append(people)
        write_json(work / "annotations.json", _coco(images, scenes, seed))


def write_scene(path: Path, width: int, height: int, seed: int, *, density: float = SCENE_DENSITY) -> Path:
    """Write one scene to `path`, in the format of its suffix, and its COCO annotations next to it.

    Returns:
        The path of the annotation file, `NAME.annotations.json`.

    Raises:
        ValueError: unknown image format, or a folder that does not exist.
    """
    path = Path(path)
    if not cv2.haveImageWriter(path.name):
        raise ValueError(f"{path}: no image format has the suffix {path.suffix!r}; name it .jpg, .png or .tif")
    annotations = path.with_name(f"{path.stem}.annotations.json")
    with claim(path, annotations):
        pixels, people = render_scene(width, height, seed=seed, density=density)
        _write_image(path, pixels)
        image = {"id": 1, "file_name": path.name, "width": width, "height": height, "license": 1}
        write_json(annotations, _coco([image], [people], seed))
    return annotations


def builtin_dataset(split: str) -> Path:
    """Return the COCO folder of the built-in dataset, generating it on first use (about 15 seconds).

    The cache is $TINYDET_CACHE, else $XDG_CACHE_HOME/tinydet, else ~/.cache/tinydet. A split is written to a temporary
    folder, which is renamed when it is complete, so concurrent and killed processes do no harm.

    Args:
        split: "train" or "val".

    Raises:
        ValueError: unknown split.
        OSError: the cache is not writable; the message names the remedy.
    """
    if split not in BUILTIN:
        raise ValueError(f"the built-in dataset has the splits {' and '.join(BUILTIN)}, not {split!r}")
    count, seed = BUILTIN[split]
    folder = cache_folder() / f"synthetic-{VERSION}" / split
    if _is_complete(folder, count):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{split}.", dir=folder.parent))
    except OSError as error:
        raise OSError(
            f"{folder.parent} cannot be written ({error.strerror}); name a folder for it in TINYDET_CACHE"
        ) from error
    try:
        write_dataset(work / split, count=count, width=BUILTIN_SIZE, height=BUILTIN_SIZE, seed=seed)
        _move_into_place(work / split, folder, count)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


@command("synthetic")
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(
        "synthetic",
        examples=("beach --images 500 --seed 3", "scene.jpg --scene --size 4096x4096 --seed 7"),
        needs_arguments=True,
        description="Generate annotated scenes with tiny people: coasts seen from the air, people 3 to 24 pixels "
        "tall, and many other objects of similar size. OUTPUT is a new COCO folder or, with --scene, an "
        "image, whose annotations go to NAME.annotations.json. The same seed gives the same pixels.",
    )
    parser.add_argument("output", type=Path, help="new folder; with --scene, image file (.jpg, .png or .tif)")
    parser.add_argument(
        "--images", type=whole(1, 1_000_000), metavar="N", help="number of images in the folder (default: 100)"
    )
    parser.add_argument(
        "--size",
        type=size,
        default=(384, 384),
        metavar="WxH",
        help=f"width and height in pixels, 16 to {MAX_SIDE} each (default: 384x384)",
    )
    parser.add_argument(
        "--seed", type=seed, default=0, metavar="N", help="seed of the random generator, 0 or more (default: 0)"
    )
    parser.add_argument(
        "--density",
        type=number(0, 100_000),
        metavar="D",
        help=f"people per million pixels, on average (default: {DENSITY:g}; with --scene {SCENE_DENSITY:g})",
    )
    parser.add_argument(
        "--max-pixels",
        type=whole(1, 10**15),
        default=MOST_PIXELS,
        metavar="N",
        help=f"refuse datasets of more pixels, which would take hours to draw (default: {MOST_PIXELS})",
    )
    parser.add_argument("--scene", action="store_true", help="generate one image instead of a folder")
    options = parser.parse_args(argv)
    width, height = options.size
    if options.scene:
        if options.images is not None:
            raise ValueError("--images is for a folder, but --scene generates one image; leave one of them out")
        density = SCENE_DENSITY if options.density is None else options.density
        annotations = write_scene(options.output, width, height, options.seed, density=density)
        print(f"{options.output}  {annotations}")
    else:
        count = 100 if options.images is None else options.images
        if (pixels := count * width * height) > options.max_pixels:
            raise ValueError(
                f"{count:,} images of {width}x{height} are {pixels:,} pixels, more than {options.max_pixels:,}; "
                "generate fewer or smaller images, or raise the limit with --max-pixels"
            )
        density = DENSITY if options.density is None else options.density
        write_dataset(options.output, count=count, width=width, height=height, seed=options.seed, density=density)
        print(options.output)
    return 0


def _coco(images: list[dict[str, Any]], scenes: list[list[Person]], seed: int) -> dict[str, Any]:
    annotations: list[dict[str, Any]] = []
    for image, people in zip(images, scenes, strict=True):
        for person in people:
            box = [round(value, 3) for value in person[:4]]
            flags = {"iscrowd": 0, "ignore": int(person.ignore)}
            entry = {"id": len(annotations) + 1, "image_id": image["id"], "category_id": CATEGORY["id"], "bbox": box}
            annotations.append(entry | {"area": round(box[2] * box[3], 3)} | flags)
    info = {
        "description": "Synthetic coasts with tiny people, drawn by tinydet.data.synthetic",
        "version": str(VERSION),
        "seed": seed,
        "license": "generated",
    }
    licences = [{"id": 1, "name": "generated", "url": ""}]
    return {"info": info, "licenses": licences, "categories": [CATEGORY], "images": images, "annotations": annotations}


def _write_image(path: Path, pixels: NDArray[np.uint8]) -> None:
    quality = [cv2.IMWRITE_JPEG_QUALITY, 92] if path.suffix.lower() in (".jpg", ".jpeg") else []
    _, content = cv2.imencode(path.suffix, pixels[..., ::-1], quality)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.tobytes())


def _move_into_place(drawn: Path, folder: Path, count: int) -> None:
    """Rename `drawn` to `folder`, unless another process was first. An incomplete `folder` is replaced."""
    while True:
        try:
            drawn.rename(folder)
            return
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
        if _is_complete(folder, count):
            return
        with contextlib.suppress(FileNotFoundError):  # another process moved it away first
            folder.rename(Path(tempfile.mkdtemp(dir=drawn.parent)) / "damaged")


def _is_complete(folder: Path, count: int) -> bool:
    """Return whether no file was removed from a folder since it was moved here."""
    images = folder / "images"
    return (folder / "annotations.json").is_file() and images.is_dir() and len(os.listdir(images)) == count


if __name__ == "__main__":
    sys.exit(main())
