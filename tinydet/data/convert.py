"""`tinydet data convert`: convert published annotation formats to COCO JSON."""

from __future__ import annotations

import argparse
from pathlib import Path

from tinydet._internal.arguments import whole
from tinydet._internal.outputs import check_output_files
from tinydet._internal.shell import tinydet_command
from tinydet.data.coco_file import write_document
from tinydet.data.readers import citypersons, dota, tinyperson, visdrone, voc, yolo
from tinydet.data.readers.class_names import read_class_names
from tinydet.data.readers.coco_builder import CocoBuilder
from tinydet.data.readers.yolo_lines import LABELS

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

EXAMPLES = ("val/annotations --from visdrone --images val/images --output val.json",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    width = max(map(len, FORMATS))
    table = "\n".join(f"  {name:{width}}  {summary}" for name, summary in FORMATS.items())
    parser.description = (
        "Convert annotations from the format of a published dataset to COCO JSON. Images are not copied."
    )
    parser.epilog = f"formats:\n{table}"
    parser.add_argument("source", type=Path, help="file or folder of annotations; see the list of formats")
    parser.add_argument(
        "--from",
        dest="format",
        choices=FORMATS,
        required=True,
        metavar="FORMAT",
        help="format of SOURCE; see the list of formats",
    )
    parser.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="folder of the images, to which file names are relative; required for yolo, visdrone and dota, which "
        "have no image sizes; for the other formats, also checks the sizes",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="COCO file to write, .json or .json.gz (default: SOURCE/annotations.json for a folder, or SOURCE with "
        "the suffix .json for a file)",
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
        "or an oriented box (default: as kpt_shape or task in data.yaml says, otherwise by evidence from all lines)",
    )
    parser.add_argument(
        "--first-pixel",
        type=whole(0, 1),
        choices=(0, 1),
        help="voc: 1 if coordinates are pixel indices from 1, 0 if they are edges, as in labelImg (default: 1)",
    )
    parser.add_argument(
        "--task",
        choices=tinyperson.TASKS,
        help="tinyperson: one class `person` (all), or only sea or earth persons, with the others as ignore regions; "
        "default: the classes of SOURCE",
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
    output = args.output or _default_output(args.source)
    check_output_files((output,), (args.source, args.classes))
    for option, formats in _FORMATS_OF.items():
        if getattr(args, option) is not None and args.format not in formats:
            flag = "--" + option.replace("_", "-")
            raise ValueError(f"{flag} is an option of {', '.join(formats)}, not of {args.format}; leave it out")
    coco = _read(args)
    document = coco.to_coco()
    write_document(output, document)
    names = ", ".join(category["name"] for category in document["categories"])
    ignored = sum(bool(entry.get("ignore") or entry.get("iscrowd")) for entry in document["annotations"])
    boxes = len(document["annotations"])
    print(f"{output}: {len(document['images']):,} images, {boxes - ignored:,} objects, {ignored:,} ignore regions")
    print(f"categories: {names}")
    for note in coco.notes:
        print(f"note: {note}")
    return 0


def _read(args: argparse.Namespace) -> CocoBuilder:
    if args.images is not None and not args.images.is_dir():
        raise ValueError(f"{args.images}: no such folder of images; check --images")
    if args.format == "yolo":
        return yolo.read(args.source, args.images, classes=args.classes, labels=args.labels)
    classes = None if args.classes is None else read_class_names(args.classes)
    match args.format:
        case "tinyperson":
            return tinyperson.read(args.source, args.images, task=args.task, keep_uncertain=bool(args.keep_uncertain))
        case "citypersons" | "tiny-citypersons":
            shrink = citypersons.TINY if args.format == "tiny-citypersons" else 1
            pedestrians_only = bool(args.pedestrians_only)
            return citypersons.read(args.source, args.images, shrink=shrink, pedestrians_only=pedestrians_only)
        case "voc":
            first_pixel = 1 if args.first_pixel is None else args.first_pixel
            return voc.read(args.source, args.images, first_pixel=first_pixel, classes=classes)
        case "visdrone":
            return visdrone.read(args.source, args.images)
        case "dota":
            return dota.read(args.source, args.images, classes=classes)
    raise AssertionError(args.format)


def _default_output(source: Path) -> Path:
    return source / "annotations.json" if source.is_dir() else source.with_suffix(".json")
