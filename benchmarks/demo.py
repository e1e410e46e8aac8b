"""`make demo`: the whole job on the embedded data, in minutes, on a CPU.

Data, S-alpha, training, evaluation, ONNX, TensorRT-RTX engine, a 4096 x 4096 scene, a picture, a table. Everything is
written to demo/; the commands are those of the README, run as a user would type them.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

from environment import ROOT, environment

from tinydet._atomic import write_json, write_text

SCENE_SEED = 2024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "demo", help="where everything is written (default demo)")
    parser.add_argument("--scene", type=int, default=4096, help="side of the scene in pixels (default 4096)")
    parser.add_argument("--epochs", type=int, help="default: the preset's")
    args = parser.parse_args()
    folder: Path = args.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    story = Story(folder)

    story.step(
        "Count the fusion factors from the boxes of the embedded data", "-m", "tinydet.salpha", "--json", "salpha.json"
    )
    epochs = ["--epochs", str(args.epochs)] if args.epochs else []
    story.step("Train", "-m", "tinydet.train", "--salpha", *epochs)
    story.step(
        "Score on the validation scenes", "-m", "tinydet.evaluate", "--model", "model.pth", "--json", "scores.json"
    )
    story.step("Export with alpha folded, and build an engine", str(ROOT / "export" / "to_trt.py"), "model.pth")
    story.step("Render a scene that the model has not seen", "-m", "tinydet.data.synthetic", ".", "--scene", "scene.jpg",
               "--size", f"{args.scene}x{args.scene}", "--seed", str(SCENE_SEED))  # fmt: skip
    story.step("Find the people", str(ROOT / "deploy" / "infer.py"), "--image", "scene.jpg", "--tile", "640")
    story.step("Score the scene", "-m", "tinydet.evaluate", "--gt", "scene.annotations.json", "--detections",
               "scene.detections.json", "--json", "scene-scores.json")  # fmt: skip
    summarise(story)
    return 0


class Story:
    """Runs the commands one after the other, shows what they print, and keeps their time and words."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.printed: dict[str, str] = {}
        self.seconds: dict[str, float] = {}

    def step(self, title: str, *command: str) -> None:
        shown = " ".join(shlex.quote(c.replace(str(ROOT), "..")) for c in command)
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
    """Write demo/report.md and print it; the three numbers that matter come first."""
    folder = story.folder
    scores, scene = (json.loads((folder / name).read_text()) for name in ("scores.json", "scene-scores.json"))
    export = json.loads((folder / "model.export.json").read_text())
    summary = json.loads((folder / "scene.summary.json").read_text())
    ap = scores["AP"]
    ranges = [name for name in ("tiny1", "tiny2", "tiny3", "tiny", "small", "all") if name in ap]
    lines = [
        "# tinydet demo",
        "",
        f"* AP50 on the validation scenes: **{100 * ap['all']['0.50']:.1f} %** (the 4096 scene: {100 * scene['AP']['all']['0.50']:.1f} %)",
        f"* tiles of 640 x 640 a second, {summary['backend']}: **{summary['tiles'] / summary['seconds']:.2f}**",
        f"* operators added by alpha: **{export['operators_added_by_alpha']}**",
        "",
        "| size | " + " | ".join(f"AP{100 * float(t):.0f}" for t in ap["all"]) + " |",
        "| --- |" + " --- |" * len(ap["all"]),
        *(
            f"| {name} | " + " | ".join(f"{100 * v:.1f}" if v >= 0 else "-" for v in ap[name].values()) + " |"
            for name in ranges
        ),
        "",
        "| step | seconds |",
        "| --- | --- |",
        *(f"| {title} | {seconds:.0f} |" for title, seconds in story.seconds.items()),
        f"| **all** | **{sum(story.seconds.values()):.0f}** |",
        "",
        "Picture: `demo/scene.detections.jpg`",
    ]
    write_text(folder / "report.md", "\n".join(lines) + "\n")
    write_json(folder / "report.json", {"command": "make demo", **environment(), "AP": ap, "scene": scene["AP"],
                                        "inference": summary, "export": export, "seconds": story.seconds})  # fmt: skip
    print("\n" + "\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())
