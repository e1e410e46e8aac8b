"""The command `tinydet infer`: detect objects in scenes of any size with an exported model."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from tinydet._internal.arguments import (
    batch_size,
    image_id,
    integers,
    names_from,
    number,
    number_range,
    or_auto,
    overlap,
    positive_int,
    quoted,
    readers,
    scale,
    share,
    side,
    threads,
)
from tinydet._internal.atomic import claim
from tinydet._internal.command import command
from tinydet._internal.console import information_to_stderr, plural
from tinydet._internal.input_files import check_file
from tinydet._internal.interrupt import terminated_like_interrupted
from tinydet._internal.outputs import is_device
from tinydet._internal.parser import Parser
from tinydet._internal.progress import Bar
from tinydet._internal.shell import tinydet_command
from tinydet._internal.stores import is_store, to_path
from tinydet._internal.suggestions import did_you_mean, did_you_mean_path
from tinydet.geometry.tiles import MOST_TILES
from tinydet.infer.auto_options import choose_overlap, longest_side, object_pixels
from tinydet.infer.bundled_choice import choose_bundled
from tinydet.infer.coco_images import coco_sources
from tinydet.infer.contrast_calibration import calibrate_contrast_filter, measure_contrasts
from tinydet.infer.contrast_filter import ContrastFilter, contrast_filter_path
from tinydet.infer.jobs import OutputOptions, plan_jobs
from tinydet.infer.opened_ahead import OpenedAhead
from tinydet.infer.parts import JoinRun, PartRun, images_only, parse_part, parts_folder
from tinydet.infer.ray_driver import Cluster, ClusterRun, check_address
from tinydet.infer.ray_worker import Setup
from tinydet.infer.scenes import InferenceRun
from tinydet.infer.settings import Settings
from tinydet.infer.summary import RunSummary, summary_written
from tinydet.runtime.auto_tile import AutoTile, auto_overlap
from tinydet.runtime.backends import BACKENDS, MODEL_FILES, Backend, Choice, backend_name, choose_model
from tinydet.runtime.backends.server_address import is_address
from tinydet.runtime.bundled import BUNDLED, FOLDER, model_path
from tinydet.runtime.model_files import local_model
from tinydet.runtime.options import ScanOptions
from tinydet.runtime.plan import OVERLAP, default_overlap
from tinydet.runtime.read_ahead import READERS
from tinydet.runtime.scenes.sources import Source, find_sources
from tinydet.runtime.score_calibration import describe_thresholds
from tinydet.runtime.stitch import MERGES
from tinydet.runtime.tile_filter import FilterFile, filter_path
from tinydet.runtime.tracking import check_tracking
from tinydet.runtime.writers import FORMATS

SKIPPED = 3  # exit code
SKIPS = ("learned", "empty")
FILTERS = (".onnx", ".engine", ".xml")
EXAMPLES = (
    "scene.jpg",
    "flight/ --output found/ --format coco,geojson,csv --draw found/ --crops found/",
    "flight/ --output labels/ --format yolo --summary run.json",
    "flight/ 'archive/**/*.tif' --overlap auto --scale auto --object-size 0.6m",
    "clip.mp4 --every 5 --output clip.csv --draw clip.found.mp4",
    "flight.mp4 --track --output flight.csv --draw flight.tracks.mp4",
    "rtsp://camera/pier --frames 1000 --output pier.json",
    "scene.tif --backend http://gpu:8000/v2/models/tinydet",
    "--annotations val.json --images val/ --score 0.05 --output results.json",
)
EPILOG = """\
By default, SCENE.detections.json (a COCO file) and SCENE.detections.jpg are
written next to each scene. If --output, --draw or --crops is given, only the
named files are written. Detections of a scene are sorted by descending score,
in blocks of 100 000 if there are more. The COCO file has images, categories
and annotations with a score; --format coco-results writes the bare list.

If objects are twice as large as in the training images, use --scale 0.5, or
let --scale auto compute it from --object-size. GeoTIFFs of any size need
pip install 'tinydet[geo]', videos and streams need 'tinydet[video]'.

Exit codes: 0 everything was done, 2 error, 3 scenes were skipped, 130 Ctrl-C
or SIGTERM.
"""

logger = logging.getLogger("tinydet.infer")


@command("infer")
def main(argv: Sequence[str] | None = None) -> int:
    args = infer_parser().parse_args(argv)
    if args.calibrate_skip:
        return _calibrate(args)
    return SKIPPED if infer(args).skipped else 0


def infer(args: argparse.Namespace) -> RunSummary:
    """Run the command with parsed arguments, see `parser`; return what it has done.

    Raises:
        ValueError, OSError, ImportError: the arguments, a scene, the model or an output are invalid.
    """
    if args.ray is None and (args.workers is not None or args.gpus_per_worker):
        raise ValueError("--workers and --gpus-per-worker are for a Ray cluster; add --ray")
    if args.ray is not None:
        check_address(args.ray)
        if is_address(args.backend):
            raise ValueError("--ray runs the model in its actors, --backend URL on a server; choose one")
    # Check the paths before the model is loaded, so that a wrong one is reported at once.
    if args.skip not in (None, "empty") and args.skip_empty:
        raise ValueError("--skip and --skip-empty name two filters; choose one")
    if args.skip not in (None, "empty", "learned") or (args.skip == "learned" and args.model is not None):
        named = None if args.model is None else model_path(args.model)
        if named is None or not is_store(named):
            check_file(
                _filter_file(args.skip, named), f"train one: {tinydet_command('train', '--filter', 'model.pth')}"
            )
    formats = args.format and tuple(dict.fromkeys(args.format))
    outputs = OutputOptions(args.output, formats, args.draw, args.crops, args.summary, args.journals, args.stac)
    sources = _sources(args)
    plan = plan_jobs(sources, outputs, _inputs(args), check_scenes=not args.skip_unreadable, gps=args.gps)
    folder = None
    if args.part is not None or args.join or args.ray is not None:
        images_only(plan.jobs)  # refuses videos alone
        folder = parts_folder(outputs, [job.source for job in plan.jobs if not job.source.moving])
    if args.resume and any(job.journal is None for job in plan.jobs):
        raise ValueError("--resume needs a journal next to the results, and an output device has none; write to a file")
    if args.bands is not None and any(job.source.moving for job in plan.jobs):
        raise ValueError("--bands selects bands of a raster, and videos are always RGB; leave it out")
    if not args.track and any(FORMATS[kind].tracked for kind in formats or ()):
        raise ValueError("--format mot holds tracked objects; add --track")
    if args.track:
        for job in plan.jobs:
            if not job.source.moving:
                raise ValueError(
                    f"--track follows objects through a video or stream, and {job.source.label} is a still image; "
                    "leave it out, or join the images to a video first (ffmpeg -i %06d.jpg frames.mp4)"
                )
        check_tracking()
    # Results that go to a device such as /dev/stdout must not be mixed with messages.
    if args.output is not None and is_device(to_path(args.output)):
        information_to_stderr()
    first = plan.jobs[0].source
    is_read_first = folder is None and not first.moving and not args.resume
    with OpenedAhead(first if is_read_first else None, args.bands) as ahead, terminated_like_interrupted():
        model = chosen_model(args, [job.source for job in plan.jobs])
        backend = model.backend
        settings = run_settings(args, model.path, backend)
        model_hash = model.sha256
        if args.part is not None and folder is not None:
            part = PartRun(backend, model_hash, settings, args.part, folder, plan)
            part.run_part()
            return part.summary
        if folder is None:
            run = InferenceRun(backend, model_hash, settings, ahead=ahead)
        else:
            run = JoinRun(backend, model_hash, settings, folder, plan)
        with summary_written(args.summary, run.summary, plan, backend, (_shown_model(args, model), model_hash), args):
            if args.ray is not None and folder is not None:
                threads = 1 if args.threads is None else args.threads
                cluster = Cluster(args.ray, args.workers, args.gpus_per_worker, threads)
                assert model.runs is not None
                file = args.model if args.model is not None and is_store(args.model) else model.runs
                setup = Setup(file.absolute(), model_hash, args.backend, backend.spec.tile, threads, settings)
                ClusterRun(cluster, setup, backend, folder, plan).run()
            if isinstance(run, JoinRun):
                run.run_join(keep=args.ray is None or args.resume)
            else:
                run.run(plan)
    return run.summary


def infer_parser() -> Parser:
    """Return the parser of the command, with the default of each option."""
    parser = Parser(
        "infer",
        positional="--image",
        examples=EXAMPLES,
        needs_arguments=True,
        description="Detect objects in images, rasters and videos of any size with an exported model.",
        epilog=EPILOG,
    )
    add = parser.add_argument_group("input").add_argument
    add("--image", nargs="+", action="extend", metavar="SCENE", help="scan these images (JPEG, PNG, TIFF, JP2, ...),"
        " folders (without hidden files), glob patterns, videos, file:// URIs, rtsp:// streams or webcam"
        " numbers; also s3://, gs://, az:// and https:// addresses, STAC items (.json) and Parquet tables of"
        " scenes")  # fmt: skip
    add("--asset", metavar="NAME", help="scan the asset with this name or role of each STAC item (default: its"
        " only image, or the one named visual)")  # fmt: skip
    add("--annotations", type=Path, metavar="FILE", help="scan the images of this COCO file and keep its image ids")
    add("--images", type=Path, metavar="DIR", help="folder of the images of --annotations (default: images/ next to"
        " the file)")  # fmt: skip
    add("--image-id", type=image_id, default=1, metavar="ID", help="COCO image id of the first scene or video frame;"
        " the next ones count up (default: 1)")  # fmt: skip
    add("--bands", type=integers, metavar="R,G,B", help="1-based band indices for R,G,B, or one for grayscale"
        " (default: the file's RGB bands)")  # fmt: skip
    add("--every", type=positive_int, default=1, metavar="N", help="scan every N-th frame of a video (default: 1)")
    add("--frames", type=positive_int, metavar="N", help="stop after scanning N frames of a video (default: at its"
        " end or on Ctrl-C)")  # fmt: skip
    add("--track", action="store_true", help="give each object of a video or stream a number that it keeps from frame"
        " to frame, also if the camera moves; detections down to a third of --score may continue a track; requires"
        " tinydet[track]")  # fmt: skip
    add("--reconnect", type=number(0, 1e6), default=30.0, metavar="S", help="keep trying to reopen a broken stream for"
        " S seconds (default: 30)")  # fmt: skip
    add = parser.add_argument_group("model").add_argument
    add("--model", type=to_path, metavar="FILE", help=f"run this exported model, or a bundled one: {', '.join(BUNDLED)}"
        f" (default: {' or '.join(MODEL_FILES)} in the current folder, else a bundled one, by the color of the"
        " scenes)")  # fmt: skip
    add("--backend", type=backend_name, default="auto", metavar="NAME|URL", help="run the model with this backend:"
        f" {', '.join(BACKENDS)}; or on a server, http://HOST:8000/v2/models/NAME (KServe V2, such as Triton; also"
        " https, and grpc with tinydet[triton]), where --model is only compared with the server's model (default: auto,"
        " the fastest that works here)")  # fmt: skip
    add("--batch", type=batch_size, default=4, metavar="N", help="run up to N tiles at once (default: 4)")
    add("--threads", type=threads, metavar="N", help="run the model on N CPU threads (default: all that are usable);"
        " with a server: up to N requests at a time (default: 4)")  # fmt: skip
    add = parser.add_argument_group("tiles").add_argument
    add("--tile", type=or_auto(side), metavar="PX", help="cut the scene into tiles of PX pixels: a multiple of 32 or"
        " 64 for ONNX files, one of its tiles for an engine; auto chooses by object size, overlap, free memory"
        " and the size of the scenes (default: the model's tile)")  # fmt: skip
    add("--overlap", type=or_auto(overlap), metavar="PX", help="let neighboring tiles share PX pixels; auto fits"
        f" the model's largest objects (default: {OVERLAP}, at most half a tile)")  # fmt: skip
    add("--scale", type=or_auto(scale), default=1.0, metavar="F", help="resize the scene by the factor F before"
        " tiling; auto computes F from --object-size (default: 1)")  # fmt: skip
    add("--object-size", type=_object_size, metavar="SIZE", help="side of a typical object in the scene for --scale"
        " auto: 24 (pixels) or 0.6m (meters)")  # fmt: skip
    add("--gsd", type=number(0, 1e6, above=True), metavar="M", help="ground sample distance in meters per pixel"
        " (default: from the georeference, or the camera metadata of a photo taken straight down)")  # fmt: skip
    add("--max-tiles", type=positive_int, default=MOST_TILES, metavar="N", help="refuse scenes of more tiles before"
        f" scanning them (default: {MOST_TILES})")  # fmt: skip
    add("--skip", type=skip_choice, metavar="learned|empty|FILE", help="do not run tiles without objects: learned asks"
        " the tile filter next to the model (MODEL.filter.onnx, from train --filter), FILE another one; empty is"
        " --skip-empty (default: run all tiles)")  # fmt: skip
    add("--skip-empty", action="store_true", help="do not run tiles without contrast at the size of an object, nor"
        " video tiles without motion; requires --calibrate-skip once")  # fmt: skip
    add("--calibrate-skip", action="store_true", help="measure on --annotations which tiles --skip-empty may skip,"
        " write MODEL.skip.json and exit")  # fmt: skip
    add = parser.add_argument_group("detections").add_argument
    add("--score", type=or_auto(share), default=0.3, metavar="S", help="drop detections that score below S, 0 to 1;"
        " auto takes the threshold of each class that `evaluate --store` put into the model; use 0.05 to measure AP"
        " (default: 0.3)")  # fmt: skip
    add("--merge", choices=MERGES, default="seam", help="merge the detections of overlapping tiles by this method; all"
        " but seam are for comparison (default: seam)")  # fmt: skip
    add("--agnostic", action="store_true", help="merge overlapping boxes of different classes too (default: only of"
        " the same class)")  # fmt: skip
    add = parser.add_argument_group("output").add_argument
    add("--output", metavar="PATH", help="write the detections of all scenes to one file: .json (COCO), .geojson,"
        " .gpkg, .csv, .parquet, or .txt (YOLO, one scene only); or one file per scene to a folder, whose name ends in"
        " / (default: SCENE.detections.json next to each scene)")  # fmt: skip
    add("--format", type=names_from(FORMATS), action="extend", metavar="A,B", help="write these formats:"
        f" {', '.join(FORMATS)}; coco-results is the bare list of COCO results, yolo-conf has scores; YOLO labels are"
        " named like the images, with a classes.txt; mot holds the objects of --track (default: by the suffix of"
        " --output, else coco)")  # fmt: skip
    add("--gps", action="store_true", help="place the detections of drone photos without georeference by their camera"
        " metadata, approximately: photos taken straight down (within 10 degrees), on flat ground")  # fmt: skip
    add("--stac", metavar="PATH", help="write a STAC item for the detections of each scene, which lists their files;"
        " a folder for several scenes (default: none)")  # fmt: skip
    add("--draw", metavar="PATH", help="write the scene with its detections drawn on it, as an image or, for a video,"
        " as .mp4, .mkv or .mov; a folder for several scenes (default: SCENE.detections.jpg or .mp4, nothing for a"
        " stream)")  # fmt: skip
    add("--crops", metavar="PATH", help="write a contact sheet of enlarged detections, best first; a folder for"
        " several scenes (default: none)")  # fmt: skip
    add("--summary", type=to_path, metavar="FILE", help="write scenes, counts by class, files, skipped scenes with"
        " reasons, model, options and versions of the run as JSON, also after Ctrl-C (default: none)")  # fmt: skip
    run = parser.add_argument_group("run")
    add = run.add_argument
    add("--readers", type=readers, default=READERS, metavar="N", help="read a raster with N threads (default: "
        f"{READERS})")  # fmt: skip
    add("--journals", type=to_path, metavar="DIR", help="keep the journals of unfinished scenes in this folder, also"
        " in an object store (default: next to the results)")  # fmt: skip
    add("--resume", action="store_true", help="continue an interrupted run; completed scenes are not run again")
    group = parser.add_argument_group("several processes")
    either = group.add_mutually_exclusive_group()
    either.add_argument("--part", type=parse_part, metavar="i/n", help="scan the i-th of n parts of the images, and"
        " write journals to a folder that all parts share: OUTPUT.parts, or parts/ in an output folder; each part may"
        " run on another machine, and continues where it was interrupted; --summary is written by --join")  # fmt: skip
    either.add_argument("--join", action="store_true", help="write the outputs from the journals of all parts, without"
        " running the model; all other options must be those of the parts")  # fmt: skip
    either.add_argument("--ray", nargs="?", const="local", metavar="ADDRESS", help="scan with actors on a Ray cluster"
        " (default: that of RAY_ADDRESS, else start Ray on this machine); the same command continues an interrupted"
        " run; requires tinydet[ray]")  # fmt: skip
    add = group.add_argument
    add("--workers", type=number_range, metavar="MIN-MAX", help="number of actors with --ray, or its range (default: 1"
        " to one per CPU or GPU); each takes --threads CPUs (default with --ray: 1)")  # fmt: skip
    add("--gpus-per-worker", type=number(0, 64), default=0.0, metavar="G", help="GPUs of each actor; with 0.5, two"
        " actors share a GPU (default: 0)")  # fmt: skip
    add = run.add_argument
    add("--skip-unreadable", action="store_true", help="skip scenes that cannot be read, list them with their"
        " reasons and exit with code 3 (default: stop with code 2)")  # fmt: skip
    add("-v", "--verbose", action="store_true", help="report each scene (default: only if there is one; a progress bar"
        " and a summary for several)")  # fmt: skip
    return parser


def _sources(args: argparse.Namespace) -> list[Source]:
    if (args.image is None) == (args.annotations is None):
        raise ValueError("give either the scenes, --image SCENE ..., or a COCO file with images, --annotations FILE")
    if args.images is not None and args.annotations is None:
        raise ValueError("--images is the image folder of --annotations FILE; to scan a folder, use --image DIR")
    if args.annotations is not None:
        return coco_sources(args.annotations, args.images)
    return find_sources(args.image, args.image_id, args.asset)


def _inputs(args: argparse.Namespace) -> list[Path]:
    """Return the files that the run reads besides the scenes: annotations, and models with their companion files."""
    models = [Path(name) for name in MODEL_FILES] if args.model is None else [model_path(args.model)]
    models = [model for model in models if not is_store(model)]
    inputs = [] if args.annotations is None else [args.annotations]
    for model in filter(Path.is_file, models):
        inputs += [model, contrast_filter_path(model), filter_path(model)]
        if model.suffix == ".engine":
            inputs.append(model.with_suffix(".json"))
    return inputs


def run_settings(args: argparse.Namespace, path: Path | None, backend: Backend) -> Settings:
    """Return the settings of a run from the options of the command.

    Args:
        path: of the model; None for a model of which only a server has the file.

    Raises:
        ValueError: the options do not fit the model.
    """
    spec = backend.spec
    contrast_filter, tile_filter = None, None
    if args.skip_empty or args.skip == "empty":
        if path is None:
            raise ValueError(
                "--skip-empty reads MODEL.skip.json next to the model file, so name that: --model model.onnx"
            )
        contrast_filter = ContrastFilter.load(contrast_filter_path(path))
    elif args.skip is not None:
        if path is None and args.skip == "learned":
            raise ValueError("--skip learned reads MODEL.filter.onnx next to the model file, so name that: --skip FILE")
        tile_filter = FilterFile.of(_filter_file(args.skip, path), args.backend)
    overlap = choose_overlap(spec) if args.overlap == "auto" else args.overlap
    if overlap is None:
        overlap = auto_overlap(spec, spec.tile) if args.tile == "auto" else default_overlap(spec.tile)
    scale = None if args.scale == "auto" else args.scale
    if scale is None and args.object_size is None:
        raise ValueError(
            "--scale auto needs the size of a typical object in the scene: --object-size 24 (pixels) or "
            "--object-size 0.6m (meters)"
        )
    if args.score == "auto":
        if not spec.thresholds:
            file = path or Path("model.onnx")
            stored = file.name if file.parent == FOLDER else file
            choose = tinydet_command("evaluate", "--model", args.model or file, "--data", "DATA")
            raise ValueError(
                f"--score auto: {path or backend.name} has no score thresholds. Give a number, or choose and "
                f"store them: {choose} --operating-point f1 --store {stored}"
            )
        logger.info(f"score auto: {describe_thresholds(spec)}")
    return Settings(
        ScanOptions(
            overlap,
            1.0 if scale is None else scale,
            args.score,
            min(args.batch, spec.max_batch),
            merge=args.merge,
            agnostic=args.agnostic,
            readers=args.readers,
            max_tiles=args.max_tiles,
        ),
        tile=spec.tile,
        auto_scale=scale is None,
        object_size=args.object_size or "",
        gsd=args.gsd,
        gps=args.gps,
        contrast_filter=contrast_filter,
        tile_filter=tile_filter,
        bands=args.bands,
        resume=args.resume,
        skip_unreadable=args.skip_unreadable,
        verbose=args.verbose,
        every=args.every,
        frames=args.frames,
        reconnect=args.reconnect,
        track=args.track,
    )


def chosen_model(args: argparse.Namespace, sources: Sequence[Source]) -> Choice:
    """Open the model that the options ask for, and report which one it is.

    Args:
        sources: the scenes, whose color decides between the bundled models, and their size about the tile.

    Returns:
        Its file, None for the model of a server, and what runs it.

    Raises:
        ValueError, OSError, ImportError: there is no such model, it cannot run here, or it does not take `--tile`.
    """
    overlap = args.overlap if isinstance(args.overlap, int) else None
    tile = args.tile
    if tile == "auto":
        longest = None if args.scale == "auto" else longest_side(sources, args.scale)
        tile = AutoTile(overlap, batch=args.batch, longest=longest)
    path: Path | None = None
    if args.model is not None:
        path = local_model(model_path(args.model))
        if not path.exists():
            export = tinydet_command("export", "onnx", "model.pth")
            raise FileNotFoundError(
                f"--model {path} does not exist; export one: {export}, or use a bundled model: {', '.join(BUNDLED)}"
                f"{did_you_mean(str(path), BUNDLED) or did_you_mean_path(path)}"
            )
        check_file(path, "name an exported model")
    elif is_address(args.backend):
        pass  # the server's model
    elif args.backend != "tensorrt" and not any(Path(name).exists() for name in MODEL_FILES):
        export = f"; to use model.pth: {tinydet_command('export', 'onnx', 'model.pth')}"
        name, reason = choose_bundled(sources, args.bands)
        others = " or ".join(f"--model {other}" for other in BUNDLED if other != name)
        logger.info(
            f"No {' or '.join(MODEL_FILES)} here; using the bundled model `{name}`: {BUNDLED[name]}"
            f"{f' ({reason}; {others} overrides)' if others else ''}{export if Path('model.pth').exists() else ''}"
        )
        path = model_path(name)
    choice = choose_model(args.backend, path=path, tile=tile, threads=args.threads)
    for reason in choice.passed_over:
        logger.info(f"Not used: {reason}")
    if choice.note:
        logger.info(choice.note)
    spec, shown = choice.backend.spec, _shown_model(args, choice)
    logger.info(f"{shown}: {spec.detector} {spec.backbone}, {spec.precision}, {choice.backend.name}")
    return choice


def _shown_model(args: argparse.Namespace, model: Choice) -> Path | str:
    """Return the model for messages and records: the address of one from a store or on a server, not a local copy."""
    if args.model is not None and is_store(args.model):
        return str(args.model)
    return model.runs or str(args.backend)


def _calibrate(args: argparse.Namespace) -> int:
    """Measure which tiles may be skipped, write the filter next to the model and print what it keeps and saves."""
    if args.annotations is None:
        raise ValueError("--calibrate-skip needs annotated images: --annotations val.json --images DIR")
    model = chosen_model(args, coco_sources(args.annotations, args.images))
    path, backend = model.path, model.backend
    if path is None:
        raise ValueError("--calibrate-skip writes MODEL.skip.json next to the model file, so name that: --model FILE")
    args.skip_empty, args.skip = False, None  # the filter does not exist yet
    settings = run_settings(args, path, backend)
    if settings.auto_scale:
        raise ValueError("--calibrate-skip needs a fixed scale, such as --scale 0.5")
    options = settings.options
    assert options.overlap is not None
    with (
        claim(contrast_filter_path(path)),
        Bar(len(coco_sources(args.annotations, args.images)), "image") as bar,
    ):
        contrasts = measure_contrasts(
            backend.spec,
            args.annotations,
            args.images,
            scale=options.scale,
            overlap=options.overlap,
            bands=settings.bands,
            progress=bar.update,
        )
        calibrated = calibrate_contrast_filter(contrasts, tile=backend.spec.tile, scale=options.scale)
        calibrated.save(contrast_filter_path(path))
    print(
        f"--skip-empty will skip tiles whose contrast at the size of an object ({calibrated.size:.0f} pixels) is "
        f"below {calibrated.threshold}: {calibrated.saving:.1%} of the {calibrated.tiles} tiles of "
        f"{args.annotations}.\n"
        f"The other tiles contain {calibrated.recall:.2%} of its {plural(calibrated.objects, 'object')} (at least "
        f"{calibrated.recall_bound:.2%} on similar images, with 95 % confidence).\n"
        f"In a video, tiles that change by less than {calibrated.motion} are not run again; "
        f"{calibrated.motion_recall:.2%} of these objects change their tile by {calibrated.motion} or more when they "
        "appear.\n"
        f"  {contrast_filter_path(path)}"
    )
    return 0


def skip_choice(text: str) -> str:
    """Parse the value of `--skip`: the name of a filter, or the file of a tile filter."""
    if text not in SKIPS and to_path(text).suffix not in FILTERS:
        raise argparse.ArgumentTypeError(
            f"expected {', '.join(SKIPS)} or the file of a tile filter ({', '.join(FILTERS)}), got {quoted(text)}"
            f"{did_you_mean(text, SKIPS)}"
        )
    return text


def _filter_file(skip: str, model: Path | None) -> Path:
    """Return the file of the tile filter that `--skip` names for a model."""
    if skip != "learned":
        return to_path(skip)
    assert model is not None
    return filter_path(model)


def _object_size(text: str) -> str:
    try:
        object_pixels(text, 1.0, "")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


if __name__ == "__main__":
    sys.exit(main())
