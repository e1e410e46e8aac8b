"""`tinydet data convert`: published annotation formats to COCO JSON."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from tinydet.data.coco_file import write_document
from tinydet.data.readers import citypersons, dota, tinyperson, visdrone, voc, yolo
from tinydet.data.readers.collection import Collection

FORMATS = {
    "tinyperson": "a JSON file of TinyPerson, whole images or sub-images",
    "citypersons": "anno_train.mat or anno_val.mat of CityPersons",
    "tiny-citypersons": "the same file at a quarter of the size (pictures: tinydet data rescale)",
    "voc": "Pascal VOC: a folder of XML files",
    "yolo": "a folder of YOLO txt files; class names from data.yaml or classes.txt",
    "visdrone": "the folder `annotations` of VisDrone-DET",
    "dota": "the folder `labelTxt` of DOTA",
}
# Options of some formats alone.
_BELONGS = {
    "classes": ("voc", "yolo", "dota"),
    "first_pixel": ("voc",),
    "task": ("tinyperson",),
    "keep_uncertain": ("tinyperson",),
    "pedestrians_only": ("citypersons", "tiny-citypersons"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    width = max(map(len, FORMATS))
    table = "\n".join(f"  {name:{width}}  {summary}" for name, summary in FORMATS.items())
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = (
        "Read annotations in the format that they were published in, write COCO JSON. Pictures stay where they are."
    )
    parser.epilog = (
        f"formats:\n{table}\n\n"
        "example: python -m tinydet.data convert --from visdrone val/annotations --images val/images --output val.json"
    )
    parser.add_argument("source", type=Path, help="file or folder of annotations, see below")
    parser.add_argument(
        "--from", dest="format", choices=FORMATS, required=True, metavar="FORMAT", help="one of the names below"
    )
    parser.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="folder of the pictures, which file names are relative to; yolo, visdrone and dota need it for the sizes",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="COCO JSON to write, .json or .json.gz; default: SOURCE/annotations.json, or SOURCE with .json for a file",
    )
    parser.add_argument(
        "--classes",
        type=Path,
        metavar="FILE",
        help="class names in the order of their ids, one a line or data.yaml (voc, yolo, dota); default: those found, "
        "so name the same FILE for training and validation data",
    )
    parser.add_argument(
        "--first-pixel",
        type=int,
        choices=(0, 1),
        help="voc: 0 if numbers are edges, as labelImg and others write; default: 1, pixels count from 1",
    )
    parser.add_argument(
        "--task",
        choices=tinyperson.TASKS,
        help="tinyperson: one class `person`, or sea or earth persons alone, the others ignored; default: as in FILE",
    )
    parser.add_argument(
        "--keep-uncertain",
        action="store_true",
        default=None,
        help="tinyperson: uncertain persons are objects; default: ignore regions",
    )
    parser.add_argument(
        "--pedestrians-only",
        action="store_true",
        default=None,
        help="citypersons: one class, all others ignore regions of it, as the benchmark scores; default: six classes",
    )


def run(args: argparse.Namespace) -> int:
    output = args.output or _beside(args.source)
    if os.path.realpath(output) == os.path.realpath(args.source):
        raise ValueError(f"{output} is the file to read; name another with --output")
    for option, formats in _BELONGS.items():
        if getattr(args, option) is not None and args.format not in formats:
            flag = "--" + option.replace("_", "-")
            raise ValueError(f"{flag} belongs to {', '.join(formats)}, not to {args.format}; leave it out")
    found = _read(args)
    document = found.to_coco()
    write_document(output, document)
    names = ", ".join(category["name"] for category in document["categories"])
    ignored = sum(bool(entry.get("ignore") or entry.get("iscrowd")) for entry in document["annotations"])
    boxes = len(document["annotations"])
    print(f"{output}: {len(document['images']):,} images, {boxes - ignored:,} objects, {ignored:,} ignore regions")
    print(f"categories: {names}")
    for note in found.notes:
        print(f"note: {note}")
    return 0


def _read(args: argparse.Namespace) -> Collection:
    classes = None if args.classes is None else yolo.read_class_list(args.classes)
    match args.format:
        case "tinyperson":
            return tinyperson.read(args.source, task=args.task, keep_uncertain=bool(args.keep_uncertain))
        case "citypersons" | "tiny-citypersons":
            shrink = citypersons.TINY if args.format == "tiny-citypersons" else 1
            only = bool(args.pedestrians_only)
            return citypersons.read(args.source, args.images, shrink=shrink, pedestrians_only=only)
        case "voc":
            first_pixel = 1 if args.first_pixel is None else args.first_pixel
            return voc.read(args.source, args.images, first_pixel=first_pixel, classes=classes)
        case "yolo":
            return yolo.read(args.source, args.images, classes=classes)
        case "visdrone":
            return visdrone.read(args.source, args.images)
        case "dota":
            return dota.read(args.source, args.images, classes=classes)
    raise AssertionError(args.format)


def _beside(source: Path) -> Path:
    return source / "annotations.json" if source.is_dir() else source.with_suffix(".json")
