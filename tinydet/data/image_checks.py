"""Rules about the image files of a COCO dataset: each file is there, readable and of the recorded size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from tinydet._internal.progress import Progress
from tinydet._internal.shell import tinydet_command
from tinydet.data.coco_entries import Fault, Repair, Report
from tinydet.data.coco_rules import Contents, ImageRecord
from tinydet.data.image_files import list_images
from tinydet.data.image_names import ImageNames, base_name
from tinydet.data.image_paths import leaves_folder
from tinydet.runtime.scenes import open_scene
from tinydet.runtime.scenes.window import size_mismatch

_RELATIVE = "write file names relative to that folder"
_STRIP = 1 << 22  # pixels decoded at once of an image too large for memory


def check_image_folder(source: Path, folder: Path) -> None:
    """Check that the image folder of the annotation file `source` exists.

    Raises:
        ValueError: it does not, or is not a folder.
    """
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise ValueError(f"{folder}: the image folder of {source} {what}; check --images")


def examine_files(contents: Contents, source: Path, folder: Path, report: Report) -> None:
    """Check that every image has its file in the folder, without opening any.

    A missing file is searched for under similar names, see `match_names`.
    """
    images, entries = contents.images, contents.image_entry.tolist()
    missing = [n for n, image in enumerate(images) if image.file_name and not _is_file(folder, image)]
    if not missing:
        return
    names = {n: images[n].file_name for n in missing}
    taken = {image.file_name for image in images}.difference(names.values())
    files, unique = match_names(names.values(), folder, taken)
    fix = tinydet_command("data", "check", source, "--images", folder, "--fix", "NEW.json")
    outside = [n for n in missing if leaves_folder(names[n])]
    renamed = [n for n in missing if not leaves_folder(names[n]) and names[n] in unique]
    lost = [n for n in missing if not leaves_folder(names[n]) and names[n] not in unique]
    rules: tuple[tuple[str, list[int], str, str, Repair], ...] = (
        ("image outside the image folder", outside, "leaves the image folder", _RELATIVE, "rename"),
        ("image under another name", renamed, "is missing", f"write the name of the file, as does: {fix}", "rename"),
        ("image without a file", lost, "is missing", "check the image folder or remove them from the file", "drop"),
    )
    for rule, found, what, remedy, repair in rules:
        if not found:
            continue
        place = {entries[n]: n for n in found}

        def describe(entry: int, place: dict[int, int] = place, what: str = what) -> str:
            n = place[entry]
            return f"image {images[n].id}, {folder / names[n]}, {what}{_hint(files[names[n]], names[n] in unique)}"

        values = {entry: files[names[n]][0] for entry, n in place.items() if names[n] in unique}
        tally = f" ({len(found)} of {len(images)} images {'do' if found is outside else 'are'})"
        report(Fault(rule, "images", tuple(place), describe, remedy, repair, "file_name", values, tally))


def match_names(names: Iterable[str], folder: Path, taken: Collection[str]) -> tuple[dict[str, list[str]], set[str]]:
    """Return the candidate files of each name, and the names with one candidate that no other name shares.

    A name means a file by `ImageNames.find`, or else the file of that name in any folder.

    Args:
        taken: files of other images.
    """
    present = [file for file in list_images(folder) if file.as_posix() not in taken]
    index = ImageNames(present)
    found = {
        name: [file.as_posix() for file in index.find(name) or index.find(base_name(name))]
        for name in dict.fromkeys(names)
    }
    claims = Counter(file for files in found.values() for file in files)
    return found, {name for name, files in found.items() if len(files) == 1 and claims[files[0]] == 1}


def _hint(files: Sequence[str], unique: bool) -> str:
    """Return which files a missing name could mean, for a message."""
    if not files:
        return ""
    if unique:
        return f" (did you mean {files[0]}?)"
    more = f" and {len(files) - 3} more" if len(files) > 3 else ""
    return f" (alike: {', '.join(files[:3])}{more}; names and files do not match one to one)"


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
                image = contents.images[n]
                if (recorded := size_mismatch((image.width, image.height), image.corner, *size)) is not None:
                    actual = f"{folder / name} is {size[0]}x{size[1]} pixels"
                    mismatched[int(contents.image_entry[n])] = f"image {image.id} {recorded}, but {actual}"
        if progress is not None:
            progress(1)
    for rule, found, remedy in (
        ("image with an unreadable file", unreadable, "or remove the image"),
        ("image of another size than its file", mismatched, "its boxes would be misplaced: correct the one in error"),
    ):
        if found:
            repair: Repair = "drop" if found is unreadable else "resize"
            report(Fault(rule, "images", tuple(found), found.__getitem__, remedy, repair))


def _is_file(folder: Path, image: ImageRecord) -> bool:
    if not image.file_name or leaves_folder(image.file_name):
        return False
    try:
        return (folder / image.file_name).is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _decode(path: Path) -> tuple[int, int]:
    """Decode every pixel of an image; return its width and height."""
    with open_scene(path) as scene:
        rows = max(_STRIP // scene.width, 1)
        for y in range(0, scene.height, rows):
            scene.read(0, y, scene.width, min(rows, scene.height - y))
        return scene.width, scene.height
