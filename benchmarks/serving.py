"""Requests per second and latency of `tinydet serve`, what it adds to the library, and its memory.

    python benchmarks/serving.py                            # tiles, a scene of 4096 pixels, 24 uploads
    python benchmarks/serving.py --quick                    # a minute
    python benchmarks/serving.py --model model.onnx --side 30000 --filled 60 --only memory

Parts:

    tiles       raw tiles by the Open Inference Protocol, with 1, 4 and 16 clients, each with one connection; and the
                same backend called in this process by as many threads; the two take turns
    scenes      a job over a GeoTIFF, from the request to the last event, and `load(...).detect` in this process; the
                two take turns, and write only the COCO file
    memory      peak memory of the server while a scene of --side pixels is uploaded and scanned
    uploads     24 uploads at once, and their total throughput

The service runs in a process of its own, on 127.0.0.1. Only one side works at a time. Needs Linux and
tinydet[serve,geo]. The result is benchmarks/results/serving.json.
"""

from __future__ import annotations

import argparse
import http.client
import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from environment import ROOT, environment
from huge_scene import write_scene
from timing import summary

from tinydet._internal.arguments import names_from, positive_int, threads
from tinydet._internal.atomic import write_json
from tinydet._internal.command import command
from tinydet.runtime import load
from tinydet.runtime.backends import BACKENDS, Backend, open_model
from tinydet.runtime.bundled import model_path

PARTS = ("tiles", "scenes", "memory", "uploads")
CLIENTS = (1, 4, 16)
UPLOADS = 24
HEADER = "Inference-Header-Content-Length"


class Service:
    """A `tinydet serve` in a process of its own; a context manager."""

    def __init__(self, folder: Path, args: argparse.Namespace) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        words = [sys.executable, "-m", "tinydet", "serve", "--port", str(self.port), "--root", str(folder)]
        words += [
            "--folder",
            str(folder / "served"),
            "--model",
            str(model_path(args.model).resolve()),
            "--backend",
            args.backend,
        ]
        words += ["--threads", str(args.threads)] if args.threads else []
        self._process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL)
        while self._process.poll() is None:
            try:
                self.json("GET", "/healthz")
                return
            except OSError:
                time.sleep(0.1)
        raise ValueError("the service did not start")

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)

    def json(self, method: str, path: str, body: Any = None) -> Any:
        connection = self.connect()
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        connection.request(method, path, data, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        if answer.status >= 300:
            raise ValueError(f"{method} {path}: {answer.status} {content[:200]!r}")
        return json.loads(content)

    def scan(self, request: dict[str, Any]) -> dict[str, Any]:
        """Run a job to its end, by its events."""
        job = self.json("POST", "/jobs", request)["jobID"]
        connection = self.connect()
        connection.request("GET", f"/jobs/{job}/events")
        connection.getresponse().read()
        connection.close()
        state: dict[str, Any] = self.json("GET", f"/jobs/{job}")
        if state["status"] != "successful":
            raise ValueError(f"the job {state['status']}: {state['message']}")
        return state

    def peak_mib(self) -> float:
        """Peak memory of the server."""
        status = Path(f"/proc/{self._process.pid}/status").read_text(encoding="utf-8")
        (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
        return round(int(line.split()[1]) / 1024, 1)

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()


@command("serving")
def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(sys.argv[1:] if argv is None else argv)
    result: dict[str, Any] = {"environment": environment(), "model": args.model, "quick": args.quick}
    with tempfile.TemporaryDirectory(dir=args.work) as work:
        folder = Path(work)
        if "tiles" in args.only:
            result["tiles"] = measure_tiles(folder, args)
        if "scenes" in args.only:
            result["scenes"] = measure_scenes(folder, args)
        if "memory" in args.only:
            result["memory"] = measure_memory(folder, args)
        if "uploads" in args.only:
            result["uploads"] = measure_uploads(folder, args)
    write_json(args.output, result)
    print(f"  {args.output}")
    return 0


def measure_tiles(folder: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Time single tiles by the service and in this process, in turns, with several clients."""
    backend = open_model(Path(args.model), args.backend, threads=args.threads)
    side = backend.spec.tile
    tile = np.random.default_rng(0).integers(0, 255, (1, side, side, 3), np.uint8)
    rows = []
    with Service(folder, args) as service:
        for clients in CLIENTS:
            count = 8 if args.quick else 100
            sides: dict[str, list[float]] = {"service": [], "library": []}
            seconds = dict.fromkeys(sides, 0.0)
            for turn in range(3 if args.quick else 6):
                for name in sides:
                    make = (lambda: remote(service, tile)) if name == "service" else (lambda: local(backend, tile))
                    began = time.perf_counter()
                    times = in_threads(make, clients, count)
                    if turn:  # the first warms up
                        sides[name] += times
                        seconds[name] += time.perf_counter() - began
            row: dict[str, Any] = {"clients": clients}
            for name, times in sides.items():
                row[name] = {**summary(times), "per_second": round(len(times) / seconds[name], 2)}
            row["overhead_ms"] = round(row["service"]["median"] - row["library"]["median"], 2)
            rows.append(row)
            for name in sides:
                found = row[name]
                shown = ", ".join(f"{key} {found[key]} ms" for key in ("median", "p95", "p99"))
                print(f"{clients} clients, {name}: {found['per_second']} tiles/s, {shown}", flush=True)
    return rows


def remote(service: Service, tile: np.ndarray) -> Callable[[], object]:
    """Return a function that sends a tile over a connection of its own and reads the outputs."""
    connection = service.connect()
    tensor = {
        "name": "images",
        "datatype": "UINT8",
        "shape": tile.shape,
        "parameters": {"binary_data_size": tile.nbytes},
    }
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    body, headers = head + tile.tobytes(), {HEADER: str(len(head))}

    def run() -> None:
        connection.request("POST", "/v2/models/tinydet/infer", body, headers)
        answer = connection.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise ValueError(f"{answer.status}: {content[:200]!r}")

    return run


def local(backend: Backend, tile: np.ndarray) -> Callable[[], object]:
    """Return a function that runs a tile in this process."""
    return lambda: backend.run(tile)


def in_threads(make: Callable[[], Callable[[], object]], clients: int, count: int) -> list[float]:
    """Call a function `count` times in all, by several threads; return milliseconds of each call."""
    times: list[list[float]] = [[] for _ in range(clients)]
    failures: list[BaseException] = []

    def work(n: int) -> None:
        try:
            run = make()
            for _ in range(max(1, count // clients)):
                began = time.perf_counter()
                run()
                times[n].append((time.perf_counter() - began) * 1e3)
        except BaseException as failure:
            failures.append(failure)

    workers = [threading.Thread(target=work, args=(n,)) for n in range(clients)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if failures:
        raise failures[0]
    return [each for part in times for each in part]


def measure_scenes(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Time a job and the same scan in this process, in turns."""
    scene = folder / "scene.tif"
    write_scene(scene, 1536 if args.quick else 4096, 1)
    model = load(args.model, backend=args.backend, threads=args.threads)
    sides: dict[str, list[float]] = {"service": [], "library": []}
    with Service(folder, args) as service:
        for turn in range(2 if args.quick else 5):
            began = time.perf_counter()
            service.scan({"path": scene.name})
            middle = time.perf_counter()
            model.detect(scene).save(folder / "library.json")
            if turn:  # the first warms up
                sides["service"].append((middle - began) * 1e3)
                sides["library"].append((time.perf_counter() - middle) * 1e3)
    found = {name: summary(times) for name, times in sides.items()}
    overhead = found["service"]["median"] / found["library"]["median"] - 1  # type: ignore[operator]
    print(f"scene: service {found['service']['median']} ms, library {found['library']['median']} ms, {overhead:+.1%}")
    return {**found, "overhead": round(overhead, 4)}


def measure_memory(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Upload and scan a large scene; return the peak memory of the server after each."""
    scene = folder / "large.tif"
    write_scene(scene, 2048 if args.quick else args.side, args.filled)
    with Service(folder, args) as service:
        result: dict[str, Any] = {"side": args.side, "file_mib": round(scene.stat().st_size / 2**20, 1)}
        result["started_mib"] = service.peak_mib()
        began = time.perf_counter()
        with scene.open("rb") as file:
            service.json("PUT", "/uploads/large.tif", file)
        result |= {"upload_seconds": round(time.perf_counter() - began, 2), "uploaded_mib": service.peak_mib()}
        state = service.scan({"upload": "large.tif"})
        result |= {"tiles": state["tiles"], "detections": state["detections"], "scanned_mib": service.peak_mib()}
        result["seconds"] = round(time.perf_counter() - began, 1)
    print(f"memory: {result}")
    return result


def measure_uploads(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Send many scenes at once."""
    scene = folder / "upload.tif"
    write_scene(scene, 1024 if args.quick else 8192, 1)
    content = scene.read_bytes()
    with Service(folder, args) as service:
        names = iter([f"/uploads/{n}.tif" for n in range(UPLOADS)])
        began = time.perf_counter()
        times = in_threads(lambda: lambda: service.json("PUT", next(names), content), UPLOADS, UPLOADS)
        seconds, peak = time.perf_counter() - began, service.peak_mib()
    mib = len(content) / 2**20
    result = {"uploads": UPLOADS, "mib_each": round(mib, 1), "seconds": round(seconds, 2), "peak_mib": peak,
              "mib_per_second": round(UPLOADS * mib / seconds, 1), "each_ms": summary(times)}  # fmt: skip
    print(f"{UPLOADS} uploads of {mib:.1f} MiB: {result['mib_per_second']} MiB/s, peak {peak} MiB")
    return result


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", default="thermal", metavar="FILE", help="serve this model (default: thermal)")
    add("--backend", choices=BACKENDS, default="auto", help="as in `tinydet serve` (default: auto)")
    add("--threads", type=threads, metavar="N", help="CPU threads of the model (default: all)")
    add("--only", type=names_from(PARTS), default=("tiles", "scenes", "uploads"), metavar="A,B", help="measure these"
        f" parts: {', '.join(PARTS)} (default: all but memory)")  # fmt: skip
    add(
        "--side",
        type=positive_int,
        default=30_000,
        metavar="PX",
        help="side of the scene of the part memory (default: 30000)",
    )
    add("--filled", type=positive_int, default=1, metavar="N", help="fill every N-th row of its blocks (default: 1)")
    add("--quick", action="store_true", help="measure less, in a minute")
    add("--work", type=Path, metavar="DIR", help="folder for scenes (default: the system's)")
    add("--output", type=Path, default=ROOT / "benchmarks" / "results" / "serving.json", metavar="FILE",
        help="result file (default: benchmarks/results/serving.json)")  # fmt: skip
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
