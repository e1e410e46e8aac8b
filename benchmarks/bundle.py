"""The bundled model: trained, exported, measured, and laid into the package.

    python benchmarks/bundle.py --data DIR --weights-backbone mobilenet_v2.pth

DIR holds hituav-train/ and hituav-val/ (HIT-UAV, CC BY 4.0, COCO folders). A RetinaNet-MobileNetV2 with S-alpha learns
persons and cars; the validation set chooses among its epochs. tinydet/bundled/ gets the checkpoint, its weights stored
in half precision, and the FP16 graph that passed the parity gate; benchmarks/results/bundle.json gets the scores of
that graph on the validation set, by class and size. An interrupted training is resumed, a finished one is not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from environment import ROOT, environment

from tinydet._internal.atomic import atomic_path, write_json
from tinydet.runtime.bundled import FOLDER

NAME = "thermal"
CLASSES = ("person", "car")
RECIPE = ["--salpha", "--categories", ",".join(CLASSES), "--preset", "small", "--epochs", "20", "--decay", "cosine",
          "--ema", "0.997", "--augment", "scale,photometric", "--validate-every", "4"]  # fmt: skip
LARGEST = 12e6  # bytes of a file


def main() -> int:
    args = arguments()
    args.work.mkdir(parents=True, exist_ok=True)
    train, val = args.data / "hituav-train", args.data / "hituav-val"
    trained, history = args.work / f"{NAME}.pth", args.work / f"{NAME}.json"
    if not finished(history):
        files = ["--data", train, "--val", val, "--weights-backbone", args.weights_backbone]
        outputs = ["--output", trained, "--json", history, "--no-tensorboard", "--threads", args.threads]
        resume = ["--resume"] if trained.with_suffix(".resume.pth").exists() else []
        run("tinydet.train", *RECIPE, *files, *outputs, *resume)
    stored = args.work / "stored" / f"{NAME}.pth"
    store_half(trained, stored)
    run("tinydet", "export", "onnx", stored, "--precision", "fp16", "--data", val)
    graph = stored.with_suffix(".fp16.onnx")
    scores = {"all": evaluate(graph, val, CLASSES, args.work)}
    scores |= {name: evaluate(graph, val, (name,), args.work) for name in CLASSES}
    FOLDER.mkdir(exist_ok=True)
    for source in (stored, graph):
        assert source.stat().st_size < LARGEST, f"{source} is larger than {LARGEST / 1e6:.0f} MB"
        with atomic_path(FOLDER / f"{NAME}{source.suffix}") as temporary:
            shutil.copyfile(source, temporary)
    size = sum(path.stat().st_size for path in FOLDER.iterdir())
    result = {"command": "python benchmarks/bundle.py", **environment(), "recipe": RECIPE, "bytes": size,
              "training": json.loads(history.read_text()), "scores": scores}  # fmt: skip
    write_json(args.output, result)
    print(table(scores), f"\n{size / 1e6:.1f} MB in {FOLDER}\nwrote {args.output}")
    return 0


def finished(history: Path) -> bool:
    """Whether a training came to its end; what diverged wrote a record too."""
    return history.exists() and json.loads(history.read_text())["diverged"] is None


def store_half(trained: Path, stored: Path) -> None:
    """A copy of a checkpoint with weights of float16, which names no files; loading makes float32 of them again."""
    import torch

    from tinydet.models.checkpoint import load_checkpoint, save_checkpoint

    checkpoint = load_checkpoint(trained)
    weights = {name: w.half() if w.dtype == torch.float32 else w for name, w in checkpoint.weights.items()}
    weights["fpn.alpha"] = checkpoint.weights["fpn.alpha"]  # as it was counted
    config = {key: value for key, value in checkpoint.config.items() if "/" not in str(value)}
    stored.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(replace(checkpoint, weights=weights, config=config), stored)


def evaluate(model: Path, data: Path, classes: tuple[str, ...], work: Path) -> dict[str, Any]:
    """AP and AR by size, protocol coco."""
    scores = work / f"{'-'.join(classes)}.scores.json"
    run("tinydet", "evaluate", "--model", model, "--data", data, "--protocol", "coco", "--categories",
        ",".join(classes), "--json", scores)  # fmt: skip
    found: dict[str, Any] = json.loads(scores.read_text())
    return {key: found[key] for key in ("AP", "AR")}


def table(scores: dict[str, Any]) -> str:
    """Markdown: AP by class and size at an IoU of 0.5, and of all sizes at the others."""
    sizes = [size for size, ap in scores["all"]["AP"].items() if ap["0.50"] >= 0]
    lines = [f"| class | {' | '.join(f'AP50 {size}' for size in sizes)} | AP25 all | AP75 all |"]
    lines.append("| --- |" + " --- |" * (len(sizes) + 2))
    for name, score in scores.items():
        values = [score["AP"][size]["0.50"] for size in sizes] + [score["AP"]["all"][iou] for iou in ("0.25", "0.75")]
        lines.append(f"| {name} | {' | '.join('' if v < 0 else f'{v:.3f}' for v in values)} |")
    return "\n".join(lines)


def run(module: str, *words: object) -> None:
    done = subprocess.run([sys.executable, "-m", module, *map(str, words)], cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"{module} {words[0]} failed, see above")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, default=ROOT.parent / "shared" / "data", metavar="DIR", help="default: ../shared/data")
    add("--weights-backbone", default="default", metavar="default|FILE", help="ImageNet weights of MobileNetV2")
    add("--threads", type=int, default=os.cpu_count(), help="of the training (default: all)")
    add("--work", type=Path, default=ROOT / "runs" / "bundled", metavar="DIR", help="default: runs/bundled")
    add("--output", type=Path, default=ROOT / "benchmarks" / "results" / "bundle.json", metavar="FILE",
        help="default: benchmarks/results/bundle.json")  # fmt: skip
    args = parser.parse_args()
    args.data, args.work = args.data.resolve(), args.work.resolve()
    return args


if __name__ == "__main__":
    sys.exit(main())
