"""The command `tinydet evaluate`: score a model on a dataset, or the results of any framework against ground truth."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tinydet._internal.arguments import add_categories, or_auto, overlap, positive_int, scale, share, side
from tinydet._internal.atomic import claim, write_json
from tinydet._internal.command import command
from tinydet._internal.console import plural
from tinydet._internal.extras import needs_extra
from tinydet._internal.outputs import check_output_files
from tinydet._internal.parser import Parser
from tinydet._internal.plugins import add_plugin_option
from tinydet._internal.progress import Bar
from tinydet._internal.shell import tinydet_command
from tinydet.data.coco_rules import read_document
from tinydet.data.image_paths import image_file
from tinydet.data.layouts.layout import SPLITS
from tinydet.evaluate.calibration import Calibration
from tinydet.evaluate.diagnosis import diagnose
from tinydet.evaluate.model_data import ModelData, checkpoint_of, existing_model
from tinydet.evaluate.operating_point import OperatingPoints, parse_wanted
from tinydet.evaluate.plots import write_plots
from tinydet.evaluate.protocols import PROTOCOLS, Protocol, choose_protocol
from tinydet.evaluate.report import (
    format_calibration,
    format_classes,
    format_errors,
    format_operating_points,
    format_scores,
)
from tinydet.evaluate.run import MODEL_PROTOCOL, RESULTS_PROTOCOL, find_data, prepare, score_results
from tinydet.evaluate.score import Scores
from tinydet.evaluate.store import Target, check_classes, description_of, open_target, store, stored_spec
from tinydet.runtime.backends import BACKENDS, backend_name
from tinydet.runtime.backends.server_address import is_address
from tinydet.runtime.bundled import BUNDLED
from tinydet.runtime.score_calibration import calibrate, describe_thresholds
from tinydet.spec import ModelSpec

DEFAULT_MODEL = Path("model.pth")


@command("evaluate", plugins=True)
def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    _check(args)
    target = None if args.store is None else open_target(args.store, _scored_model(args))
    with claim(args.json, args.precision, args.save_detections, args.store), claim(args.plots, folder=True):
        return _run(args, target)


def _run(args: argparse.Namespace, target: Target | None) -> int:
    protocol = choose_protocol(
        args.protocol or (MODEL_PROTOCOL if args.gt is None else RESULTS_PROTOCOL),
        iod=not args.no_iod,
        keep_uncertain=args.keep_uncertain,
        max_detections=args.max_detections,
    )
    spec: ModelSpec | None = None
    if args.gt is None:
        scores, spec = _score_model(args, protocol, target)
    else:
        if target is not None:
            spec = target.spec if args.model is None else description_of(args.model)
            check_classes(target.spec, spec)
        scores = _score_results(args, protocol)
    print(f"{protocol.name}: {protocol.summary}; percent")
    for text in _score_texts(scores, args):
        print(text)
    points = None
    if args.operating_point is not None:
        classes = 0 if scores.classes is None else len(scores.classes.scored)
        with Bar(classes, "class", "thresholds") as bar:
            points = scores.operating_points(args.operating_point, bar.update)
    calibration = scores.calibration() if args.calibrate else None
    if points is not None:
        print(f"\n{format_operating_points(points)}")
    if calibration is not None:
        print(f"\n{format_calibration(calibration)}")
    for note in scores.notes:
        print(f"note: {note}")
    if args.json:
        values = scores.to_json()
        values |= {} if points is None else {"operating_point": points.to_json()}
        values |= {} if calibration is None else {"calibration": calibration.to_json()}
        write_json(args.json, values)
    if args.precision:
        write_json(args.precision, scores.precision_json(), indent=None)
    if args.plots:
        _plot(scores, calibration, args)
    if target is not None and spec is not None:
        _store(target, spec, points, calibration, scores, args)
    elif points is not None and not points.missed:
        model = "MODEL" if args.gt is not None else _exported(args.model or DEFAULT_MODEL)
        infer = tinydet_command("infer", "--image", "scene.jpg", "--model", model, "--score", "auto")
        print(f"to use these thresholds, add --store FILE, then: {infer}")
    return 0


def _store(
    target: Target,
    spec: ModelSpec,
    points: OperatingPoints | None,
    calibration: Calibration | None,
    scores: Scores,
    args: argparse.Namespace,
) -> None:
    """Store thresholds and calibration in the model, and print what was stored.

    Raises:
        ValueError: a class does not reach the wanted value.
    """
    source = args.gt or args.data or args.annotations
    name = "its validation set"
    if source is not None:
        path = source.resolve()
        name = f"{path.parent.name}/{path.name}" if path.is_file() else path.name
    data = f"{plural(len(scores.truth.image_ids), 'image')} of {name}, {scores.protocol.name}"
    if args.gt is not None and spec.calibration:
        made = args.model or target.path
        print(f"note: {made} is calibrated, and the detections are taken to have its calibrated scores")
    changed, notes = stored_spec(target.spec, spec, points, calibration, data)
    for note in notes:
        print(f"note: {note}")
    written = store(target, changed)
    print(f"stored in {', '.join(map(str, written))}")
    table = scores.classes
    if calibration is not None and table is not None and table.score is not None:
        values = calibrate(
            np.full(len(calibration.names), table.score), np.arange(len(calibration.names)), calibration.lines
        )
        now = ", ".join(f"{value:.3g} ({name})" for name, value in zip(calibration.names, values, strict=True))
        print(f"its scores are calibrated now: the score {table.score:g} above has become {now}")
    if changed.thresholds:
        print(f"score auto: {describe_thresholds(changed)}")
        print(tinydet_command("infer", "--image", "scene.jpg", "--model", target.path, "--score", "auto"))


def _scored_model(args: argparse.Namespace) -> Path | None:
    """Return the model file; None for detections of an unknown model, and for the model of a server."""
    unknown = args.gt is not None or is_address(args.backend or "")
    return args.model or (None if unknown else DEFAULT_MODEL)


def _score_texts(scores: Scores, args: argparse.Namespace) -> Iterator[str]:
    """Yield the tables, the classes first, and how to use the best score threshold."""
    table = scores.classes
    if table is not None:
        yield format_classes(table)
        if table.score is not None:
            use = ""
            if args.gt is None:
                model = _scored_model(args) or DEFAULT_MODEL
                exported = _exported(model)
                where = ("--backend", args.backend) if is_address(args.backend or "") else ("--model", exported)
                use = tinydet_command("infer", "--image", "scene.jpg", *where, "--score", f"{table.score:g}")
                if "--model" in where and model.suffix == ".pth" and not exported.exists():
                    use = f"{tinydet_command('export', 'onnx', model)}, then {use}"
                use = f"; to use it: {use}"
            yield f"P, R and F1 at IoU 0.50 and score >= {table.score:g}, the best mean F1{use}"
        yield ""
    yield format_scores(scores)


def _exported(model: Path) -> Path:
    """Return the file that `tinydet infer` takes: the export of a checkpoint."""
    return model.with_suffix(".onnx") if model.suffix == ".pth" else model


def _score_results(args: argparse.Namespace, protocol: Protocol) -> Scores:
    truth = read_document(args.gt)
    if args.images is not None:
        _check_drawable(truth, args)
    return score_results(
        truth,
        args.detections,
        protocol,
        source=str(args.gt),
        categories=args.categories,
        corner_gt=args.corner_gt,
    )


def _check_drawable(truth: dict[str, Any], args: argparse.Namespace) -> None:
    """Check that the ground-truth images can be drawn: they must be whole files in the image folder.

    Raises:
        ValueError: one cannot.
    """
    images = truth.get("images")
    for entry in images if isinstance(images, list) else ():
        if isinstance(entry, dict) and entry.get("corner") is not None:
            raise ValueError(
                f"{args.gt}: a corner file, whose images are parts of the image files; leave out --images, which draws "
                "whole files"
            )
        if isinstance(entry, dict) and isinstance(name := entry.get("file_name"), str):
            image_file(args.images, name)


def _score_model(args: argparse.Namespace, protocol: Protocol, target: Target | None) -> tuple[Scores, ModelSpec]:
    from tinydet.runtime.options import ScanOptions

    data = _data(args)
    check_output_files((args.json, args.precision, args.save_detections), (data.source.annotations,))
    evaluation = prepare(
        _scored_model(args),
        data,
        categories=args.categories,
        device=args.device,
        backend=args.backend or "auto",
        tile=args.tile,
        overlap=args.overlap,
        scale=args.scale,
    )
    spec = evaluation.backend.spec
    if target is not None:
        check_classes(target.spec, spec)
    print("\n".join(evaluation.describe(args.limit)))
    score = evaluation.options.score if args.score is None else args.score
    with Bar(len(evaluation.dataset.images[: args.limit]), "image", "evaluate") as bar:
        found = evaluation.detect(
            ScanOptions(evaluation.options.overlap, args.scale, score, merge="nms" if args.merge == "nms" else "seam"),
            sub_images=args.merge == "tinyperson",
            corner_gt=args.corner_gt,
            limit=args.limit,
            progress=bar.update,
        )
    if args.save_detections:
        write_json(args.save_detections, found.detections, indent=None)
    coarse = f" ({found.coarse} of a coarse pass, for objects larger than the overlap)" if found.coarse else ""
    print(
        f"{plural(len(found.detections), 'detection')}, {plural(found.tiles, 'tile')}{coarse}, {found.seconds:.1f} s "
        f"({found.tiles / found.seconds:.1f} tiles/s)"
    )
    return evaluation.score(found, protocol), spec


def _plot(scores: Scores, calibration: Calibration | None, args: argparse.Namespace) -> None:
    diagnosis = None if scores.precision is None else diagnose(scores)
    if diagnosis is not None:
        print(format_errors(diagnosis))
    paths = write_plots(scores, diagnosis, args.plots, calibration)
    image_dir = args.images
    if args.gt is None and image_dir is None:
        image_dir = _data(args).source.image_dir
    if diagnosis is not None and image_dir is not None:
        from tinydet.evaluate.worst_images import draw_worst

        paths += draw_worst(scores.truth, diagnosis, image_dir, args.plots)
    print("wrote " + ", ".join(map(str, paths)))


def _data(args: argparse.Namespace) -> ModelData:
    """Return the dataset that the options name; by default the validation set of the model's training."""
    data = args.data if args.annotations is None else args.annotations
    found = find_data(args.model or DEFAULT_MODEL, data, args.images, split=args.split)
    assert isinstance(found, ModelData)
    return found


def _check(args: argparse.Namespace) -> None:
    """Reject contradicting options and missing files before hours of work.

    Raises:
        ValueError: an option that is missing or conflicts with another; a file or folder that does not exist.
    """
    if (args.gt is None) != (args.detections is None):
        missing = "--detections" if args.detections is None else "--gt"
        instead = " in place of --data" if args.gt is None and args.data is not None else ""
        raise ValueError(f"results need both --gt and --detections; add {missing}{instead}")
    if args.gt is not None:
        model_options: tuple[str, ...] = (
            "model", "data", "annotations", "merge", "limit", "tile", "device", "backend", "save_detections"
        )  # fmt: skip
        if args.store is not None:  # --model names the model that made the detections
            model_options = model_options[1:]
        if given := [name for name in model_options if getattr(args, name) is not None]:
            flag = "--" + given[0].replace("_", "-")
            raise ValueError(
                f"--gt and --detections score a file of results, {flag} belongs to a model; give one or the other"
            )
    if args.data is not None and args.annotations is not None:
        raise ValueError("give either --data, or --annotations and --images; not both")
    if args.gt is None and args.images is not None and args.annotations is None and args.data is None:
        raise ValueError("--images is the image folder of --annotations; add --annotations FILE")
    if args.corner_gt is not None and args.merge in ("seam", "nms"):
        raise ValueError(
            f"--corner-gt gives the benchmark's sub-images, which --merge {args.merge} does not use; drop one"
        )
    if args.gt is not None and args.images is not None and args.plots is None:
        raise ValueError("--images shows results only with --plots; add it")
    protocol = args.protocol or (MODEL_PROTOCOL if args.gt is None else RESULTS_PROTOCOL)
    if PROTOCOLS[protocol].precision is None and (args.operating_point is not None or args.calibrate):
        flag = "--calibrate" if args.operating_point is None else "--operating-point"
        raise ValueError(
            f"{flag} needs a protocol that measures AP, and {protocol} does not; choose another --protocol"
        )
    if args.store is not None and args.operating_point is None and not args.calibrate:
        raise ValueError("--store keeps the result of --operating-point or --calibrate in a model; add one of them")
    if args.plots is not None:
        with needs_extra("plots"):
            import matplotlib  # noqa: F401 - fail now rather than after the work
    check_output_files(
        (args.json, args.precision, args.save_detections),
        (args.gt, args.detections, args.corner_gt, args.annotations, args.model or DEFAULT_MODEL, args.store),
    )
    if args.gt is None:
        if _scored_model(args) is None:
            if args.data is None and args.annotations is None:
                raise ValueError(
                    "--backend names a server, which does not know the validation set; name it: --data DIR"
                )
            _data(args)
            return
        if args.model is None and not DEFAULT_MODEL.is_file():
            raise ValueError(
                f"no --model, and no {DEFAULT_MODEL} here; name a .pth or .onnx file, train one with "
                f"`{tinydet_command('train', '--salpha')}`, or score results with --gt and --detections"
            )
        if args.model is not None and args.model.is_dir():
            raise ValueError(f"{args.model}: a folder, not a model; name a model, and the dataset with --data")
        path = existing_model(args.model or DEFAULT_MODEL)
        if args.data is not None or args.annotations is not None:
            _data(args)  # refuses data that are not there before torch is imported
        elif path.suffix != ".pth":
            checkpoint_of(args.model or DEFAULT_MODEL)


def _parser() -> argparse.ArgumentParser:
    protocols = "\n".join(f"  {name:17} {protocol.summary}" for name, protocol in PROTOCOLS.items())
    parser = Parser(
        "evaluate",
        positional="--model",
        examples=(
            "model.pth --data beach-val --json scores.json",
            "model.onnx --annotations val.json --images val/ --plots scores/",
            "--gt gt.json --detections dt.json --protocol tinyperson",
        ),
        description="Compute average precision (AP) by class, and AP and miss rate (MR) by object size: of a model on "
        "a dataset, or of COCO results of any framework against COCO ground truth.",
        epilog=f"protocols:\n{protocols}",
    )
    model = parser.add_argument_group("a model on a dataset")
    model.add_argument(
        "--model",
        type=Path,
        metavar="FILE",
        help=f"checkpoint (.pth), exported model, or bundled model ({', '.join(BUNDLED)}) (default: {DEFAULT_MODEL})",
    )
    model.add_argument(
        "--data",
        type=Path,
        metavar="PATH",
        help="dataset folder, data.yaml or COCO file, whose layout is recognized, or 'builtin' for the built-in scenes "
        "(default: the validation set that the model was trained with)",
    )
    model.add_argument("--split", choices=SPLITS, help="split of --data, if it has several (default: val)")
    model.add_argument("--annotations", type=Path, metavar="FILE", help="COCO annotation file, in place of --data")
    model.add_argument(
        "--images", type=Path, metavar="DIR", help="image folder for --annotations, or for --gt with --plots"
    )
    model.add_argument(
        "--score",
        type=share,
        metavar="S",
        help="drop detections below this score (default: 0.05, or 0 for a calibrated model)",
    )
    model.add_argument(
        "--tile",
        type=or_auto(side),
        metavar="PX",
        help="side of tiles in pixels, a multiple of 32 or 64; auto chooses by object size, overlap and free memory "
        "(default: the model's tile)",
    )
    model.add_argument(
        "--overlap",
        type=overlap,
        metavar="PX",
        help="overlap of tiles in pixels (default: 128, at most half a tile)",
    )
    model.add_argument(
        "--scale",
        type=scale,
        default=1.0,
        metavar="S",
        help="resize images by this factor (default: %(default)s)",
    )
    model.add_argument(
        "--merge",
        choices=("seam", "nms", "tinyperson"),
        help="merge tiles across their borders (seam), by NMS over the image (nms), or as the benchmark does on its "
        "sub-images (tinyperson) (default: seam)",
    )
    model.add_argument(
        "--backend",
        type=backend_name,
        metavar="NAME|URL",
        help=f"run an exported model with this backend: {', '.join(BACKENDS)}; or on a server, "
        "http://HOST:8000/v2/models/NAME, where --model is only compared with the server's model (default: auto)",
    )
    model.add_argument("--device", metavar="D", help="torch device for a checkpoint, such as cuda (default: cpu)")
    model.add_argument("--limit", type=positive_int, metavar="N", help="score only the first N images (default: all)")
    model.add_argument(
        "--save-detections", type=Path, metavar="FILE", help="also write the detections as COCO results (default: none)"
    )
    add_plugin_option(model)
    results = parser.add_argument_group("results of any framework")
    results.add_argument("--gt", type=Path, metavar="FILE", help="COCO ground truth, .json or .json.gz")
    results.add_argument(
        "--detections", type=Path, metavar="FILE", help="COCO results: a list, or the COCO file that inference writes"
    )
    results.add_argument(
        "--corner-gt",
        type=Path,
        metavar="FILE",
        help="corner file of the benchmark: merge --detections made on its sub-images, or run --model on them",
    )
    scoring = parser.add_argument_group("scoring")
    scoring.add_argument(
        "--protocol",
        choices=tuple(PROTOCOLS),
        metavar="NAME",
        help=f"scoring rules, listed below (default: {MODEL_PROTOCOL} for a model, {RESULTS_PROTOCOL} for results)",
    )
    add_categories(scoring, "score")
    scoring.add_argument(
        "--max-detections",
        type=positive_int,
        metavar="N",
        help="best detections per image and class that count for AP (default: the protocol's)",
    )
    scoring.add_argument(
        "--no-iod", action="store_true", help="switch off IoD, which ignores detections inside an ignored object"
    )
    scoring.add_argument("--keep-uncertain", action="store_true", help="count uncertain annotations as objects to find")
    threshold = parser.add_argument_group("score threshold")
    threshold.add_argument(
        "--operating-point",
        type=parse_wanted,
        metavar="WHAT",
        help="choose a score threshold for each class: f1 (the best), precision=P, recall=R, or false-alarms=F per "
        "megapixel of the images (default: only the best mean F1)",
    )
    threshold.add_argument(
        "--calibrate",
        action="store_true",
        help="fit the scores to the share of correct detections, and measure the expected calibration error by size",
    )
    threshold.add_argument(
        "--store",
        type=Path,
        metavar="FILE",
        help="store the thresholds and the calibration in this exported model, for `infer --score auto`; a new FILE "
        "becomes a copy of --model, which may also name the model that made --detections (default: none)",
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--json", type=Path, metavar="FILE", help="write the scores as JSON, as fractions (default: none)"
    )
    output.add_argument(
        "--precision", type=Path, metavar="FILE", help="write precision at 101 recalls as JSON (default: none)"
    )
    output.add_argument(
        "--plots",
        type=Path,
        metavar="DIR",
        help="write the table of classes, a confusion matrix, curves, errors by size and the worst images (default: "
        "none)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
