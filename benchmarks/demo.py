"""`make demo`: train, evaluate, export and run a detector on the built-in synthetic dataset, on a CPU.

The steps are the commands of the README: S-alpha, training, evaluation, export to ONNX and to a TensorRT-RTX engine,
rendering of a 4096 x 4096 scene, inference on it, and evaluation of the detections. A report shows the scores, the
speed and the time of each step; all files are written to demo/. Takes about four minutes on two cores with bfloat16,
twice as long without.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from environment import ROOT, environment

from tinydet._internal.arguments import positive_int
from tinydet._internal.atomic import write_json, write_text
from tinydet._internal.command import command

SCENE_SEED = 11
THIN = ("--channels", "32", "--head-convs", "1", "--decay", "cosine", "--validate-every", "3")
EXPORT = "Export with alpha folded, and build a TensorRT-RTX engine"
INFERENCE = "Detect the people in the scene"


@command("benchmarks/demo.py")
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--folder", type=Path, default=ROOT / "demo", help="folder of all output files (default: demo)")
    add("--scene", type=positive_int, default=4096, help="side of the scene in pixels (default: %(default)s)")
    add("--epochs", type=positive_int, default=6, help="epochs of the training (default: %(default)s)")
    args = parser.parse_args(argv)
    folder: Path = args.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    demo = Demo(folder)

    demo.step("Compute the fusion factors of the built-in dataset", "-m", "tinydet.salpha", "--json", "salpha.json")
    # Fewer channels than the preset, so that two cores without bfloat16 train it within minutes.
    demo.step("Train", "-m", "tinydet.train", "--salpha", *THIN, "--epochs", str(args.epochs))
    demo.step("Evaluate on the validation scenes", "-m", "tinydet.evaluate", "--json", "scores.json")
    demo.step(EXPORT, str(ROOT / "export" / "to_trt.py"), "model.pth")
    scene = ("scene.jpg", "--scene", "--size", f"{args.scene}x{args.scene}", "--seed", str(SCENE_SEED))
    demo.step("Render a new scene", "-m", "tinydet.data.synthetic", *scene)
    demo.step(INFERENCE, str(ROOT / "deploy" / "infer.py"), "--image", "scene.jpg", "--tile", "640")
    results = ("--gt", "scene.annotations.json", "--detections", "scene.detections.json", "--protocol", "coco")
    demo.step("Evaluate on the scene", "-m", "tinydet.evaluate", *results, "--json", "scene-scores.json")
    summarize(demo)
    return 0


class Demo:
    """Runs commands one after another; prints and keeps their output and their run time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.printed: dict[str, str] = {}
        self.seconds: dict[str, float] = {}

    def step(self, title: str, *words: str) -> None:
        shown = " ".join(shlex.quote(word.replace(str(ROOT), "..")) for word in words)
        print(f"\n=== {title}\n$ python {shown}", flush=True)
        started = time.perf_counter()
        process = subprocess.Popen([sys.executable, *words], cwd=self.folder, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
        if process.wait():
            raise SystemExit(f"demo stopped: `python {shown}` failed with exit code {process.returncode}")
        self.printed[title], self.seconds[title] = "".join(lines), time.perf_counter() - started


def summarize(demo: Demo) -> None:
    """Write demo/report.md and demo/report.json, and print the former: three main numbers first, then the tables."""
    folder = demo.folder
    ap, scene_ap = (json.loads((folder / name).read_text())["AP"] for name in ("scores.json", "scene-scores.json"))
    speed = search(r"([\d.]+) tiles/s", demo.printed[INFERENCE])
    backend = search(r"^model\.(?:onnx|engine): (.*)$", demo.printed[INFERENCE])
    added = search(r"operators added by it: (\d+)", demo.printed[EXPORT])
    ranges = [name for name in ("tiny1", "tiny2", "tiny3", "tiny", "small", "all") if name in ap]
    lines = [
        "# tinydet demo",
        "",
        f"* AP50 on the validation scenes: **{100 * ap['all']['0.50']:.1f} %**",
        f"  (on the large scene, scores of 0.3 or more: {100 * scene_ap['all']['0.50']:.1f} %)",
        f"* tiles of 640 x 640 per second: **{speed}** ({backend})",
        f"* operators added by alpha: **{added}**",
        "",
        "| size | " + " | ".join(f"AP{100 * float(t):.0f}" for t in ap["all"]) + " |",
        "| --- |" + " --- |" * len(ap["all"]),
        *(f"| {name} | {' | '.join(percent(value) for value in ap[name].values())} |" for name in ranges),
        "",
        "| step | seconds |",
        "| --- | --- |",
        *(f"| {title} | {seconds:.0f} |" for title, seconds in demo.seconds.items()),
        f"| **total** | **{sum(demo.seconds.values()):.0f}** |",
        "",
        f"Scene with its detections: {folder.name}/scene.detections.jpg",
    ]
    write_text(folder / "report.md", "\n".join(lines) + "\n")
    numbers = {"tiles_per_second": float(speed), "backend": backend, "operators_added_by_alpha": int(added)}
    report = {"command": "make demo", **environment(), **numbers, "AP": ap, "scene_AP": scene_ap}
    write_json(folder / "report.json", {**report, "seconds": demo.seconds})
    print("\n" + "\n".join(lines))


def search(pattern: str, printed: str) -> str:
    """Return the part of a command's output that matches the group of `pattern`."""
    found = re.search(pattern, printed, re.MULTILINE)
    if found is None:
        raise SystemExit(f"demo stopped: expected {pattern!r} in:\n{printed}")
    return found.group(1)


def percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}" if fraction >= 0 else "-"


if __name__ == "__main__":
    sys.exit(main())
