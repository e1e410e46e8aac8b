"""Choose a recipe for the bundled model by cross-validation over flight dates, then train it on all frames.

    python benchmarks/thermal_model.py crossval --recipes current,thermal --epochs 12 --hours 6
    python benchmarks/thermal_model.py final --recipe thermal --epochs 40 --hours 12

DIR (--data) contains hituav-train/ and hituav-val/ (HIT-UAV, CC BY 4.0, COCO folders). Both are joined to one dataset
of 500 frames from six dates. `crossval` trains each recipe once per date without its frames, and writes AP50 by class
and size for each date. `final` trains a recipe on all frames, exports it to FP16, and copies checkpoint and graph into
tinydet/bundled/; its accuracy on another flight is what the cross-validation of its recipe measured.

Both stop after --hours of wall time, with all work saved, and the same command continues. On N cores that is at most
N times as many CPU hours; the CPU time used is recorded. Options of `tinydet train` that this program does not know,
such as --detector fcos, are added to every recipe.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bundle import CLASSES, MAX_BYTES, NAME, finished, run, store_half
from environment import ROOT, environment

from tinydet._internal.atomic import atomic_path, write_json
from tinydet._internal.command import command
from tinydet.runtime.bundled import FOLDER

FRAMES = ("hituav-train", "hituav-val")
DATES = 6
GROUP_BY = "date_captured"
MODEL = ("--preset", "small", "--detector", "retinanet")
COMMON = ("--salpha", "--categories", ",".join(CLASSES), *MODEL, "--decay", "cosine", "--ema", "0.997")
RECIPES = {
    "current": ("--augment", "scale,photometric"),  # that of the model bundled so far
    "strong": ("--augment", "strong"),
    "thermal": ("--augment", "thermal"),
    "scales": ("--augment", "strong", "--scales", "1,2"),
}
STOP_SECONDS = 120  # for a training to save its state after the time is up


@command("benchmarks/thermal_model.py")
def main(argv: Sequence[str] | None = None) -> int:
    args, extra = arguments(argv)
    until = time.monotonic() + 3600 * args.hours
    args.work.mkdir(parents=True, exist_ok=True)
    data = join_frames([args.data / name for name in FRAMES], args.work / "hituav")
    common = [*COMMON, "--weights-backbone", args.weights_backbone, "--epochs", args.epochs, *extra]
    if args.stage == "crossval":
        return crossval(args, data, common, until)
    return final(args, data, common, until)


def crossval(args: argparse.Namespace, data: Path, common: Sequence[object], until: float) -> int:
    """Cross-validate the recipes one after another; evaluate each when it is complete."""
    results: dict[str, Any] = json.loads(args.output.read_text()) if args.output.exists() else {}
    for name in args.recipes:
        flags = list(map(str, [*common, *RECIPES[name]]))
        folder = args.work / f"crossval-{name}"
        # The last epoch alone is scored, so no other is validated.
        complete = run_until(
            until, "tinydet", "crossval", data, "--folds", DATES, "--group-by", GROUP_BY, "--jobs", args.jobs,
            "--output", folder, *flags, "--validate-every", args.epochs
        )  # fmt: skip
        if not complete:
            return 130
        held_out = json.loads((folder / "crossval.json").read_text())["held_out"]
        dates = {held_out[fold]: evaluate_fold(model, folder) for fold, model in models_of(folder)}
        results[name] = {"flags": flags, "dates": dates, "cpu_hours": cpu_hours(), **environment()}
        write_json(args.output, results)
        print(f"{name}\n{table(dates)}\nwrote {args.output}", flush=True)
    return 0


def final(args: argparse.Namespace, data: Path, common: Sequence[object], until: float) -> int:
    """Train the recipe on all frames; export, verify and bundle the last weights."""
    trained, history = args.work / f"{NAME}.pth", args.work / f"{NAME}.json"
    if not finished(history):
        resume = ["--resume"] if trained.with_suffix(".resume.pth").exists() else []
        complete = run_until(
            until, "tinydet", "train", data, *common, *RECIPES[args.recipe], "--output", trained, "--json", history,
            "--no-tensorboard", "--threads", args.jobs, *resume
        )  # fmt: skip
        if not complete:
            return 130
    stored = args.work / "stored" / f"{NAME}.pth"
    store_half(trained, stored)
    run("tinydet", "export", "onnx", stored, "--precision", "fp16", "--data", data)  # verified on frames
    for source in (stored, stored.with_suffix(".fp16.onnx")):
        if source.stat().st_size >= MAX_BYTES:
            raise ValueError(f"{source} is too large for the package: at most {MAX_BYTES / 1e6:.0f} MB per file")
        bundled = args.bundle / f"{NAME}{source.suffix}"
        with atomic_path(bundled) as temporary:
            shutil.copyfile(source, temporary)
        print(f"wrote {bundled} ({source.stat().st_size / 1e6:.1f} MB)")
    return 0


def join_frames(folders: Sequence[Path], output: Path) -> Path:
    """Write one COCO folder with the images of several, which must have the same categories; images are links."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    rest: dict[str, Any] = {}
    (output / "images").mkdir(parents=True, exist_ok=True)
    for folder in folders:
        document = json.loads((folder / "annotations.json").read_text())
        if rest and document["categories"] != rest["categories"]:
            raise ValueError(f"{folder} has other categories than {folders[0]}")
        rest = rest or {key: value for key, value in document.items() if key not in ("images", "annotations")}
        ids = {image["id"]: len(images) + n for n, image in enumerate(document["images"], 1)}
        for image in document["images"]:
            link = output / "images" / image["file_name"]
            if not link.exists():
                link.symlink_to((folder / "images" / image["file_name"]).resolve())
            images.append({**image, "id": ids[image["id"]]})
        for entry in document["annotations"]:
            annotations.append({**entry, "id": len(annotations) + 1, "image_id": ids[entry["image_id"]]})
    write_json(output / "annotations.json", {**rest, "images": images, "annotations": annotations})
    return output


def models_of(folder: Path) -> list[tuple[str, Path]]:
    """Return the folds of a cross-validation with their models."""
    from tinydet.models.checkpoint import load_checkpoint

    found = []
    for model in sorted((folder / "runs").glob("*.pth")):
        if not model.name.endswith(".resume.pth"):
            number, count = load_checkpoint(model).config["val_data"]["part"]["fold"]
            found.append((f"{number}/{count}", model))
    return sorted(found)


def evaluate_fold(model: Path, folder: Path) -> dict[str, dict[str, float]]:
    """Evaluate the model of a fold on the frames that it was not trained on; return AP50 by class and size."""
    scores = folder / f"{model.stem}.scores.json"
    if not scores.exists():
        run("tinydet", "evaluate", "--model", model, "--protocol", "coco", "--json", scores)
    classes = json.loads(scores.read_text())["classes"]
    return {
        each["name"]: {
            size: ap["0.50"] for size, ap in each["AP"].items() if ap["0.50"] is not None and ap["0.50"] >= 0
        }
        for each in classes
    }


def table(dates: dict[str, dict[str, dict[str, float]]]) -> str:
    """Format AP50 as Markdown: a row per date and class, a column per size; then the mean over the dates."""
    sizes = list(dict.fromkeys(size for scores in dates.values() for ap in scores.values() for size in ap))
    lines = [f"| date | class | {' | '.join(sizes)} |", "| --- | --- |" + " --: |" * len(sizes)]
    for date, scores in sorted(dates.items()):
        for name, ap in scores.items():
            lines.append(f"| {date} | {name} | {' | '.join(_cell(ap.get(size)) for size in sizes)} |")
    for name in CLASSES:
        means = [_mean(scores.get(name, {}).get(size) for scores in dates.values()) for size in sizes]
        lines.append(f"| mean | {name} | {' | '.join(map(_cell, means))} |")
    return "\n".join(lines)


def run_until(until: float, *words: object) -> bool:
    """Run a command of tinydet; return False if the time was up or Ctrl-C was pressed, with its state saved."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shell scripts start `command &` with SIGINT ignored
    with subprocess.Popen([sys.executable, "-m", *map(str, words)], cwd=ROOT) as process:
        try:
            code = process.wait(timeout=max(until - time.monotonic(), 1))
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            process.send_signal(signal.SIGINT)
            code = process.wait(timeout=STOP_SECONDS)
    if code not in (0, 130):
        raise SystemExit(f"{' '.join(map(str, words[:2]))} failed; its message is above")
    if code == 130:
        print(f"Stopped after {cpu_hours():.2f} CPU hours. The same command continues.", flush=True)
    return code == 0


def cpu_hours() -> float:
    """CPU time of the commands that this process has run, in hours."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return round((usage.ru_utime + usage.ru_stime) / 3600, 2)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def arguments(argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("stage", choices=("crossval", "final"))
    add("--recipes", type=lambda text: text.split(","), default=list(RECIPES), metavar="A,B",
        help=f"recipes to cross-validate (default: {','.join(RECIPES)})")  # fmt: skip
    add("--recipe", choices=tuple(RECIPES), default="thermal", help="recipe of the final training (default: thermal)")
    add("--epochs", type=int, default=12, metavar="N", help="epochs of each training (default: 12)")
    add("--hours", type=float, default=6.0, metavar="H", help="stop after H hours of wall time (default: 6)")
    add("--data", type=Path, default=ROOT.parent / "shared" / "data", metavar="DIR",
        help="folder of hituav-train and hituav-val (default: ../shared/data)")  # fmt: skip
    add("--weights-backbone", default="default", metavar="default|FILE",
        help="ImageNet weights of MobileNetV2, or default to download them (default: default)")  # fmt: skip
    add("--jobs", type=int, default=os.cpu_count(), metavar="N",
        help="trainings at a time, of one thread each, and threads of the final one (default: all cores)")  # fmt: skip
    add("--work", type=Path, default=ROOT / "runs" / "thermal-model", metavar="DIR",
        help="folder of data, models and logs (default: runs/thermal-model)")  # fmt: skip
    add("--bundle", type=Path, default=FOLDER, metavar="DIR",
        help="existing folder that final writes the model to (default: tinydet/bundled)")  # fmt: skip
    add("--output", type=Path, default=ROOT / "benchmarks" / "results" / "thermal_model.json", metavar="FILE",
        help="result file of crossval (default: benchmarks/results/thermal_model.json)")  # fmt: skip
    args, extra = parser.parse_known_args(argv)
    args.data, args.work, args.output = (path.resolve() for path in (args.data, args.work, args.output))
    if args.weights_backbone != "default":
        args.weights_backbone = Path(args.weights_backbone).resolve()
    for name in FRAMES:
        if not (args.data / name).is_dir():
            parser.error(f"{args.data / name} does not exist; --data must contain {' and '.join(FRAMES)}")
    if unknown := [name for name in args.recipes if name not in RECIPES]:
        parser.error(f"--recipes: unknown recipe {unknown[0]!r}; choose from {', '.join(RECIPES)}")
    return args, extra


if __name__ == "__main__":
    sys.exit(main())
