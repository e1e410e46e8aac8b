"""`tinydet data convert`: convert published annotation formats to COCO JSON."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinydet._internal.arguments import whole
from tinydet._internal.console import plural
from tinydet._internal.outputs import check_output_files
from tinydet._internal.shell import tinydet_command
from tinydet.data.coco import build_dataset
from tinydet.data.coco_file import write_document
from tinydet.data.dataset_arguments import add_data_arguments, data_path
from tinydet.data.image_checks import check_image_folder
from tinydet.data.layouts.coco_files import is_tinyperson
from tinydet.data.layouts.layout import ReadOptions, Split
from tinydet.data.output_folder import ImageWriter, is_annotation_file, new_folder
from tinydet.data.readers import citypersons, dota, tinyperson, visdrone, voc, yolo
from tinydet.data.readers.class_names import read_class_names
from tinydet.data.readers.coco_builder import CocoBuilder
from tinydet.data.readers.yolo_lines import LABELS
from tinydet.data.source import DataSource

FORMATS = {
    "tinyperson": "JSON file of TinyPerson, whole images or sub-images",
    "citypersons": "anno_train.mat or anno_val.mat of CityPersons",
    "tiny-citypersons": f"the same file, scaled to 1/4 (scale the images with: {tinydet_command('data', 'rescale')})",
    "voc": "folder of Pascal VOC XML files",
    "yolo": "folder of YOLO txt files; class names from data.yaml or classes.txt",
    "visdrone": "folder `annotations` of VisDrone-DET",
    "dota": "folder `labelTxt` of DOTA",
}
# The formats of each option that not all formats have.
_FORMATS_OF = {
    "classes": ("voc", "yolo", "dota"),
    "labels": ("yolo",),
    "first_pixel": ("voc",),
    "task": ("tinyperson",),
    "keep_uncertain": ("tinyperson",),
    "pedestrians_only": ("citypersons", "tiny-citypersons"),
}

EXAMPLES = (
    "my-export --output my-coco",
    "val/annotations --from visdrone --images val/images --output val.json",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    width = max(map(len, FORMATS))
    table = "\n".join(f"  {name:{width}}  {summary}" for name, summary in FORMATS.items())
    parser.description = (
        "Convert a dataset to COCO: recognize its layout and write a COCO folder for each split. Other commands read\n"
        "these layouts themselves; convert to edit annotations, or for other programs. With --from, convert one file\n"
        "or folder of annotations to one COCO file."
    )
    parser.epilog = f"formats of --from:\n{table}"
    add_data_arguments(parser, split="all of them")
    parser.add_argument(
        "--from",
        dest="format",
        choices=FORMATS,
        metavar="FORMAT",
        help="format of SOURCE, one file or folder of annotations (default: recognize the layout)",
    )
    parser.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="image folder, if SOURCE is a file or folder of annotations (default: that of the layout)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="PATH",
        help="new folder with a COCO folder per split, whose images are hard links to those of SOURCE, or copies on "
        "another file system; or one COCO file, .json or .json.gz (default: SOURCE-coco; with --from: "
        "SOURCE/annotations.json or SOURCE.json)",
    )
    parser.add_argument(
        "--classes",
        type=Path,
        metavar="FILE",
        help="voc, yolo, dota: class names in the order of their ids, one per line or data.yaml; use the same FILE for "
        "training and validation data (default: the classes that occur)",
    )
    parser.add_argument(
        "--labels",
        choices=LABELS,
        help="yolo: meaning of the numbers of a line: a box, a box with keypoints (pose), or the corners of a polygon "
        "or an oriented box (default: as kpt_shape or task in data.yaml says, otherwise the only meaning that fits "
        "all lines)",
    )
    parser.add_argument(
        "--first-pixel",
        type=whole(0, 1),
        choices=(0, 1),
        help="voc: 1 if coordinates are pixel indices from 1, 0 if they are edges, as in labelImg (default: "
        "0 if a box starts before pixel 1 or most have fractions of a pixel, else 1)",
    )
    parser.add_argument(
        "--task",
        choices=tinyperson.TASKS,
        help="tinyperson: one class `person` (all), or only sea or earth persons, with the others as ignore regions "
        "(default: the classes of SOURCE)",
    )
    parser.add_argument(
        "--keep-uncertain",
        action="store_true",
        default=None,
        help="tinyperson: keep uncertain persons as objects (default: turn them into ignore regions)",
    )
    parser.add_argument(
        "--pedestrians-only",
        action="store_true",
        default=None,
        help="citypersons: one class `pedestrian`, with all others as ignore regions, as in the benchmark (default: "
        "six classes)",
    )


def run(args: argparse.Namespace) -> int:
    """Convert the annotations and print a summary."""
    source = data_path(args)
    if source is None:
        raise ValueError("no dataset is named; give the folder or file to convert")
    if args.format is None:
        args.format = _published(source)
    if args.format is None:
        return _convert_layout(source, args)
    if args.split is not None:
        raise ValueError("--split is for a dataset whose layout is recognized; leave out --from, or --split")
    _check_options(args, args.format)
    output = args.output or _default_output(source)
    check_output_files((output,), (source, args.classes))
    coco = _read(source, args)
    document = coco.to_coco()
    write_document(output, document)
    _report(output, document, coco.notes)
    return 0


def _convert_layout(path: Path, args: argparse.Namespace) -> int:
    """Convert a dataset whose layout is recognized: every split, or the one that is named."""
    options = ReadOptions(args.classes, args.labels, args.first_pixel)
    whole = DataSource(path, args.images, options=options)
    layout = whole.layout
    _check_options(args, layout.form)
    splits = layout.splits if args.split is None else (whole.with_split(args.split).chosen,)
    if layout.form == "coco" and args.output is None:
        print(f"{path}: {layout.name}, which needs no conversion")
        print(f"next: {tinydet_command('train', '--data', path)}")
        return 0
    output = args.output or _beside(path)
    single = is_annotation_file(output)
    if single and len(splits) > 1:
        names = ", ".join(str(split.name) for split in splits)
        raise ValueError(f"{output} is one file, but {path} has {names}; name one with --split, or a folder to write")
    if not single and (without := [split for split in splits if split.images is None]):
        raise ValueError(f"{without[0].annotations} has no images here; name their folder with --images, or an output "
                         ".json for the annotations alone")  # fmt: skip
    check_output_files((output,) if single else (), (path, args.classes))
    readings = [split.read(options) for split in splits]
    documents = [reading.document for reading in readings]
    align_categories(documents)
    print(f"{path}: {layout.name}, {', '.join(split.name or 'no splits' for split in splits)}")
    if single:
        write_document(output, documents[0])
        _report(output, documents[0], readings[0].notes)
    else:
        written = [output / (split.name or "") if len(splits) > 1 else output for split in splits]
        _write_folders(output, written, splits, documents)
        for folder, document, reading in zip(written, documents, readings, strict=True):
            _report(folder, document, reading.notes)
    images = () if not single or splits[0].images is None else ("--images", splits[0].images)
    print(f"next: {tinydet_command('train', '--data', output, *images)}")
    return 0


def _write_folders(
    output: Path, folders: Sequence[Path], splits: Sequence[Split], documents: Sequence[dict[str, Any]]
) -> None:
    """Write a COCO folder per split, all of them or nothing."""
    with new_folder(output) as work:
        for folder, split, document in zip(folders, splits, documents, strict=True):
            place = work / folder.relative_to(output)
            place.mkdir(exist_ok=True)
            dataset = build_dataset(document, split.annotations, split.images)
            paths = {image.id: dataset.image_path(n) for n, image in enumerate(dataset.images)}
            writer = ImageWriter(place / "images")
            linked: dict[Path, str] = {}  # several images may be parts of one file
            for entry in document["images"]:
                path = paths[int(entry["id"])]
                if path not in linked:
                    linked[path] = writer.link(entry["file_name"], path)
                entry["file_name"] = linked[path]
            write_document(place / "annotations.json", document)


def align_categories(documents: Sequence[dict[str, Any]]) -> None:
    """Give the categories of several documents the same ids and order, by name; change the documents in place.

    The first document with a name decides its id, unless another category has it.
    """
    lists = [document["categories"] for document in documents]
    if all([(each["id"], each["name"]) for each in entries] == [(each["id"], each["name"]) for each in lists[0]]
           for entries in lists):  # fmt: skip
        return
    merged: dict[str, dict[str, Any]] = {}
    taken: set[int] = set()
    for entry in (entry for entries in lists for entry in entries):
        if entry["name"] not in merged:
            number = entry["id"] if entry["id"] not in taken else max(taken) + 1
            merged[entry["name"]] = {**entry, "id": number}
            taken.add(number)
    for document, entries in zip(documents, lists, strict=True):
        new = {entry["id"]: merged[entry["name"]]["id"] for entry in entries}
        for annotation in document["annotations"]:
            annotation["category_id"] = new[annotation["category_id"]]
        document["categories"] = [dict(entry) for entry in merged.values()]


def _report(output: Path, document: dict[str, Any], notes: Sequence[str]) -> None:
    names = ", ".join(category["name"] for category in document["categories"])
    ignored = sum(bool(entry.get("ignore") or entry.get("iscrowd")) for entry in document["annotations"])
    boxes = len(document["annotations"])
    images = plural(len(document["images"]), "image", ",")
    print(f"{output}: {images}, {plural(boxes - ignored, 'object', ',')}, {plural(ignored, 'ignore region', ',')}")
    print(f"categories: {names}")
    for note in notes:
        print(f"note: {note}")


def _check_options(args: argparse.Namespace, form: str) -> None:
    for option, formats in _FORMATS_OF.items():
        if getattr(args, option) is not None and form not in formats:
            flag = "--" + option.replace("_", "-")
            raise ValueError(f"{flag} is an option of {', '.join(formats)}, not of {form}; leave it out")


def _published(path: Path) -> str | None:
    """Return the published format of a file that only a reader of its own understands; None for any other."""
    if path.suffix.lower() == ".mat" and path.is_file():
        return "citypersons"
    if path.is_file() and is_annotation_file(path) and is_tinyperson(path):
        return "tinyperson"
    return None


def _beside(path: Path) -> Path:
    folder = Path(os.path.abspath(path if path.is_dir() else path.parent))
    return folder.with_name(f"{folder.name}-coco")


def _read(source: Path, args: argparse.Namespace) -> CocoBuilder:
    if args.images is not None:
        check_image_folder(source, args.images)
    if args.format == "yolo":
        return yolo.read(source, args.images, classes=args.classes, labels=args.labels)
    classes = None if args.classes is None else read_class_names(args.classes)
    match args.format:
        case "tinyperson":
            return tinyperson.read(source, args.images, task=args.task, keep_uncertain=bool(args.keep_uncertain))
        case "citypersons" | "tiny-citypersons":
            shrink = citypersons.TINY if args.format == "tiny-citypersons" else 1
            pedestrians_only = bool(args.pedestrians_only)
            return citypersons.read(source, args.images, shrink=shrink, pedestrians_only=pedestrians_only)
        case "voc":
            return voc.read(source, args.images, first_pixel=args.first_pixel, classes=classes)
        case "visdrone":
            return visdrone.read(source, args.images)
        case "dota":
            return dota.read(source, args.images, classes=classes)
    raise AssertionError(args.format)


def _default_output(source: Path) -> Path:
    return source / "annotations.json" if source.is_dir() else source.with_suffix(".json")
