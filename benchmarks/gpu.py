"""Check and measure everything that needs a GPU, in at most eight minutes on a bare machine.

    python benchmarks/gpu.py --data hituav-train --val hituav-val
    python benchmarks/gpu.py --dry-run --cpu          # the same steps at small sizes, without a GPU

In this order:

    machine         versions, nvidia-smi
    a  engines      the bundled model, a RetinaNet and a Faster R-CNN with ResNet-50 and random weights, in FP32, FP16
                    and INT8: build the engine, run it with tinydet's backend, compare its detections with those of
                    ONNX Runtime on the CPU; PyTorch on the GPU is compared, too
    b  latency      p50 and p95 with and without CUDA graph for batches of 1, 8 and 16; tiles/s over a scene of
                    20 000 x 20 000 pixels from end to end, and the share of the time outside the model
    c  training speed   images/s and memory of --preset paper against torchvision's loop, in bfloat16
    d  real training    five minutes on --data, with AP on --val before and after
    e  verify_gpu   verify_gpu.py on the engines of the bundled model: AP, stages, clocks, throttling

Each step runs in a process of its own, with a time limit in proportion to --minutes. If it fails or is stopped, its
results so far are kept and the next step runs. The result file is written after every step.

The script needs PyTorch, torchvision, ONNX Runtime, onnx and OpenCV, but no network, no installation and no PYTHONPATH.
onnxscript is needed to export the detectors with random weights, and TensorRT-RTX to build engines. Wheels of these and
other packages are unpacked from --wheels, whole or in pieces (`split -b 50M X.whl X.whl.`). Small packages that are
missing have stand-ins. What lacks a package is skipped. Exit codes: 0 every step succeeded, 1 a step failed or ran out
of time, 2 bad options.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gpu_packages
from environment import ROOT, environment

FOLDER = Path(__file__).resolve().parent
MODELS = ("thermal", "retinanet", "faster_rcnn")
MINUTES, REHEARSAL = 8.0, 60.0  # of the whole run; a dry run ends much earlier unless the machine is busy
OVERHEAD = 8.0  # seconds of a run beside its steps
TAIL = 3000  # characters of a failed step's log in the result


@dataclass(frozen=True)
class Step:
    """One step, or parts of it that run at the same time.

    Attributes:
        letter: as in the description above; empty for the preparation.
        seconds: time limit of a run of `MINUTES`; it shrinks and grows with --minutes.
        parts: arguments of the processes that run at the same time; one empty argument for a single process.
    """

    letter: str
    name: str
    seconds: float
    parts: tuple[str, ...] = ("",)


STEPS = (
    Step("", "machine", 12),
    Step("a", "engines", 82, MODELS),
    Step("b", "latency", 30),
    Step("c", "training speed", 28),
    Step("d", "real training", 300),
    Step("e", "verify_gpu", 20),
)


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    if args.step:
        return run_step(args.step, json.loads(args.options.read_text()))
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="gpu-kit-") as temporary:
        work = (args.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        packages = gpu_packages.prepare(work / "packages", args.wheels)
        environ = environment_of_steps(work / "packages")
        result: dict[str, Any] = {
            "command": "python benchmarks/gpu.py",
            "arguments": [*(sys.argv[1:] if argv is None else argv)],
            **environment(),
            "packages": packages,
            "minutes": args.minutes,
            "steps": {},
        }
        for name, about in packages.items():
            print(f"{name}: {about}")
        options = shared_options(args, work)
        chosen = [step for step in STEPS if not step.letter or step.letter in args.only]
        scale = args.minutes / MINUTES
        for i, step in enumerate(chosen):
            later = sum(step.seconds for step in chosen[i + 1 :]) * scale
            left = 60 * args.minutes - OVERHEAD - (time.monotonic() - began)
            limit = max(1.0, min(step.seconds * scale, left - later))
            result["steps"].update(run_processes(step, limit, options, work, environ))
            result["seconds"] = round(time.monotonic() - began, 1)
            write(args.output, result)
    print(f"{result['seconds']:.0f} s in all; wrote {args.output}")
    return 0 if all(found["state"] == "done" for found in result["steps"].values()) else 1


def shared_options(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Return the fields of `gpu_steps.Options`, as JSON values."""
    cores = len(os.sched_getaffinity(0))
    return {
        "work": str(work),
        "data": str(args.data or work / "data" / "train"),
        "val": str(args.val or args.data or work / "data" / "val"),
        "init": None if args.init == "none" else args.init,
        "cpu": args.cpu,
        "rehearsal": args.dry_run,
        "made": args.data is None,
        "threads": max(1, cores // len(MODELS)),
    }


def environment_of_steps(packages: Path) -> dict[str, str]:
    """Return the environment of the steps: unpacked packages and this checkout come first on the path."""
    paths = [str(packages), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}


def run_processes(
    step: Step, limit: float, options: dict[str, Any], work: Path, environ: dict[str, str]
) -> dict[str, dict[str, Any]]:
    """Run the processes of a step until its time is over; return for each part its state and what it found."""
    began, used = time.monotonic(), cpu_seconds()
    running = {}
    for part in step.parts:
        label = f"{step.letter} {step.name} {part}".strip()
        file = work / f"{re.sub('[^a-z0-9]+', '-', label)}.json"
        file.write_text(json.dumps({**options, "step": step.name, "part": part, "seconds": limit}))
        log = file.with_suffix(".log").open("w")
        words = [sys.executable, str(FOLDER / "gpu.py"), "--step", str(file.with_suffix(".result.json")), "--options"]
        process = subprocess.Popen([*words, str(file)], env=environ, stdout=log, stderr=log, start_new_session=True)
        log.close()
        running[label] = process, file
    found = {}
    try:
        for label, (process, file) in running.items():
            state = "done"
            try:
                if process.wait(max(0.1, began + limit - time.monotonic())):
                    state = "failed"
            except subprocess.TimeoutExpired:
                state = "out of time"
            found[label] = describe(label, state, file, limit, time.monotonic() - began, cpu_seconds() - used)
            used = cpu_seconds()
    finally:
        for process, _ in running.values():
            stop(process)
    return found


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process and its children, which form a session of their own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def cpu_seconds() -> float:
    """Return the CPU time of all processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def describe(label: str, state: str, file: Path, limit: float, seconds: float, used: float) -> dict[str, Any]:
    """Return and print what a process found."""
    path = file.with_suffix(".result.json")
    results = json.loads(path.read_text()) if path.is_file() else {}
    errors, skipped = ([f"{name}: {value[word]}" for name, value in results.items()
                        if isinstance(value, dict) and word in value] for word in ("error", "skipped"))  # fmt: skip
    if state == "done" and errors:
        state = "failed"
    found = {"state": state, "seconds": round(seconds, 1), "cpu_seconds": round(used, 1), "limit": round(limit, 1),
             "errors": errors, "skipped": skipped, "results": results}  # fmt: skip
    print(f"{label}: {state}, {seconds:.0f} of {limit:.0f} s, {len(results)} results", flush=True)
    for word, lines in (("", errors), ("skipped: ", skipped)):
        for line in lines:
            print(f"    {word}{line[:300]}")
    if state != "done":
        found["log"] = file.with_suffix(".log").read_text(errors="replace")[-TAIL:]
        if not errors and found["log"].strip():
            print(f"    {found['log'].strip().splitlines()[-1][:300]}")
    return found


def run_step(output: Path, options: dict[str, Any]) -> int:
    """Run one step in this process and write its results after each."""
    import gpu_steps

    names = ("init", "cpu", "rehearsal", "threads")
    paths = {name: Path(options[name]) for name in ("work", "data", "val")}
    shared = gpu_steps.Options(**paths, **{name: options[name] for name in names}, made=options["made"])
    arguments = (options["part"],) if options["part"] else ()
    results: dict[str, Any] = {}
    for name, value in gpu_steps.STEPS[options["step"]](shared, options["seconds"], *arguments):
        results[name] = value
        write(output, results)
    return 0


def write(path: Path, values: dict[str, Any]) -> None:
    """Replace a JSON file in one move."""
    partial = path.with_name(f".{path.name}.part")
    partial.write_text(json.dumps(values, indent=1, default=plain) + "\n")
    partial.replace(path)


def plain(value: Any) -> Any:
    """Return a value of numpy or a path as JSON knows it."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def steps(text: str) -> str:
    """Parse letters of steps, such as a,b."""
    letters = {part.strip() for part in text.split(",")}
    known = {step.letter for step in STEPS if step.letter}
    if not letters <= known:
        raise argparse.ArgumentTypeError(f"expected letters of {', '.join(sorted(known))}, such as a,b; got {text!r}")
    return "".join(sorted(letters))


def minutes(text: str) -> float:
    value = float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else 0.0
    if value <= 0:
        raise argparse.ArgumentTypeError(f"expected a positive number; got {text!r}")
    return value


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="gpu.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, metavar="PATH", help="dataset to train on (default: 120 synthetic scenes)")
    add("--val", type=Path, metavar="PATH", help="dataset to validate on (default: that of --data)")
    add("--init", default="thermal", metavar="NAME|FILE|none",
        help="weights that the real training starts from (default: thermal, the bundled model)")  # fmt: skip
    add(
        "--only",
        type=steps,
        default="a,b,c,d,e",
        metavar="A,B",
        help="run only these steps, such as a,b (default: all)",
    )
    add("--minutes", type=minutes,
        help=f"time limit of the whole run (default: {MINUTES:g}, with --dry-run {REHEARSAL:g})")  # fmt: skip
    add(
        "--wheels",
        type=Path,
        nargs="+",
        default=[ROOT, FOLDER, ROOT / "wheels", Path()],
        metavar="DIR",
        help="folders of wheels to unpack (default: the repository, its benchmarks/ and wheels/, the current folder)",
    )
    add("--dry-run", action="store_true", help="rehearse every step at small sizes")
    add("--cpu", action="store_true", help="use no GPU: engines are built, and a stand-in runs in their place")
    add("--work", type=Path, metavar="DIR", help="keep models, logs and intermediate results here (default: delete)")
    add("--output", type=Path, default=Path("gpu.json"), metavar="FILE", help="result file (default: gpu.json)")
    add("--step", type=Path, help=argparse.SUPPRESS)
    add("--options", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    args.minutes = args.minutes or (REHEARSAL if args.dry_run else MINUTES)
    if not args.step:
        for option, path in (("--data", args.data), ("--val", args.val)):
            if path is not None and not path.exists():
                parser.error(f"argument {option}: {path} does not exist")
        if not args.output.resolve().parent.is_dir():
            parser.error(f"argument --output: {args.output.parent} is no folder")
        for folder in args.wheels:
            if not folder.is_dir() and folder != ROOT / "wheels":
                parser.error(f"argument --wheels: {folder} is no folder")
    return args


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("gpu.py: interrupted; the result file has the finished steps")
