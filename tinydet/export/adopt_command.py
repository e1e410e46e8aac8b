"""`tinydet export adopt`: make a tinydet model of another framework's exported detector."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from tinydet._internal.arguments import batch_size, fraction, number, quoted, whole
from tinydet._internal.arguments import floats as parse_floats
from tinydet._internal.console import plural
from tinydet._internal.input_files import check_file
from tinydet._internal.outputs import check_folder
from tinydet._internal.shell import tinydet_command
from tinydet.export.adopt.adopting import MAX_BATCH, SCORE_FLOOR, SLOTS, Options, adopt, make_plan, output_suffix
from tinydet.export.adopt.classes import read_classes
from tinydet.export.adopt.formats import FORMATS
from tinydet.export.adopt.graft import Plan
from tinydet.export.adopt.original import engine_obstacles, open_original
from tinydet.export.adopt.probe import TILE
from tinydet.export.console import infer_command
from tinydet.export.options import add_verification_options
from tinydet.export.steps import show_steps
from tinydet.export.verification_images import OwnData, choose_images, find_data
from tinydet.export.verify import summarize

EXAMPLES = (
    "yolo11n.onnx --data my/val",
    "yolox_s.onnx --classes coco --images street.jpg",
    "fasterrcnn.onnx --classes names.txt",
)
SHOWN_CLASSES = 8
logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Make a tinydet model of a detector that another framework exported. Preprocessing, decoding and tinydet's "
        "outputs are grafted around its graph, which stays untouched inside. The result is compared with the original "
        "as its own framework runs it, and then works everywhere: infer, evaluate, seamtest, FP16, engines."
    )
    parser.add_argument(
        "model",
        type=Path,
        metavar="FOREIGN.onnx",
        help="the exported detector: an ONNX file, or the .xml of an OpenVINO IR",
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="file to write (default: FOREIGN.tinydet.onnx, or .xml for an IR)"
    )
    group = parser.add_argument_group("what the file does not say")
    group.add_argument(
        "--format",
        choices=tuple(FORMATS),
        metavar="NAME",
        help="layout of its outputs, one of those below (default: recognized from inputs, outputs and metadata)",
    )
    group.add_argument(
        "--classes",
        metavar="A,B|FILE|coco",
        help="class names in the order of its labels; a file with one in each line, a data.yaml, or a JSON file; or "
        "coco for the 80 of COCO (default: its metadata; coco for 80 or 91 class scores)",
    )
    group.add_argument(
        "--first-label",
        type=whole(0, 1),
        metavar="N",
        help="label of the first class: 1 if label 0 is the background (default: 0; torchvision: 1)",
    )
    group.add_argument(
        "--input-scale",
        type=number(0, 1e6, above=True),
        metavar="S",
        help="pixels are divided by S first: 255 for inputs from 0 to 1, 1 for 0 to 255 (default: by format)",
    )
    group.add_argument(
        "--mean",
        type=_three,
        metavar="A,B,C",
        help="subtracted after that, in the order of its channels (default: by format)",
    )
    group.add_argument(
        "--std",
        type=_divisors,
        metavar="A,B,C",
        help="divisors after that, in the order of its channels (default: by format)",
    )
    group.add_argument("--color", choices=("rgb", "bgr"), help="order of its channels (default: by format)")
    group.add_argument("--layout", choices=("nchw", "nhwc"), help="order of its axes (default: by the input's shape)")
    group.add_argument(
        "--boxes",
        choices=("pixels", "shares"),
        help="whether its boxes are in pixels or, from 0 to 1, shares of the image (default: by their values)",
    )
    group = parser.add_argument_group("the adopted model")
    group.add_argument(
        "--tile",
        type=whole(32, 8192),
        metavar="PIXELS",
        help=f"tile for an input of free size (default: the size it was exported with, else {TILE})",
    )
    group.add_argument(
        "--batch",
        type=batch_size,
        default=MAX_BATCH,
        metavar="N",
        help=f"largest batch of tiles, for an input of free batch size (default: {MAX_BATCH})",
    )
    group.add_argument(
        "--max-detections",
        type=whole(1, 3840),
        metavar="K",
        help=f"largest number of boxes per tile before NMS, up to 3840 (default: {SLOTS}, or as many as it returns)",
    )
    group.add_argument(
        "--score-floor",
        type=fraction,
        default=SCORE_FLOOR,
        metavar="F",
        help=f"drop boxes with a lower score (default: {SCORE_FLOOR})",
    )
    group.add_argument(
        "--nms-iou",
        type=number(0, 1, above=True),
        metavar="F",
        help="IoU above which two boxes of a class are one object, for formats without NMS (default: by format)",
    )
    add_verification_options(parser)
    width = max(map(len, FORMATS))
    rows = [f"  {name:{width}}  {each.title}" for name, each in FORMATS.items()]
    parser.epilog = "\n".join(["formats:", *rows, "", "docs/adopt.md explains each."])


def run(args: argparse.Namespace) -> int:
    model: Path = args.model
    check_file(model)
    names = None if args.classes is None else read_classes(args.classes)
    find_data(args.data)
    if args.output is not None:
        check_folder(args.output.parent, args.output)
    original = open_original(model)
    suffix = output_suffix(original)
    output: Path = args.output or model.with_name(f"{model.stem}.tinydet{suffix}")
    if output.suffix != suffix:
        raise ValueError(f"{output}: the name must end in {suffix}")
    if output.exists() and output.samefile(model):
        raise ValueError(f"{output} is the original itself; name another output")
    options = Options(
        format=args.format,
        classes=names,
        first_label=args.first_label,
        input_scale=args.input_scale,
        mean=args.mean,
        std=args.std,
        color=args.color,
        layout=args.layout,
        tile=args.tile,
        batch=args.batch,
        max_detections=args.max_detections,
        score_floor=args.score_floor,
        nms_iou=args.nms_iou,
        boxes=args.boxes,
    )
    with show_steps("adopting"):
        plan, description = make_plan(original, options)
        named_by = "--classes" if names else description.source if description.classes else "not named in the file"
        _report_plan(plan, named_by)
        chosen = choose_images(plan.spec.classes, args.images, args.data, OwnData(model), limit=args.limit)
        adopted, verification = adopt(original, plan, output, chosen, max_drop=args.max_drop)
    spec = adopted.spec
    print(f"wrote         {output}  {adopted.bytes / 1e6:.1f} MB, {spec.precision}, {adopted.seconds:.0f} s")
    print(f"              {output.with_suffix('.json')}")
    print(summarize(verification, output))
    if adopted.floor != spec.score_floor:
        print(
            f"              compared above score {adopted.floor:.2g}: on these images next to nothing scores above "
            f"{spec.score_floor:g}"
        )
    if not sum(found.detections for found in verification.parity.values()):
        logger.warning(
            f"warning: {model} finds nothing on these images, so nothing was compared; adopt it again with --data or "
            "--images that show its objects"
        )
    print(f"run it        {infer_command(output, spec)}")
    if suffix != ".onnx":
        print("              with OpenVINO only; adopt the ONNX file that the IR was made from for all else")
    elif unbuildable := engine_obstacles(original):
        print(f"no engine     TensorRT-RTX refuses its {', '.join(unbuildable)}; export it without NMS for an engine")
    else:
        print(f"build engine  {tinydet_command('export', 'engine', output)}")
    return 0


def _report_plan(plan: Plan, named_by: str) -> None:
    spec, signature = plan.spec, plan.signature
    shown = ", ".join(spec.classes[:SHOWN_CLASSES]) + ", ..." * (len(spec.classes) > SHOWN_CLASSES)
    print(f"recognized    {plan.format.name}: {plan.format.title}")
    print(f"classes       {len(spec.classes)} ({named_by}): {shown}")
    print(f"pixels        {plan.pixels}")
    side = f"{spec.tile}, or any multiple of {signature.multiple}" if signature.multiple else str(spec.tile)
    print(f"input         tiles of {side}, {plural(spec.max_batch, 'tile')} at a time")
    by_runtime = f"NMS at IoU {spec.nms_iou:g} by the runtime"
    suppression = "NMS in its graph, or none needed" if spec.nms_in_graph else by_runtime
    print(f"output        up to {plural(spec.max_detections, 'box')} per tile; {suppression}")
    if plan.shares:
        print("              its boxes are shares of the image, from 0 to 1")
    if plan.limit is not None:
        print(f"              it returns at most {plan.limit}; a tile with as many is reported as saturated")
    if plan.is_fixed_batch:
        print(
            f"              its batch is fixed at {signature.batch}, so one tile costs as much as {signature.batch}; "
            "export it with batch 1 or a dynamic batch to avoid that"
        )


def _three(text: str) -> tuple[float, float, float]:
    values = parse_floats(text)
    if len(values) == 1:
        values *= 3
    if len(values) != 3:
        raise argparse.ArgumentTypeError(f"expected three numbers, such as 0.485,0.456,0.406; got {quoted(text)}")
    return values[0], values[1], values[2]


def _divisors(text: str) -> tuple[float, float, float]:
    values = _three(text)
    if min(values) <= 0:
        raise argparse.ArgumentTypeError(f"expected numbers above 0, got {quoted(text)}")
    return values
