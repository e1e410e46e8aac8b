"""The whole way on real images: three trainings on thermal drone frames, their scores, and one large photo.

    python benchmarks/first_light.py --data DIR --weights-backbone mobilenet_v2.pth

DIR holds hituav-train/, hituav-val/ and bigscene-plaza/ (COCO folders). Three detectors are trained with
`--preset small`: person with S-alpha, person with alpha = 1, all four classes with S-alpha. Each is scored on
hituav-val with the `coco` protocol. The first is exported and run over the plaza photo at half size, where persons
are about 15 pixels; the domain is another one (visible light), and the scores say what that costs.

Finished trainings are kept in --work and not repeated; an interrupted one is resumed.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from environment import ROOT, environment

from tinydet._atomic import write_json

RUNS = {
    "person-salpha": ["--salpha", "--categories", "person"],
    "person-alpha1": ["--alpha", "1", "--categories", "person"],
    "four-classes-salpha": ["--salpha", "--categories", "person,car,bicycle,other_vehicle"],
}


def main() -> int:
    args = arguments()
    args.work.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"command": "python benchmarks/first_light.py", **environment()}
    threads = max(1, result["machine"]["cores"] // args.jobs)
    result["threads_per_training"] = threads
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        trainings = {name: pool.submit(train, name, flags, threads, args) for name, flags in RUNS.items()}
        result["trainings"] = {name: future.result() for name, future in trainings.items()}
    for name, training in result["trainings"].items():
        training["val"] = evaluate(args.work / f"{name}.pth", args.data / "hituav-val", args.work / f"{name}.json", [])
    result["plaza"] = plaza(args)
    write_json(args.output, result)
    print(table(result), f"\nwrote {args.output}")
    return 0


def train(name: str, flags: list[str], threads: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train one detector, or go on with it, and say how it went."""
    model, log = args.work / f"{name}.pth", args.work / f"{name}.log"
    command = [
        *(sys.executable, "-u", "-m", "tinydet.train", *flags, "--preset", "small", "--epochs", str(args.epochs)),
        *("--data", str(args.data / "hituav-train"), "--val", str(args.data / "hituav-val")),
        *("--weights-backbone", str(args.weights_backbone), "--validate-every", str(args.validate_every)),
        *("--threads", str(threads), "--output", str(model), "--logdir", str(args.work / "runs")),
    ]
    unfinished = model.with_suffix(".resume.pth").exists()
    if unfinished or not model.exists():
        with log.open("a") as out:
            done = subprocess.run([*command, *(["--resume"] if unfinished else [])], cwd=ROOT, stdout=out, stderr=out)
        if done.returncode:
            raise SystemExit(f"training {name} failed, see {log}")
    checkpoint = json.loads(checkpoint_summary(model))
    return {"flags": flags, **checkpoint}


def checkpoint_summary(model: Path) -> str:
    from tinydet.checkpoint import load_checkpoint

    loaded = load_checkpoint(model)
    config = {
        k: v
        for k, v in loaded.config.items()
        if k not in ("annotations", "images", "val_annotations", "val_images", "weights_backbone")
    }
    return json.dumps({"alpha": loaded.alpha, "alpha_source": loaded.alpha_source, "config": config,
                       "chosen_at": loaded.progress})  # fmt: skip


def evaluate(model: Path, data: Path, output: Path, flags: list[str]) -> dict[str, Any]:
    begun = time.perf_counter()
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
    return {"AP": scores["AP"], "AR": scores["AR"], "seconds": round(time.perf_counter() - begun, 1)}


def plaza(args: argparse.Namespace) -> dict[str, Any]:
    """Export the person detector and run it over the photo at half size."""
    scene = args.data / "bigscene-plaza" / "images" / "minsk_plaza_DJI_0010.jpg"
    model, onnx = args.work / "person-salpha.pth", args.work / "person-salpha.onnx"
    exported = run("export/to_onnx.py", str(model), "--output", str(onnx))
    found = args.work / "plaza.json"
    said = run("deploy/infer.py", "--image", str(scene), "--model", str(onnx), "--tile", "640", "--scale", "0.5",
               "--output", str(found), "--draw", str(args.work / "plaza.jpg"))  # fmt: skip
    truth = json.loads((args.data / "bigscene-plaza" / "annotations.json").read_text())
    image = next(i for i in truth["images"] if i["file_name"] == scene.name)
    person = next(c["id"] for c in truth["categories"] if c["name"] == "person")
    persons = sum(a["image_id"] == image["id"] and a["category_id"] == person for a in truth["annotations"])
    alone = {
        **truth,
        "images": [image],
        "annotations": [a for a in truth["annotations"] if a["image_id"] == image["id"]],
    }
    write_json(args.work / "plaza-truth.json", alone)
    everything, scores = args.work / "plaza-all.json", args.work / "plaza-scores.json"
    run("deploy/infer.py", "--image", str(scene), "--model", str(onnx), "--tile", "640", "--scale", "0.5", "--score", "0.05",
        "--output", str(everything), "--draw", str(args.work / "plaza-all.jpg"))  # fmt: skip
    detections = [{**d, "category_id": person, "image_id": image["id"]} for d in json.loads(everything.read_text())]
    write_json(everything, detections)
    run("-m", "tinydet.evaluate", "--gt", str(args.work / "plaza-truth.json"), "--detections", str(everything),
        "--categories", "person", "--protocol", "coco", "--json", str(scores))  # fmt: skip
    ap = json.loads(scores.read_text())["AP"]["all"]
    return {"scale": 0.5, "persons": persons, "detections_at_0.3": len(json.loads(found.read_text())),
            "AP_persons": ap, "export": exported[-8:], "inference": said[-6:]}  # fmt: skip


def run(*command: str) -> list[str]:
    """Run a command of the package; returns the lines that it printed."""
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return [line.replace(str(ROOT), ".") for line in done.stdout.splitlines()]


def table(result: dict[str, Any]) -> str:
    rows = ["| training | alpha | AP50 all | AP50 tiny | AP50 tiny1 | AP50 tiny2 | AP50 tiny3 | AP50 small | AP25 all | minutes |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"]  # fmt: skip
    for name, t in result["trainings"].items():
        ap = t["val"]["AP"]
        values = [ap[r]["0.50"] for r in ("all", "tiny", "tiny1", "tiny2", "tiny3", "small")] + [ap["all"]["0.25"]]
        alpha = ", ".join(f"{a:.3f}" for a in t["alpha"])
        rows.append(
            f"| {name} | {alpha} | "
            + " | ".join(f"{v:.3f}" for v in values)
            + f" | {t['chosen_at']['seconds'] / 60:.0f} |"
        )
    p = result["plaza"]
    rows.append(
        f"\nplaza: {p['persons']} persons, {p['detections_at_0.3']} detections at 0.3, AP50 {p['AP_persons']['0.50']:.3f}"
    )
    return "\n".join(rows)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of the data sets")
    parser.add_argument(
        "--weights-backbone",
        type=Path,
        help="ImageNet weights of MobileNetV2; default: DATA/weights/mobilenet_v2-b0353104.pth",
    )
    parser.add_argument("--epochs", type=int, default=12, help="of each training (default 12)")
    parser.add_argument("--validate-every", type=int, default=2, help="epochs (default 2)")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, sharing the cores (default 2)")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "runs" / "first_light", help="models and logs (default runs/first_light)"
    )
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "first_light.json")
    args = parser.parse_args()
    args.data, args.work = args.data.resolve(), args.work.resolve()
    args.weights_backbone = (args.weights_backbone or args.data / "weights" / "mobilenet_v2-b0353104.pth").resolve()
    for path in (
        args.data / "hituav-train",
        args.data / "hituav-val",
        args.data / "bigscene-plaza",
        args.weights_backbone,
    ):
        if not path.exists():
            parser.error(
                f"{path} is missing; --data names the folder that holds hituav-train, hituav-val and bigscene-plaza"
            )
    return args


if __name__ == "__main__":
    sys.exit(main())
