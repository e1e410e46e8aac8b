"""The command `tinydet infer`: boxes on scenes, with an exported model."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tinydet._command import command
from tinydet.runtime.backends import BACKENDS, MODEL_FILES, Backend, choose_model, open_model
from tinydet.runtime.detections import Detections
from tinydet.runtime.drawing import check_picture_path, draw, save_picture
from tinydet.runtime.pipeline import SceneResult, TilePlan, detect, plan_tiles
from tinydet.runtime.scene import Scene, open_scene
from tinydet.runtime.stitch import EDGE
from tinydet.runtime.writers import write_coco
from tinydet.spec import ModelSpec

MODELS = " and ".join(MODEL_FILES)
EXAMPLE = """example:
  python deploy/infer.py --image scene.jpg --tile 640

  takes model.engine or model.onnx from the current folder, writes scene.detections.json (COCO results) and
  scene.detections.jpg beside the scene; with --output or --draw only what they name. Where objects are twice as large
  as those of the training images, say --scale 0.5. A GeoTIFF may have any size (pip install 'tinydet[geo]').
"""


@dataclass(frozen=True)
class Job:
    """One scene and what becomes of it."""

    image: Path
    image_id: int
    picture: Path | None
    results: Path | None


@command("infer")
def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    jobs = _jobs(args)  # before the model: a wrong path is said at once
    backend = _model(args)
    spec = backend.spec
    found: dict[int, Detections] = {}
    for job in jobs:
        with open_scene(job.image, stretch=spec.stretch) as scene:
            plan = plan_tiles(scene.width, scene.height, tile=spec.tile, overlap=args.overlap, scale=args.scale)
            batch = min(args.batch, spec.max_batch)
            _print_plan(scene, plan, batch, args, spec)
            with tqdm(total=len(plan.grid), unit="tile", disable=None, leave=False) as bar:
                result = detect(
                    backend,
                    scene,
                    overlap=args.overlap,
                    scale=args.scale,
                    score=args.score,
                    batch=batch,
                    progress=bar.update,
                )
            _print_result(result, spec)
            found[job.image_id] = result.detections
            if job.results is not None:
                write_coco(job.results, {job.image_id: result.detections}, spec.category_ids)
                print(f"  {job.results}")
            if job.picture is not None:
                save_picture(job.picture, draw(scene, result.detections, spec.classes))
                print(f"  {job.picture}")
    if args.output is not None:
        write_coco(args.output, found, spec.category_ids)
        print(f"  {args.output}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tinydet infer",
        description="Find objects in scenes of any size with an exported model.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--image", nargs="+", type=Path, required=True, metavar="FILE", help="scenes: JPEG, PNG, TIFF, JP2, WebP, ...")
    add("--tile", type=int, metavar="PX", help="the tile that you expect the model to take (default: the model's own)")
    add("--model", type=Path, metavar="FILE", help=f"exported model (default: the first that can run of {MODELS})")
    add("--backend", choices=BACKENDS, default="auto", help="what runs the model (default: auto, the fastest here)")
    add("--overlap", type=int, default=128, metavar="PX", help="what tiles share; more than an object (default: 128)")
    add("--score", type=float, default=0.3, metavar="S", help="least score; 0.05 to measure AP (default: 0.3)")
    add("--scale", type=float, default=1.0, metavar="F", help="resize the scene first, 0.5 = half (default: 1)")
    add("--batch", type=int, default=4, metavar="N", help="tiles for each run of the model (default: 4)")
    add("--threads", type=int, metavar="N", help="CPU threads of the model (default: all that are usable)")
    add("--output", type=Path, metavar="FILE", help="COCO results of all scenes (default: SCENE.detections.json)")
    add("--draw", type=Path, metavar="FILE", help="picture; of several scenes a folder (default: SCENE.detections.jpg)")
    add("--image-id", type=int, default=1, metavar="ID", help="COCO id of the first scene, then +1 each (default: 1)")
    return parser


def _jobs(args: argparse.Namespace) -> list[Job]:
    """What to do with each scene, once all places to write to are known to be good."""
    images: list[Path] = args.image
    beside = args.output is None and args.draw is None
    several = len(images) > 1
    if args.batch < 1:
        raise ValueError(f"--batch holds at least one tile, got {args.batch}")
    if several and args.draw is not None and not args.draw.is_dir():
        raise ValueError(f"--draw names a folder that exists where there are several scenes, got {args.draw}")
    jobs = []
    for image_id, image in enumerate(images, args.image_id):
        if not image.is_file():
            raise FileNotFoundError(
                f"--image {image} {'is a folder, name files' if image.is_dir() else 'does not exist'}"
            )
        picture, results = args.draw, None
        if args.draw is not None and args.draw.is_dir():
            picture = args.draw / f"{image.stem}.detections.jpg"
        if beside:
            picture, results = (image.with_name(f"{image.stem}.detections{suffix}") for suffix in (".jpg", ".json"))
            if not os.access(image.parent, os.W_OK):
                raise PermissionError(f"cannot write beside {image}; name --output FILE (and --draw FILE)")
        jobs.append(Job(image, image_id, picture, results))
    targets = [path for job in jobs for path in (job.picture, job.results) if path is not None]
    if args.output is not None:
        targets.append(args.output)
    for target in targets:
        if target.is_dir():
            raise IsADirectoryError(f"{target} is a folder; name a file to write")
        if not target.parent.is_dir():
            raise FileNotFoundError(f"{target}: the folder {target.parent} does not exist; create it or name another")
        if target.resolve() in {image.resolve() for image in images}:
            raise ValueError(f"{target} is a scene and would be overwritten; name another --draw or --output")
        if targets.count(target) > 1:
            raise ValueError(f"two scenes would be written to {target}; give scenes of one name one at a time")
    for job in jobs:
        if job.picture is not None:
            check_picture_path(job.picture)
    return jobs


def _model(args: argparse.Namespace) -> Backend:
    if args.model is not None:
        path: Path = args.model
        if not path.is_file():
            raise FileNotFoundError(f"--model {path} does not exist; make one: python export/to_onnx.py model.pth")
        backend = open_model(path, args.backend, threads=args.threads)
    else:
        choice = choose_model(args.backend, threads=args.threads)
        path, backend = choice.path, choice.backend
        for reason in choice.passed_over:
            print(f"Passed over: {reason}")
    if args.tile is not None and args.tile != backend.spec.tile:
        again = "to_trt.py" if path.suffix == ".engine" else "to_onnx.py"
        raise ValueError(
            f"{path} takes tiles of {backend.spec.tile}, not {args.tile}. "
            f"Export it for {args.tile}: python export/{again} model.pth --tile {args.tile}"
        )
    print(f"{path}: {backend.spec.detector} {backend.spec.backbone}, {backend.spec.precision}, {backend.name}")
    return backend


def _print_plan(scene: Scene, plan: TilePlan, batch: int, args: argparse.Namespace, spec: ModelSpec) -> None:
    grid = plan.grid
    scaled = "" if plan.scale == 1 else f" at scale {plan.scale:.4g}"
    print(
        f"{scene.name}: {scene.width}x{scene.height}{scaled}, {grid.columns}x{grid.rows} = {len(grid)} tiles of "
        f"{plan.tile}, overlap {args.overlap}, {-(-len(grid) // batch)} batches of {batch}"
    )
    if args.score < spec.score_floor:
        print(f"  The model itself leaves out what scores below {spec.score_floor}")
    largest = 0.0 if spec.object_sizes is None else spec.object_sizes[2]
    whole = max(args.overlap - 3 * EDGE, 0)
    if largest > whole and len(grid) > 1:
        print(
            f"  The model learned objects of up to {largest:.0f} pixels. Where tiles meet, those above {whole:.0f} are "
            f"joined from parts; to see them whole: --overlap {int(largest + 3 * EDGE) + 1}"
        )


def _print_result(result: SceneResult, spec: ModelSpec) -> None:
    labels = result.detections.labels
    counts = np.bincount(labels, minlength=len(spec.classes)).tolist()
    classes = ", ".join(f"{name} {count}" for name, count in zip(spec.classes, counts, strict=True))
    print(
        f"  {len(labels)} detections ({classes}) in {result.tiles} tiles, {result.seconds:.1f} s, "
        f"{result.tiles / result.seconds:.1f} tiles/s; {result.saturated or 'no'} tiles saturated"
    )
    if result.saturated:
        print(
            f"  A saturated tile has more boxes than the model's {spec.max_detections} slots; the weakest are lost. "
            f"Raise --score, or use smaller tiles: python export/to_onnx.py model.pth --tile {spec.tile // 2}"
        )


if __name__ == "__main__":
    sys.exit(main())
