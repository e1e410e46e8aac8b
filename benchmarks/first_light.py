"""Train, evaluate, export and run detectors on real images: thermal drone frames and one large photo.

    python benchmarks/first_light.py --data DIR --weights-backbone mobilenet_v2.pth

DIR contains hituav-train/, hituav-val/ and bigscene-plaza/ (COCO folders). Three detectors are trained with
`--preset small`: persons with S-alpha, persons with alpha = 1, and all four classes with S-alpha. Each is evaluated on
hituav-val with the protocol `coco`. The first is exported and run on the photo of the plaza at half size, where persons
have about 15 pixels. The photo shows visible light, so its scores include the change of domain.

Takes about three and a half hours on two cores. Finished runs are kept in --work and not repeated; an interrupted
one is resumed.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from environment import ROOT, environment

from tinydet._internal.arguments import positive_int
from tinydet._internal.atomic import write_json
from tinydet._internal.command import command

RUNS = {
    "person-salpha": ["--salpha", "--categories", "person"],
    "person-alpha1": ["--alpha", "1", "--categories", "person"],
    "four-classes-salpha": ["--salpha", "--categories", "person,car,bicycle,other_vehicle"],
}


@command("benchmarks/first_light.py")
def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    args.work.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"command": "python benchmarks/first_light.py", **environment()}
    threads = max(1, result["machine"]["cores"] // args.jobs)
    result["threads_per_training"] = threads
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        trainings = {name: pool.submit(train, name, flags, threads, args) for name, flags in RUNS.items()}
        result["trainings"] = {name: future.result() for name, future in trainings.items()}
    for name, training in result["trainings"].items():
        model, scores = args.work / f"{name}.pth", args.work / f"{name}.scores.json"
        training["val"] = evaluate(model, args.data / "hituav-val", scores, RUNS[name][-2:])  # --categories
    result["plaza"] = plaza(args)
    write_json(args.output, result)
    print(table(result), f"\nwrote {args.output}")
    return 0


def train(name: str, flags: list[str], threads: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train one detector, or resume its training; return its flags, fusion factors and history."""
    model, log = args.work / f"{name}.pth", args.work / f"{name}.log"
    command = [
        *(sys.executable, "-u", "-m", "tinydet.train", *flags, "--preset", "small", "--detector", "retinanet"),
        *("--data", str(args.data / "hituav-train"), "--val", str(args.data / "hituav-val")),
        *("--weights-backbone", str(args.weights_backbone), "--validate-every", str(args.validate_every)),
        *("--epochs", str(args.epochs)),
        *("--threads", str(threads), "--output", str(model), "--logdir", str(args.work / "runs")),
    ]
    unfinished = model.with_suffix(".resume.pth").exists()
    if unfinished or not model.exists():
        with log.open("a") as out:
            done = subprocess.run([*command, *(["--resume"] if unfinished else [])], cwd=ROOT, stdout=out, stderr=out)
        if done.returncode:
            raise SystemExit(f"the training {name} failed; its messages are in {log}")
    checkpoint = json.loads(checkpoint_summary(model))
    return {"flags": flags, **checkpoint}


def checkpoint_summary(model: Path) -> str:
    from tinydet.models.checkpoint import load_checkpoint

    loaded = load_checkpoint(model)
    config = {k: v for k, v in loaded.config.items() if k not in ("train_data", "val_data", "weights_backbone")}
    return json.dumps({"alpha": loaded.alpha, "alpha_source": loaded.alpha_source, "config": config,
                       "chosen_at": loaded.progress})  # fmt: skip


def evaluate(model: Path, data: Path, output: Path, flags: list[str]) -> dict[str, Any]:
    started = time.perf_counter()
    run(
        "-m",
        "tinydet.evaluate",
        "--model",
        str(model),
        "--data",
        str(data),
        "--protocol",
        "coco",
        "--json",
        str(output),
        *flags,
    )
    scores = json.loads(output.read_text())
    return {"AP": scores["AP"], "AR": scores["AR"], "seconds": round(time.perf_counter() - started, 1)}


def plaza(args: argparse.Namespace) -> dict[str, Any]:
    """Export the person detector, run it on the photo at half size, and evaluate it on the annotated persons."""
    photo = args.data / "bigscene-plaza" / "images" / "minsk_plaza_DJI_0010.jpg"
    truth = json.loads((args.data / "bigscene-plaza" / "annotations.json").read_text())
    image = next(i for i in truth["images"] if i["file_name"] == photo.name)
    person = next(c for c in truth["categories"] if c["name"] == "person")
    persons = [a for a in truth["annotations"] if a["image_id"] == image["id"] and a["category_id"] == person["id"]]
    gt, onnx = args.work / "plaza-truth.json", args.work / "person-salpha.onnx"
    write_json(gt, {"images": [image], "annotations": persons, "categories": [person]})
    run("export/to_onnx.py", str(args.work / "person-salpha.pth"), "--output", str(onnx))

    def infer(score: float) -> tuple[Path, list[str]]:
        output = args.work / f"plaza-{score}.json"
        lines = run(
            *("deploy/infer.py", "--image", str(photo), "--model", str(onnx), "--tile", "640", "--scale", "0.5"),
            *("--score", str(score), "--output", str(output), "--draw", str(output.with_suffix(".jpg"))),
        )
        return output, [line.strip() for line in lines if "detections" in line and "tiles" in line]

    confident, report = infer(0.3)
    everything, _ = infer(0.05)
    scores = args.work / "plaza-scores.json"
    files = ("--gt", str(gt), "--detections", str(everything), "--json", str(scores))
    run("-m", "tinydet.evaluate", *files, "--protocol", "coco")
    ap = json.loads(scores.read_text())["AP"]["all"]
    found = len(json.loads(confident.read_text())["annotations"])
    return {"scale": 0.5, "persons": len(persons), "detections": found, "score": 0.3, "AP": ap, "said": report}


def run(*command: str) -> list[str]:
    """Run a command of the package and return the lines that it prints."""
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return [line.replace(str(ROOT), ".") for line in done.stdout.splitlines()]


def table(result: dict[str, Any]) -> str:
    """Format the scores of the training runs as Markdown, followed by those of the photo."""
    ranges = ("all", "tiny", "tiny1", "tiny2", "tiny3", "small")
    rows = [
        "| training | alpha | " + " | ".join(f"AP50 {name}" for name in ranges) + " | AP25 all | minutes |",
        "| --- | --- |" + " --- |" * (len(ranges) + 2),
    ]
    for name, training in result["trainings"].items():
        ap = training["val"]["AP"]
        values = [ap[size]["0.50"] for size in ranges] + [ap["all"]["0.25"]]
        alpha = ", ".join(f"{a:.3f}" for a in training["alpha"])
        minutes = training["chosen_at"]["seconds"] / 60
        rows.append(f"| {name} | {alpha} | " + " | ".join(f"{v:.3f}" for v in values) + f" | {minutes:.0f} |")
    found = result["plaza"]
    rows.append(
        f"\nplaza at half size: {found['persons']} persons, {found['detections']} detections (score 0.3 or more),"
    )
    rows.append(f"AP50 {found['AP']['0.50']:.3f}, AP25 {found['AP']['0.25']:.3f}")
    return "\n".join(rows)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data",
                        help="folder of the datasets (default: ../shared/data)")  # fmt: skip
    parser.add_argument(
        "--weights-backbone",
        type=Path,
        help="ImageNet weights of MobileNetV2 (default: DATA/weights/mobilenet_v2-b0353104.pth)",
    )
    parser.add_argument("--epochs", type=positive_int, default=12, help="epochs of each training (default: 12)")
    parser.add_argument(
        "--validate-every", type=positive_int, default=2, help="epochs between validations (default: 2)"
    )
    parser.add_argument(
        "--jobs", type=positive_int, default=2, help="training runs at a time, sharing the CPU cores (default: 2)"
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=ROOT / "runs" / "first_light",
        help="folder of models and logs (default: runs/first_light)",
    )
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "first_light.json",
                        help="result file (default: benchmarks/results/first_light.json)")  # fmt: skip
    args = parser.parse_args(argv)
    args.data, args.work = args.data.resolve(), args.work.resolve()
    args.weights_backbone = (args.weights_backbone or args.data / "weights" / "mobilenet_v2-b0353104.pth").resolve()
    for path in (
        args.data / "hituav-train",
        args.data / "hituav-val",
        args.data / "bigscene-plaza",
        args.weights_backbone,
    ):
        if not path.exists():
            parser.error(f"{path} does not exist; --data must contain hituav-train, hituav-val and bigscene-plaza")
    return args


if __name__ == "__main__":
    sys.exit(main())
