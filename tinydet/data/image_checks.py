"""Rules about the image files of a COCO dataset: each file is there, readable and of the recorded size."""

from __future__ import annotations

from pathlib import Path

from tinydet._internal.progress import Progress
from tinydet.data.coco_entries import Fault, Report
from tinydet.data.coco_rules import Contents, ImageRecord
from tinydet.runtime.scenes import open_scene

_STRIP = 1 << 22  # pixels decoded at once of an image too large for memory


def check_folder(source: Path, folder: Path) -> None:
    """Check that the image folder of the annotation file `source` exists.

    Raises:
        ValueError: it does not, or is not a folder.
    """
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise ValueError(f"{folder}: the image folder of {source} {what}; check --images")


def examine_files(contents: Contents, folder: Path, report: Report) -> None:
    """Check that every image has its file, without opening any."""
    missing = [n for n, image in enumerate(contents.images) if image.file_name and not _is_file(folder, image)]
    place = dict(zip(contents.image_entry[missing].tolist(), missing, strict=True))
    if missing:

        def describe(entry: int) -> str:
            image = contents.images[place[entry]]
            return f"image {image.id}, {folder / image.file_name}, is missing"

        tally = f" ({len(missing)} of {len(contents.images)} images are)"
        remedy = "check the image folder or remove them from the file"
        report(Fault("image without a file", "images", tuple(place), describe, remedy, "drop", tally=tally))


def examine_pixels(contents: Contents, folder: Path, report: Report, progress: Progress | None = None) -> None:
    """Check that every existing file decodes to its last pixel and has the recorded size.

    Args:
        progress: called with 1 after each file, such as `tqdm.update`.
    """
    of_file: dict[str, list[int]] = {}
    for n, image in enumerate(contents.images):
        if contents.valid_images[n] and _is_file(folder, image):
            of_file.setdefault(image.file_name, []).append(n)
    unreadable: dict[int, str] = {}
    mismatched: dict[int, str] = {}
    for name, places in of_file.items():
        try:
            size = _decode(folder / name)
        except (ValueError, OSError) as error:
            unreadable.update((int(contents.image_entry[n]), f"image {contents.images[n].id}: {error}") for n in places)
        else:
            for n in places:
                if (recorded := size_mismatch(contents.images[n], *size)) is not None:
                    actual = f"{folder / name} is {size[0]}x{size[1]} pixels"
                    mismatched[int(contents.image_entry[n])] = f"image {contents.images[n].id} {recorded}, but {actual}"
        if progress is not None:
            progress(1)
    for rule, found, remedy in (
        ("image with an unreadable file", unreadable, "or remove the image"),
        ("image of another size than its file", mismatched, "its boxes would be misplaced: correct the one in error"),
    ):
        if found:
            report(Fault(rule, "images", tuple(found), found.__getitem__, remedy, "drop"))


def size_mismatch(image: ImageRecord, width: int, height: int) -> str | None:
    """Return what contradicts a file of `width` x `height` pixels, as in "is 640x512"; None if the sizes agree.

    A sub-image agrees with a file of its own size, and with any that contains its corner.
    """
    if (width, height) == (image.width, image.height):
        return None
    if image.corner is not None:
        x1, y1, x2, y2 = image.corner
        return None if x2 <= width and y2 <= height else f"has the corner {[x1, y1, x2, y2]}"
    rotated = " (it looks turned: check its EXIF orientation)" if (height, width) == (image.width, image.height) else ""
    return f"is {image.width}x{image.height}{rotated}"


def _is_file(folder: Path, image: ImageRecord) -> bool:
    try:
        return bool(image.file_name) and (folder / image.file_name).is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _decode(path: Path) -> tuple[int, int]:
    """Decode every pixel of an image; return its width and height."""
    with open_scene(path) as scene:
        rows = max(_STRIP // scene.width, 1)
        for y in range(0, scene.height, rows):
            scene.read(0, y, scene.width, min(rows, scene.height - y))
        return scene.width, scene.height
