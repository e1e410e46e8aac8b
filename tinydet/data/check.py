"""`tinydet data check`: list every fault of an annotation file and its images, and write a repaired copy."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinydet._internal.atomic import write_json
from tinydet._internal.console import plural
from tinydet._internal.outputs import check_output_files
from tinydet._internal.progress import Bar, Progress
from tinydet.data.coco_entries import Fault, listed
from tinydet.data.coco_file import write_document
from tinydet.data.coco_repair import repair_document
from tinydet.data.coco_rules import Boxes, Contents, examine, examine_boxes, examine_objects
from tinydet.data.dataset_arguments import add_data_arguments, data_path, source_of
from tinydet.data.image_checks import check_image_folder, examine_files, examine_pixels
from tinydet.data.image_files import list_images
from tinydet.data.source import DataSource


@dataclass(frozen=True)
class Findings:
    """The result of checking one annotation file.

    Attributes:
        faults: broken rules. `load_dataset` refuses the file for any of them, except those about the content of image
            files, which it does not open.
        notes: peculiarities that break no rule, one sentence each.
        images, annotations, categories: number of entries in the file.
    """

    source: Path
    faults: tuple[Fault, ...]
    notes: tuple[str, ...]
    images: int
    annotations: int
    categories: int

    @property
    def count(self) -> int:
        """Number of entries at fault, counted once per rule."""
        return sum(map(_entry_count, self.faults))

    def lines(self) -> Iterator[str]:
        """One line per entry at fault, with file and id."""
        return (f"{self.source}: {line}" for fault in self.faults for line in fault.lines())

    def to_json(self) -> dict[str, Any]:
        return {
            "source": str(self.source),
            "images": self.images,
            "annotations": self.annotations,
            "categories": self.categories,
            "faults": [
                {"rule": fault.rule, "list": fault.section or None, "entry": entry, "message": line}
                for fault in self.faults
                for entry, line in zip(fault.entries or (None,), fault.lines(), strict=True)
            ],
            "notes": list(self.notes),
        }


def check_document(
    document: dict[str, Any], source: Path, images: Path | None = None, progress: Progress | None = None
) -> Findings:
    """Return every fault of an annotation file, in the order in which `load_dataset` would meet them.

    Args:
        document: content of the file.
        source: the file, for messages.
        images: folder of the image files: each must exist, decode to its last pixel and have the recorded size. None
            checks the annotations alone.
        progress: called with 1 after each image file.

    Raises:
        ValueError: `images` is not a folder.
    """
    faults: list[Fault] = []
    contents = examine(document, faults.append)
    if images is not None:
        check_image_folder(source, images)
        examine_files(contents, source, images, faults.append)
        examine_pixels(contents, images, faults.append, progress)
    examine_objects(contents, faults.append)
    boxes = examine_boxes(contents, faults.append)
    counts = [len(found) if isinstance(found := document.get(section), list) else 0 for section in _COUNTED]
    return Findings(source, tuple(faults), tuple(_notes(document, contents, boxes, images)), *counts)


_COUNTED = ("images", "annotations", "categories")

EXAMPLES = ("annotations.json --images images --fix repaired.json",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Find every fault of a COCO annotation file: broken references, ids used twice, boxes without an area or "
        "outside their image, missing or damaged images. Print one line for each; exit with 1 if there are any."
    )
    add_data_arguments(parser, split="all of them")
    parser.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="also read every image in this folder (default: images/ if SOURCE is a folder, otherwise none)",
    )
    parser.add_argument(
        "--fix", type=Path, metavar="FILE", help="write a repaired copy to FILE and list the repairs (default: none)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the findings to FILE as JSON (default: none)")


def run(args: argparse.Namespace) -> int:
    chosen = [_source(args)] if args.split else _every_split(args)
    if len(chosen) > 1 and (args.fix is not None or args.json is not None):
        splits = ", ".join(str(each.split) for each in chosen)
        raise ValueError(f"--fix and --json are for one file, but there are splits {splits}; name one with --split")
    return max([_check(args, source) for source in chosen])


def _source(args: argparse.Namespace) -> DataSource:
    return source_of(args, images=args.images)


def _every_split(args: argparse.Namespace) -> list[DataSource]:
    """Return the splits of the dataset, or the dataset if it has none."""
    path = data_path(args)
    if path is None:
        return [_source(args)]
    layout = DataSource(path, args.images).layout
    return [DataSource(path, args.images, split.name) for split in layout.splits]


def _check(args: argparse.Namespace, data: DataSource) -> int:
    source, images = data.annotations, data.image_dir
    check_output_files((args.fix, args.json), (source,))
    document = data.read()
    entries = document.get("images")
    total = len(entries) if isinstance(entries, list) else None
    with Bar(total, "image", "reading", quiet=images is None) as bar:
        findings = check_document(document, source, images, bar.update)
    for line in findings.lines():
        print(line)
    categories = f"{findings.categories:,} categor{'y' if findings.categories == 1 else 'ies'}"
    size = f"{plural(findings.images, 'image', ',')}, {plural(findings.annotations, 'annotation', ',')}, {categories}"
    read = "images read" if images is not None else "images not read (--images DIR)"
    print(f"{source}: {_summary(findings)} in {size}; {read}")
    for note in findings.notes:
        print(f"note: {note}")
    report = findings.to_json()
    if args.fix is not None:
        report["repairs"] = done = repair_document(document, source, images, list(findings.faults))
        write_document(args.fix, document)
        for line in done:
            print(f"repaired: {line}")
        images_written = plural(len(document["images"]), "image", ",")
        print(f"{args.fix}: wrote {images_written}, {plural(len(document['annotations']), 'annotation', ',')}")
    if args.json is not None:
        write_json(args.json, report)
    return 1 if findings.faults and args.fix is None else 0


def _entry_count(fault: Fault) -> int:
    return max(len(fault.entries), 1)  # 1 for the file itself


def _summary(findings: Findings) -> str:
    if not findings.faults:
        return "no faults"
    rules = ", ".join(f"{_entry_count(fault):,} {fault.rule}" for fault in findings.faults)
    return f"{findings.count:,} fault{'s' * (findings.count > 1)} ({rules})"


def _notes(document: dict[str, Any], contents: Contents, boxes: Boxes, folder: Path | None) -> Iterator[str]:
    rows, images = contents.rows, contents.images
    if count := int(boxes.clipped.sum()):
        yield f"{plural(count, 'box', ',')} partly outside the image, clipped when the file is read"
    if count := int((rows.ignore & ~boxes.inside).sum()):
        yield f"{plural(count, 'ignore region', ',')} without area in the image, dropped when the file is read"
    unique = np.unique(np.column_stack([rows.image, rows.category, rows.xywh]), axis=0)
    if count := len(rows.id) - len(unique):
        yield f"{plural(count, 'annotation', ',')} with the image, category and box of another"
    if count := len(images) - len(np.unique(rows.image)):
        yield f"{plural(count, 'image', ',')} without annotations"
    used = np.bincount(rows.category, minlength=len(contents.categories))
    table = zip(contents.categories, used.tolist(), contents.parents.tolist(), strict=True)
    unused = [(name, parent) for (_, name), times, parent in table if not times]
    for parents, meaning in (
        (False, "is a class nevertheless"),
        (True, "is a supercategory and therefore not a class"),
    ):
        if chosen := [name for name, parent in unused if parent is parents]:
            yield f"no annotation has the category {listed(chosen, 6)}, which {meaning}"
    names = [image.file_name for image in images if image.corner is None and image.file_name]
    if count := len(names) - len(set(names)):
        yield f"{plural(count, 'image', ',')} with the same file as another"
    written = [document["images"][n].get("file_name") for n in contents.image_entry.tolist()]
    if count := sum("\\" in name for name in written if isinstance(name, str)):
        yield f"{plural(count, 'file name', ',')} with backslashes, which are read as slashes; --fix writes slashes"
    entries = [document["annotations"][n] for n in rows.entry.tolist()]
    for key in ("area", "iscrowd"):
        if count := sum(key not in entry for entry in entries):
            yield f"{plural(count, 'annotation', ',')} without {key!r}, which pycocotools needs; --fix adds it"
    if folder is not None and (count := len(set(list_images(folder)) - {Path(image.file_name) for image in images})):
        yield f"{plural(count, 'image file', ',')} in {folder} not listed in the file"
