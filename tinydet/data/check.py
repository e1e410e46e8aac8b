"""`tinydet data check`: every fault of an annotation file and its pictures, and a repaired copy."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from tinydet._internal.atomic import write_json
from tinydet.data.coco import check_folder, find_dataset
from tinydet.data.coco_file import write_document
from tinydet.data.coco_repair import mend
from tinydet.data.coco_rules import (
    Boxes,
    Contents,
    Fault,
    examine,
    examine_boxes,
    examine_files,
    examine_objects,
    examine_pictures,
    read_document,
)
from tinydet.data.image_files import list_images


@dataclass(frozen=True)
class Findings:
    """All that is to be said of one annotation file.

    Attributes:
        faults: broken rules. `load_dataset` refuses the file for any, but for what is inside pictures: it opens none.
        notes: what no rule forbids and a reader should know, a sentence each.
        images, annotations, categories: entries in the file.
    """

    source: Path
    faults: tuple[Fault, ...]
    notes: tuple[str, ...]
    images: int
    annotations: int
    categories: int

    @property
    def count(self) -> int:
        return sum(max(len(fault.entries), 1) for fault in self.faults)

    def lines(self) -> Iterator[str]:
        """One line for each entry at fault, naming file and id."""
        return (f"{self.source}: {line}" for fault in self.faults for line in fault.lines())

    def to_json(self) -> dict[str, Any]:
        return {
            "source": str(self.source),
            "images": self.images,
            "annotations": self.annotations,
            "categories": self.categories,
            "faults": [
                {"rule": fault.rule, "list": fault.part or None, "entry": entry, "message": line}
                for fault in self.faults
                for entry, line in zip(fault.entries or (None,), fault.lines(), strict=True)
            ],
            "notes": list(self.notes),
        }


def check_document(
    document: dict[str, Any], source: Path, images: Path | None = None, *, progress: bool = False
) -> Findings:
    """Every fault of an annotation file that was read, in the order in which `load_dataset` meets them.

    Args:
        source: its file, for messages.
        images: folder of the image files: each must be there, be readable to its last pixel and have the size that
            the annotation file says.
        progress: show a bar while pictures are read.

    Raises:
        ValueError: where `images` is no folder.
    """
    faults: list[Fault] = []
    contents = examine(document, faults.append)
    if images is not None:
        check_folder(source, images)
        examine_files(contents, images, faults.append)
        files = len({image.file_name for image in contents.images})
        with tqdm(total=files, desc="reading", unit="image", disable=None if progress else True) as bar:
            examine_pictures(contents, images, faults.append, bar.update)
    examine_objects(contents, faults.append)
    boxes = examine_boxes(contents, faults.append)
    sizes = [len(found) if isinstance(found := document.get(part), list) else 0 for part in _COUNTED]
    return Findings(source, tuple(faults), tuple(_notes(document, contents, boxes, images)), *sizes)


_COUNTED = ("images", "annotations", "categories")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Find every fault of a COCO annotation file: broken references, ids used twice, boxes without an area or "
        "outside their image, missing or damaged pictures. One line for each; exit code 1 where there are any."
    )
    parser.epilog = "example: python -m tinydet.data check annotations.json --images images --fix repaired.json"
    parser.add_argument("source", type=Path, help="COCO annotation file (.json or .json.gz), or a folder with images/")
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="read these pictures too; default: images/ of a folder, else none"
    )
    parser.add_argument(
        "--fix", type=Path, metavar="FILE", help="write a repaired copy there and say what was done; default: none"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write what was found; default: nowhere")


def run(args: argparse.Namespace) -> int:
    source, images = args.source, args.images
    if source.is_dir():
        source, images = find_dataset(source) if images is None else (find_dataset(source)[0], images)
    if args.fix is not None and os.path.realpath(args.fix) == os.path.realpath(source):
        raise ValueError(f"{args.fix}: --fix would overwrite the file that it repairs; name another")
    document = read_document(source)
    findings = check_document(document, source, images, progress=True)
    for line in findings.lines():
        print(line)
    categories = f"{findings.categories:,} categor{'y' if findings.categories == 1 else 'ies'}"
    size = f"{findings.images:,} images, {findings.annotations:,} annotations, {categories}"
    read = "pictures read" if images is not None else "pictures not read (--images DIR)"
    print(f"{source}: {_counted(findings)} in {size}; {read}")
    for note in findings.notes:
        print(f"note: {note}")
    report = findings.to_json()
    if args.fix is not None:
        report["repairs"] = done = mend(document, source, images, list(findings.faults))
        write_document(args.fix, document)
        for line in done:
            print(f"repaired: {line}")
        left = f"{len(document['images']):,} images, {len(document['annotations']):,} annotations"
        print(f"{args.fix}: written, {left}")
    if args.json is not None:
        write_json(args.json, report)
    return 1 if findings.faults and args.fix is None else 0


def _counted(findings: Findings) -> str:
    if not findings.faults:
        return "no fault"
    kinds = ", ".join(f"{max(len(fault.entries), 1):,} {fault.rule}" for fault in findings.faults)
    return f"{findings.count:,} fault{'s' * (findings.count > 1)} ({kinds})"


def _notes(document: dict[str, Any], contents: Contents, boxes: Boxes, folder: Path | None) -> Iterator[str]:
    rows, images = contents.rows, contents.images
    if count := int(boxes.cut.sum()):
        yield f"{count:,} boxes reach outside their image; reading clips them"
    if count := int((rows.ignore & ~boxes.inside).sum()):
        yield f"{count:,} ignore regions have no area in their image; reading leaves them out"
    repeated = np.column_stack([rows.image, rows.category, rows.xywh])
    if count := len(repeated) - len(np.unique(repeated, axis=0)):
        yield f"{count:,} annotations repeat another: the same image, category and box"
    if count := len(images) - len(np.unique(rows.image)):
        yield f"{count:,} images have no annotation"
    used = np.bincount(rows.category, minlength=len(contents.categories))
    if unused := [name for (_, name), times in zip(contents.categories, used.tolist(), strict=True) if not times]:
        shown = ", ".join(unused[:6]) + (f" and {len(unused) - 6} more" if len(unused) > 6 else "")
        yield f"no annotation is of category {shown}, which reading takes for a class"
    whole = [image.file_name for image in images if image.corner is None and image.file_name]
    if count := len(whole) - len(set(whole)):
        yield f"{count:,} images name a file that another names too"
    entries = [document["annotations"][n] for n in rows.entry.tolist()]
    for key in ("area", "iscrowd"):
        if count := sum(key not in entry for entry in entries):
            yield f"{count:,} annotations have no {key!r}, which pycocotools asks for; --fix fills it in"
    if folder is not None and (count := len(set(list_images(folder)) - {Path(image.file_name) for image in images})):
        yield f"{count:,} picture files in {folder} are in no image of the file"
