"""Train, export and evaluate the bundled model, and copy it into the package.

    python benchmarks/bundle.py --data DIR --weights-backbone mobilenet_v2.pth

DIR contains hituav-train/ and hituav-val/ (HIT-UAV, CC BY 4.0, COCO folders). A RetinaNet with MobileNetV2 and S-alpha
is trained to detect persons and cars; the best epoch on the validation set is kept. The checkpoint, with weights in
half precision, and the FP16 ONNX file that passed verification are copied to tinydet/bundled/. The scores of the ONNX
file on the validation set, by class and size, are written to benchmarks/results/bundle.json. Afterwards, measure the
model for its card: python benchmarks/cards.py thermal

Takes about two hours on two cores. An interrupted training is resumed; a finished one is not repeated.

    python benchmarks/bundle.py --data DIR --export-only

exports the bundled checkpoint again, with the same command, and replaces the ONNX file if both find the same objects.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from environment import ROOT, environment

from tinydet._internal.atomic import atomic_path, write_json
from tinydet._internal.command import command
from tinydet.runtime.backends import open_model
from tinydet.runtime.bundled import FOLDER

NAME = "thermal"
CLASSES = ("person", "car")
RECIPE = ["--salpha", "--categories", ",".join(CLASSES), "--preset", "small", "--detector", "retinanet",
          "--epochs", "20", "--decay", "cosine", "--ema", "0.997", "--augment", "scale,photometric",
          "--validate-every", "4"]  # fmt: skip
MAX_BYTES = 12e6  # of one file in the package


@command("benchmarks/bundle.py")
def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    args.work.mkdir(parents=True, exist_ok=True)
    train, val = args.data / "hituav-train", args.data / "hituav-val"
    if args.export_only:
        return export_again(args.work / "stored" / f"{NAME}.pth", val)
    trained, history = args.work / f"{NAME}.pth", args.work / f"{NAME}.json"
    if not finished(history):
        files = ["--data", train, "--val", val, "--weights-backbone", args.weights_backbone]
        outputs = ["--output", trained, "--json", history, "--no-tensorboard", "--threads", args.threads]
        resume = ["--resume"] if trained.with_suffix(".resume.pth").exists() else []
        run("tinydet.train", *RECIPE, *files, *outputs, *resume)
    stored = args.work / "stored" / f"{NAME}.pth"
    store_half(trained, stored)
    graph = export(stored, val)
    scores = {"all": evaluate(graph, val, CLASSES, args.work)}
    scores |= {name: evaluate(graph, val, (name,), args.work) for name in CLASSES}
    FOLDER.mkdir(exist_ok=True)
    for source in (stored, graph):
        if source.stat().st_size >= MAX_BYTES:
            raise ValueError(f"{source} is too large for the package: at most {MAX_BYTES / 1e6:.0f} MB per file")
        with atomic_path(FOLDER / f"{NAME}{source.suffix}") as temporary:
            shutil.copyfile(source, temporary)
    size = sum(path.stat().st_size for path in FOLDER.iterdir())
    result = {"command": "python benchmarks/bundle.py", **environment(), "recipe": RECIPE, "bytes": size,
              "training": json.loads(history.read_text()), "scores": scores}  # fmt: skip
    write_json(args.output, result)
    print(table(scores), f"\nwrote {FOLDER} ({size / 1e6:.1f} MB)\n      {args.output}")
    return 0


def export(checkpoint: Path, val: Path) -> Path:
    """Export a checkpoint, verify it on the validation set, and return the FP16 file."""
    run("tinydet", "export", "onnx", checkpoint, "--precision", "fp16", "--data", val)
    return checkpoint.with_suffix(".fp16.onnx")


def export_again(copy: Path, val: Path) -> int:
    """Export the bundled checkpoint again; replace the bundled file if the detections on validation images agree."""
    from tinydet.export.parity import compare
    from tinydet.export.verify import middle_tile, run_in_batches

    before = FOLDER / f"{NAME}.onnx"
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(before.with_suffix(".pth"), copy)
    after = export(copy, val)
    ours, theirs = open_model(after, "onnx-cpu"), open_model(before, "onnx-cpu")
    images = sorted((val / "images").iterdir())[::4]
    tiles = np.stack([middle_tile(path, ours.spec) for path in images])
    found = compare(run_in_batches(theirs, tiles, 1), run_in_batches(ours, tiles, 1), ours.spec.score_floor)
    sizes = before.stat().st_size, after.stat().st_size
    print(
        f"{found.detections} detections on {len(images)} images, {found.unmatched} unmatched; largest difference: "
        f"score {found.score_difference:.1e}, box {found.box_difference:.1e} px; {sizes[0]} -> {sizes[1]} bytes"
    )
    if found.unmatched:
        raise ValueError(f"{after} does not find what {before} finds; {before} was kept")
    with atomic_path(before) as temporary:
        shutil.copyfile(after, temporary)
    return 0


def finished(history: Path) -> bool:
    """Return whether a training has finished. A training that diverged also writes a history."""
    return history.exists() and json.loads(history.read_text())["diverged"] is None


def store_half(trained: Path, stored: Path) -> None:
    """Write a copy of a checkpoint with float16 weights and without paths; loading it converts them to float32."""
    import torch

    from tinydet.models.checkpoint import load_checkpoint, save_checkpoint

    checkpoint = load_checkpoint(trained)
    weights = {name: w.half() if w.dtype == torch.float32 else w for name, w in checkpoint.weights.items()}
    weights["fpn.alpha"] = checkpoint.weights["fpn.alpha"]  # at full precision
    config = {key: value for key, value in checkpoint.config.items() if "/" not in str(value)}
    stored.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(replace(checkpoint, weights=weights, config=config), stored)


def evaluate(model: Path, data: Path, classes: tuple[str, ...], work: Path) -> dict[str, Any]:
    """Evaluate a model with the protocol `coco`; return AP and AR by size."""
    scores = work / f"{'-'.join(classes)}.scores.json"
    run("tinydet", "evaluate", "--model", model, "--data", data, "--protocol", "coco", "--categories",
        ",".join(classes), "--json", scores)  # fmt: skip
    found: dict[str, Any] = json.loads(scores.read_text())
    return {key: found[key] for key in ("AP", "AR")}


def table(scores: dict[str, Any]) -> str:
    """Format AP as Markdown: by class and size at IoU 0.5, over all sizes at IoU 0.25 and 0.75."""
    sizes = [size for size, ap in scores["all"]["AP"].items() if ap["0.50"] >= 0]
    lines = [f"| class | {' | '.join(f'AP50 {size}' for size in sizes)} | AP25 all | AP75 all |"]
    lines.append("| --- |" + " --- |" * (len(sizes) + 2))
    for name, score in scores.items():
        values = [score["AP"][size]["0.50"] for size in sizes] + [score["AP"]["all"][iou] for iou in ("0.25", "0.75")]
        lines.append(f"| {name} | {' | '.join('' if v < 0 else f'{v:.3f}' for v in values)} |")
    return "\n".join(lines)


def run(module: str, *options: object) -> None:
    done = subprocess.run([sys.executable, "-m", module, *map(str, options)], cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"python -m {module} {options[0]} failed; its message is above")


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, default=ROOT.parent / "shared" / "data", metavar="DIR",
        help="folder of hituav-train and hituav-val (default: ../shared/data)")  # fmt: skip
    add(
        "--weights-backbone",
        default="default",
        metavar="default|FILE",
        help="ImageNet weights of MobileNetV2, or default to download them (default: default)",
    )
    add("--export-only", action="store_true", help="export the bundled checkpoint again, without training")
    add("--threads", type=int, default=os.cpu_count(), help="CPU threads of the training (default: all cores)")
    add("--work", type=Path, default=ROOT / "runs" / "bundled", metavar="DIR",
        help="folder of models and logs (default: runs/bundled)")  # fmt: skip
    add("--output", type=Path, default=ROOT / "benchmarks" / "results" / "bundle.json", metavar="FILE",
        help="result file (default: benchmarks/results/bundle.json)")  # fmt: skip
    args = parser.parse_args(argv)
    args.data, args.work = args.data.resolve(), args.work.resolve()
    for name in ("hituav-train", "hituav-val"):
        if not (args.data / name).is_dir():
            parser.error(f"{args.data / name} does not exist; --data must contain hituav-train and hituav-val")
    return args


if __name__ == "__main__":
    sys.exit(main())
