"""The command `tinydet infer`: boxes on scenes, with an exported model."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tinydet._internal.command import command
from tinydet.infer.auto_options import choose_overlap
from tinydet.infer.jobs import Wanted, hash_file, plan_jobs
from tinydet.infer.scenes import Survey
from tinydet.infer.settings import Settings
from tinydet.infer.skip import Gate, gate_path
from tinydet.infer.skip_calibration import calibrate, look_at
from tinydet.runtime.backends import BACKENDS, MODEL_FILES, Backend, choose_model, open_model
from tinydet.runtime.bundled import BUNDLED, DEFAULT, model_path
from tinydet.runtime.read_ahead import READERS
from tinydet.runtime.scan import OVERLAP
from tinydet.runtime.scenes.sources import Source, coco_sources, find_sources
from tinydet.runtime.stitch import MERGES
from tinydet.runtime.writers import FORMATS, is_device

MODELS, MODELS_OR = " and ".join(MODEL_FILES), " or ".join(MODEL_FILES)
EXAMPLE = """examples:
  python deploy/infer.py --image scene.jpg --tile 640
  python deploy/infer.py --image flight/ "archive/**/*.tif" --overlap auto --scale auto --object-size 0.6m
  python deploy/infer.py --annotations val.json --images val/ --score 0.05 --output results.json
  python deploy/infer.py --image flight/ --output found/ --format coco,geojson,csv --draw found/ --crops found/
  python deploy/infer.py --image clip.mp4 --every 5 --output clip.csv --draw clip.found.mp4
  python deploy/infer.py --image rtsp://camera/pier --frames 1000 --output pier.json

  takes model.engine or model.onnx from the current folder (where there is neither, the bundled model for thermal drone
  frames), writes scene.detections.json (COCO results) and scene.detections.jpg beside the scene; with --output, --draw
  or --crops only what they name. A scene's boxes stand in a file from the best to the weakest, of more than 100 000 in
  portions of as many. Where objects are twice as large as those of the training images, say --scale 0.5. A GeoTIFF may
  have any size (pip install 'tinydet[geo]'); videos and streams need tinydet[video]. A run that was interrupted goes on
  with --resume.
"""


@command("infer")
def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    if args.calibrate_skip:
        return _calibrate(args)
    # Before the model: a wrong path is said at once.
    plan = plan_jobs(_sources(args), Wanted(args.output, args.format, args.draw, args.crops), _inputs(args))
    if args.batch < 1:
        raise ValueError(f"--batch holds at least one tile, got {args.batch}")
    if args.resume and any(job.journal is None for job in plan.jobs):
        raise ValueError("--resume goes on from a journal beside the results; a device to write to has none")
    if args.bands is not None and any(job.source.moving for job in plan.jobs):
        raise ValueError("--bands chooses among the bands of a raster; a video has red, green and blue, leave it out")
    # What goes to a device may go to the same place as what is said.
    say = _complain if args.output is not None and is_device(Path(args.output)) else print
    path, backend = _model(args, say)
    settings = _settings(args, path, backend)
    Survey(backend, hash_file(path), settings, say).run(plan)
    return 0


def _complain(line: str) -> None:
    print(line, file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tinydet infer",
        description="Find objects in scenes of any size with an exported model.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument_group("what to look at").add_argument
    add("--image", nargs="+", metavar="SCENE", help="files (JPEG, PNG, TIFF, JP2, ...), folders, patterns, videos, rtsp://"
        " streams, or the number of a webcam")  # fmt: skip
    add("--annotations", type=Path, metavar="FILE", help="COCO file: look at its images, with its ids")
    add("--images", type=Path, metavar="DIR", help="folder of these images (default: images/ beside the file)")
    add("--image-id", type=int, default=1, metavar="ID", help="COCO id of the first scene, then +1 each (default: 1)")
    add("--bands", type=_bands, metavar="R,G,B", help="bands to take, from 1; one for grey (default: those named so)")
    add("--every", type=int, default=1, metavar="N", help="of a video, every N-th frame (default: 1)")
    add("--frames", type=int, metavar="N", help="of a video, stop after N frames (default: at its end, or Ctrl-C)")
    add("--reconnect", type=float, default=30.0, metavar="S", help="seconds to try a broken stream again (default: 30)")
    add = parser.add_argument_group("how").add_argument
    add("--model", type=Path, metavar="FILE", help=f"exported model, or the name of a bundled"
        f" one: {', '.join(BUNDLED)} (default: the first that can run of {MODELS}; where there is neither,"
        f" {DEFAULT})")  # fmt: skip
    add("--backend", choices=BACKENDS, default="auto", help="what runs the model (default: auto, the fastest here)")
    add("--tile", type=_number_or_auto, default="auto", metavar="PX", help="the tile that you expect the model to take"
        " (default: auto, the model's own)")  # fmt: skip
    add("--overlap", type=_number_or_auto, default=OVERLAP, metavar="PX", help="what tiles share, or auto: by the"
        f" largest objects that the model learned (default: {OVERLAP})")  # fmt: skip
    add("--scale", type=_number_or_auto, default=1.0, metavar="F", help="resize the scene first, 0.5 = half; or auto:"
        " by --object-size (default: 1)")  # fmt: skip
    add("--object-size", metavar="SIZE", help="side of a typical object in the scene, as 24 (pixels) or 0.6m (metres)")
    add("--gsd", type=float, metavar="M", help="metres that a pixel covers (default: as the georeference says)")
    add("--score", type=float, default=0.3, metavar="S", help="least score; 0.05 to measure AP (default: 0.3)")
    add("--batch", type=int, default=4, metavar="N", help="tiles for each run of the model (default: 4)")
    add("--threads", type=int, metavar="N", help="CPU threads of the model (default: all that are usable)")
    add("--merge", choices=MERGES, default="seam", help="how boxes of several tiles become one; all but seam are for"
        " comparison (default: seam)")  # fmt: skip
    add("--agnostic", action="store_true", help="boxes of different classes may be one object (default: they may not)")
    add("--readers", type=int, default=READERS, metavar="N", help=f"threads that read a raster (default: {READERS})")
    add("--skip-empty", action="store_true", help="pass over tiles that show nothing as small and sharp as an object,"
        " and in a video those in which nothing moved")  # fmt: skip
    add("--calibrate-skip", action="store_true", help="measure on --annotations what --skip-empty may pass over, write"
        " MODEL.skip.json, and end")  # fmt: skip
    add = parser.add_argument_group("what becomes of it").add_argument
    add("--output", metavar="PATH", help="all scenes in one file, by its suffix: .json (COCO), .geojson, .gpkg, .csv,"
        " .parquet, or .txt (YOLO, one scene); or a folder (its name ends with /) for a file each (default: a file"
        " beside each scene, SCENE.detections.json)")  # fmt: skip
    add("--format", type=_formats, metavar="A,B", help=f"several formats at once, of {','.join(FORMATS)} (default:"
        " that of --output's suffix, or coco)")  # fmt: skip
    add("--draw", metavar="PATH", help="picture, of a video another video (.mp4, .mkv, .mov); of several scenes a"
        " folder (default: SCENE.detections.jpg or .mp4; none of a stream)")  # fmt: skip
    add("--crops", metavar="PATH", help="sheet of what was found, enlarged, from the best to the weakest; of several"
        " scenes a folder (default: none)")  # fmt: skip
    add("--resume", action="store_true", help="go on from a run that was interrupted; what is done stays as it is")
    add("--skip-unreadable", action="store_true", help="go on with the next scene where one is damaged, and say which")
    return parser


def _sources(args: argparse.Namespace) -> list[Source]:
    if (args.image is None) == (args.annotations is None):
        raise ValueError("name what to look at: --image SCENE ..., or the images of a COCO file: --annotations FILE")
    if args.images is not None and args.annotations is None:
        raise ValueError("--images is the folder of the images of --annotations FILE; to look at a folder: --image DIR")
    if args.annotations is not None:
        return coco_sources(args.annotations, args.images)
    return find_sources(args.image, args.image_id)


def _inputs(args: argparse.Namespace) -> list[Path]:
    """What is read beside the scenes: annotations, and models with what lies beside them."""
    models = [Path(name) for name in MODEL_FILES] if args.model is None else [model_path(args.model)]
    found = [] if args.annotations is None else [args.annotations]
    for model in filter(Path.is_file, models):
        found += [model, gate_path(model)]
        if model.suffix == ".engine":
            found.append(model.with_suffix(".json"))
    return found


def _settings(args: argparse.Namespace, path: Path, backend: Backend) -> Settings:
    spec = backend.spec
    gate = Gate.load(gate_path(path)) if args.skip_empty else None
    overlap = choose_overlap(spec) if args.overlap == "auto" else _whole(args.overlap, "--overlap")
    scale = None if args.scale == "auto" else args.scale
    if scale is None and args.object_size is None:
        raise ValueError(
            "--scale auto compares the objects of the scene with those of the training: say how large they are, "
            "--object-size 24 (pixels) or --object-size 0.6m (metres)"
        )
    return Settings(
        overlap,
        args.score,
        min(args.batch, spec.max_batch),
        args.readers,
        scale=scale,
        object_size=args.object_size or "",
        gsd=args.gsd,
        gate=gate,
        bands=args.bands,
        resume=args.resume,
        skip_unreadable=args.skip_unreadable,
        every=args.every,
        frames=args.frames,
        reconnect=args.reconnect,
        merge=args.merge,
        agnostic=args.agnostic,
    )


def _model(args: argparse.Namespace, say: Callable[[str], object] = print) -> tuple[Path, Backend]:
    if args.model is not None:
        path = model_path(args.model)
        if not path.is_file():
            raise FileNotFoundError(
                f"--model {path} does not exist; make one: python export/to_onnx.py model.pth, or take a bundled one: "
                f"{', '.join(BUNDLED)}"
            )
        backend = open_model(path, args.backend, threads=args.threads)
    elif args.backend != "tensorrt" and not any(Path(name).exists() for name in MODEL_FILES):
        say(f"No {MODELS_OR} here; taking the bundled model `{DEFAULT}`: {BUNDLED[DEFAULT]}")
        path = model_path(DEFAULT)
        backend = open_model(path, args.backend, threads=args.threads)
    else:
        choice = choose_model(args.backend, threads=args.threads)
        path, backend = choice.path, choice.backend
        for reason in choice.passed_over:
            say(f"Passed over: {reason}")
    tile = backend.spec.tile if args.tile == "auto" else _whole(args.tile, "--tile")
    if tile != backend.spec.tile:
        again = "to_trt.py" if path.suffix == ".engine" else "to_onnx.py"
        raise ValueError(
            f"{path} takes tiles of {backend.spec.tile}, not {tile}. "
            f"Export it for {tile}: python export/{again} model.pth --tile {tile}"
        )
    say(f"{path}: {backend.spec.detector} {backend.spec.backbone}, {backend.spec.precision}, {backend.name}")
    return path, backend


def _calibrate(args: argparse.Namespace) -> int:
    """Measure what may be skipped, and write it beside the model."""
    if args.annotations is None:
        raise ValueError("--calibrate-skip measures on annotated images: --annotations val.json --images DIR")
    path, backend = _model(args)
    args.skip_empty = False  # it is what is being made
    settings = _settings(args, path, backend)
    if settings.scale is None:
        raise ValueError("--calibrate-skip measures at one scale: name it, --scale 0.5")
    with tqdm(total=len(coco_sources(args.annotations, args.images)), unit="image", disable=None, leave=False) as bar:
        looks = look_at(
            backend.spec,
            args.annotations,
            args.images,
            scale=settings.scale,
            overlap=settings.overlap,
            bands=settings.bands,
            progress=bar.update,
        )
    gate = calibrate(looks, tile=backend.spec.tile, scale=settings.scale)
    gate.save(gate_path(path))
    print(
        f"Tiles whose contrast at {gate.size:.0f} pixels is below {gate.threshold} may be passed over: "
        f"{gate.saving:.1%} of the {gate.tiles} tiles of {args.annotations}.\n"
        f"Those that are run hold {gate.recall:.2%} of its {gate.objects} objects (at least {gate.recall_bound:.2%} "
        "with 95 % confidence, of images like these).\n"
        f"Tiles of a video that change by less than {gate.motion} are not run again: {gate.motion_recall:.2%} of these "
        "objects would change theirs by more where they come.\n"
        f"  {gate_path(path)}, for --skip-empty"
    )
    return 0


def _number_or_auto(text: str) -> Any:
    return text if text == "auto" else float(text)


def _whole(value: float, flag: str) -> int:
    if not math.isfinite(value) or value != int(value):
        raise ValueError(f"{flag} is a whole number of pixels, got {value:g}")
    return int(value)


def _formats(text: str) -> tuple[str, ...]:
    kinds = tuple(dict.fromkeys(text.split(",")))
    if unknown := [kind for kind in kinds if kind not in FORMATS]:
        raise argparse.ArgumentTypeError(f"formats are {', '.join(FORMATS)}, got {unknown[0]!r}")
    return kinds


def _bands(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


if __name__ == "__main__":
    sys.exit(main())
