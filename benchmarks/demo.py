"""`make demo`: train, evaluate, export and run a detector on the built-in synthetic dataset, on a CPU.

The steps are commands of the README: training with S-alpha, export to ONNX and to a TensorRT-RTX engine, evaluation of
the exported model, rendering of a 4096 x 4096 scene, inference on it, and evaluation of the detections. The evaluation
also calibrates the scores and chooses the threshold. All files are written to demo/. The last is index.html, a page
with the scene, the scores, the speed and the time of each step. Takes about six minutes on two cores with bfloat16,
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

from demo_page import PORT, SIZES, demo_page, percent
from environment import ROOT, environment

from tinydet._internal.arguments import positive_int
from tinydet._internal.atomic import write_json, write_text
from tinydet._internal.command import command

SCENE_SEED = 11
# A thin RetinaNet: trained from random weights for minutes, it converts to FP16 without a search for layers to keep.
NETWORK = ("--preset", "small", "--detector", "retinanet", "--channels", "32", "--head-convs", "1")
TRAINING = (*NETWORK, "--decay", "cosine", "--validate-every", "3")
EXPORT = "Export with alpha folded, and build a TensorRT-RTX engine"
EVALUATION = "Evaluate on the validation scenes, and choose the score threshold"
INFERENCE = "Detect the people in the scene"
MODEL = "people.onnx"


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

    demo.step("Train", "-m", "tinydet.train", "--salpha", *TRAINING, "--epochs", str(args.epochs))
    demo.step(EXPORT, str(ROOT / "export" / "to_trt.py"), "model.pth")
    # Trained for minutes, the model gives low scores. Calibrated scores are probabilities, with a threshold to match.
    (folder / MODEL).unlink(missing_ok=True)  # of an earlier demo; `--store` would change it
    choose = ("--operating-point", "f1", "--calibrate", "--store", MODEL)
    demo.step(EVALUATION, "-m", "tinydet.evaluate", "model.onnx", "--data", "builtin", *choose, "--json", "scores.json")
    scene = ("scene.jpg", "--scene", "--size", f"{args.scene}x{args.scene}", "--seed", str(SCENE_SEED))
    demo.step("Render a new scene", "-m", "tinydet.data.synthetic", *scene)
    scan = ("--model", MODEL, "--image", "scene.jpg", "--tile", "640", "--score", "auto")
    demo.step(INFERENCE, str(ROOT / "deploy" / "infer.py"), *scan)
    results = ("--gt", "scene.annotations.json", "--detections", "scene.detections.json", "--protocol", "coco")
    demo.step("Evaluate on the scene", "-m", "tinydet.evaluate", *results, "--json", "scene-scores.json")
    view = ("scene.jpg", "scene.detections.json", "--tile", "640", "--export", "scene")
    demo.step("Export the viewer with the scene", "-m", "tinydet", "view", *view)
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
    """Write report.md, report.json and index.html; print the first of them: the main numbers, then the tables."""
    folder = demo.folder
    read = {name: json.loads((folder / name).read_text()) for name in
            ("scores.json", "scene-scores.json", "scene.annotations.json", "scene.detections.json", "model.json",
             "model.verify.json")}  # fmt: skip
    ap, scene_ap = read["scores.json"]["AP"], read["scene-scores.json"]["AP"]
    truth, parity = read["scene.annotations.json"], read["model.verify.json"]["parity"].values()
    report = {
        "command": "make demo",
        **environment(),
        "tiles_per_second": float(search(r"([\d.]+) tiles/s", demo.printed[INFERENCE])),
        "backend": search(rf"^{re.escape(MODEL)}: (.*)$", demo.printed[INFERENCE]),
        "alpha": read["model.json"]["alpha"],
        "operators_added_by_alpha": int(search(r"operators added by it: (\d+)", demo.printed[EXPORT])),
        "verification": {
            "passed": read["model.verify.json"]["passed"],
            **{f"{what}_difference": max(each[f"{what}_difference"] for each in parity) for what in ("score", "box")},
        },
        "threshold": float(search(r"score auto: person >= ([\d.]+)", demo.printed[EVALUATION])),
        "scene": [truth["images"][0]["width"], truth["images"][0]["height"]],
        "objects": sum(not one["ignore"] for one in truth["annotations"]),
        "detections": len(read["scene.detections.json"]["annotations"]),
        "AP": ap,
        "scene_AP": scene_ap,
        "seconds": demo.seconds,
    }
    lines = [
        "# tinydet demo",
        "",
        f"* AP50 on the validation scenes: **{100 * ap['all']['0.50']:.1f} %**",
        f"  (on the large scene, scores of {report['threshold']:.2f} or more: {100 * scene_ap['all']['0.50']:.1f} %)",
        f"* tiles of 640 x 640 per second: **{report['tiles_per_second']}** ({report['backend']})",
        f"* operators added by alpha: **{report['operators_added_by_alpha']}**",
        "",
        "| size | " + " | ".join(f"AP{100 * float(t):.0f}" for t in ap["all"]) + " |",
        "| --- |" + " --- |" * len(ap["all"]),
        *(f"| {name} | {' | '.join(percent(value) for value in ap[name].values())} |" for name in SIZES if name in ap),
        "",
        "| step | seconds |",
        "| --- | --- |",
        *(f"| {title} | {seconds:.0f} |" for title, seconds in demo.seconds.items()),
        f"| **total** | **{sum(demo.seconds.values()):.0f}** |",
        "",
        f"Scene, numbers and next steps: open {folder.name}/index.html, or with all of the viewer:",
        f"  python3 -m http.server --bind 127.0.0.1 --directory {folder.name} {PORT}   # http://127.0.0.1:{PORT}/",
    ]
    write_text(folder / "report.md", "\n".join(lines) + "\n")
    write_json(folder / "report.json", report)
    write_text(folder / "index.html", demo_page(report))
    print("\n" + "\n".join(lines))


def search(pattern: str, printed: str) -> str:
    """Return the part of a command's output that matches the group of `pattern`."""
    found = re.search(pattern, printed, re.MULTILINE)
    if found is None:
        raise SystemExit(f"demo stopped: expected {pattern!r} in:\n{printed}")
    return found.group(1)


if __name__ == "__main__":
    sys.exit(main())
