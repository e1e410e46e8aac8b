"""`make demo`: the whole job on the embedded data, in minutes, on a CPU.

Data, S-alpha, training, evaluation, ONNX, TensorRT-RTX engine, a 4096 x 4096 scene, a picture, a table. Everything is
written to demo/; the commands are those of the README, run as a user would type them.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

from environment import ROOT, environment

from tinydet._internal.atomic import write_json, write_text

SCENE_SEED = 11
THIN = ("--channels", "32", "--head-convs", "1", "--decay", "cosine", "--validate-every", "3")
EXPORT = "Export with alpha folded, and build an engine"
INFERENCE = "Find the people of the scene"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder", type=Path, default=ROOT / "demo", help="where everything is written (default: demo)"
    )
    parser.add_argument("--scene", type=int, default=4096, help="side of the scene in pixels (default: 4096)")
    parser.add_argument("--epochs", type=int, default=6, help="of the training (default: %(default)s)")
    args = parser.parse_args()
    folder: Path = args.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    story = Story(folder)

    story.step("Count the fusion factors of the embedded data", "-m", "tinydet.salpha", "--json", "salpha.json")
    # Thinner than the preset, so that two cores without bfloat16 have it trained within minutes.
    story.step("Train", "-m", "tinydet.train", "--salpha", *THIN, "--epochs", str(args.epochs))
    story.step("Score the validation scenes", "-m", "tinydet.evaluate", "--json", "scores.json")
    story.step(EXPORT, str(ROOT / "export" / "to_trt.py"), "model.pth")
    scene = ("scene.jpg", "--scene", "--size", f"{args.scene}x{args.scene}", "--seed", str(SCENE_SEED))
    story.step("Render a new scene", "-m", "tinydet.data.synthetic", *scene)
    story.step(INFERENCE, str(ROOT / "deploy" / "infer.py"), "--image", "scene.jpg", "--tile", "640")
    results = ("--gt", "scene.annotations.json", "--detections", "scene.detections.json", "--protocol", "coco")
    story.step("Score the scene", "-m", "tinydet.evaluate", *results, "--json", "scene-scores.json")
    summarise(story)
    return 0


class Story:
    """Runs the commands one after the other, shows what they print, and keeps their words and their time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.printed: dict[str, str] = {}
        self.seconds: dict[str, float] = {}

    def step(self, title: str, *command: str) -> None:
        shown = " ".join(shlex.quote(word.replace(str(ROOT), "..")) for word in command)
        print(f"\n=== {title}\n$ python {shown}", flush=True)
        begun = time.perf_counter()
        process = subprocess.Popen([sys.executable, *command], cwd=self.folder, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
        if process.wait():
            raise SystemExit(f"demo stopped: `python {shown}` ended with exit code {process.returncode}")
        self.printed[title], self.seconds[title] = "".join(lines), time.perf_counter() - begun


def summarise(story: Story) -> None:
    """Write demo/report.md and demo/report.json, and print the former; the three numbers that matter come first."""
    folder = story.folder
    ap, scene_ap = (json.loads((folder / name).read_text())["AP"] for name in ("scores.json", "scene-scores.json"))
    speed = said(r"([\d.]+) tiles/s", story.printed[INFERENCE])
    backend = said(r"^model\.(?:onnx|engine): (.*)$", story.printed[INFERENCE])
    added = said(r"operators added by it: (\d+)", story.printed[EXPORT])
    ranges = [name for name in ("tiny1", "tiny2", "tiny3", "tiny", "small", "all") if name in ap]
    lines = [
        "# tinydet demo",
        "",
        f"* AP50 on the validation scenes: **{100 * ap['all']['0.50']:.1f} %**",
        f"  (on the large scene, boxes from 0.3 up: {100 * scene_ap['all']['0.50']:.1f} %)",
        f"* tiles of 640 x 640 a second: **{speed}** ({backend})",
        f"* operators added by alpha: **{added}**",
        "",
        "| size | " + " | ".join(f"AP{100 * float(t):.0f}" for t in ap["all"]) + " |",
        "| --- |" + " --- |" * len(ap["all"]),
        *(f"| {name} | {' | '.join(percent(value) for value in ap[name].values())} |" for name in ranges),
        "",
        "| step | seconds |",
        "| --- | --- |",
        *(f"| {title} | {seconds:.0f} |" for title, seconds in story.seconds.items()),
        f"| **all** | **{sum(story.seconds.values()):.0f}** |",
        "",
        f"Picture: {folder.name}/scene.detections.jpg",
    ]
    write_text(folder / "report.md", "\n".join(lines) + "\n")
    numbers = {"tiles_per_second": float(speed), "backend": backend, "operators_added_by_alpha": int(added)}
    report = {"command": "make demo", **environment(), **numbers, "AP": ap, "scene_AP": scene_ap}
    write_json(folder / "report.json", {**report, "seconds": story.seconds})
    print("\n" + "\n".join(lines))


def said(pattern: str, printed: str) -> str:
    """The part of a command's output that a number of the report rests on."""
    found = re.search(pattern, printed, re.MULTILINE)
    if found is None:
        raise SystemExit(f"demo stopped: expected {pattern!r} in:\n{printed}")
    return found.group(1)


def percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}" if fraction >= 0 else "-"


if __name__ == "__main__":
    sys.exit(main())
