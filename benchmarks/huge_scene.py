"""Scan a BigTIFF of 50 000 x 50 000 pixels: peak memory, tiles per second, and how busy the backend is.

    python benchmarks/huge_scene.py                       # the full scene, with a backend that does nothing
    python benchmarks/huge_scene.py --model model.int8.onnx --data my/val --minutes 8 --work huge/
    python benchmarks/huge_scene.py --heights 4,16        # does memory grow with the height?

The scene is a sparse file with blocks of 512 pixels and zstd compression. Every --filled-th row of blocks has content:
noise and bright spots, or with --data parts of the images of a COCO folder. The other blocks are missing from the file,
as in a mosaic. They are read as zeros and run like all others; no tile is skipped. --rows scans only the first rows of
tiles, which with --filled 1 are dense.

With --minutes, a run stops after that time, and the same command resumes it from its journal in --work; peak memory and
times are recorded for each part. The overhead of a tile outside the model is measured as well, for a scene in memory
and a backend that does nothing: CPU time of all threads, and wall time.

Needs Linux and tinydet[geo]. With a MobileNetV2 in INT8 the scene takes about seven minutes on two cores with VNNI.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from environment import environment

from tinydet._internal.arguments import integers, positive_int
from tinydet._internal.atomic import write_json
from tinydet._internal.command import command
from tinydet._internal.extras import needs_extra
from tinydet.runtime.backends import Backend, TileOutputs, open_model
from tinydet.runtime.journal import Journal
from tinydet.runtime.options import ScanOptions
from tinydet.runtime.plan import plan_scan, plan_tiles
from tinydet.runtime.scan import scan
from tinydet.runtime.scenes import Scene, open_scene, read_image
from tinydet.runtime.scenes.pixels import Image
from tinydet.spec import ModelSpec

BLOCK = 512
SPOT = 10  # side of a bright spot in pixels


class NullBackend:
    """A backend that returns at once and detects nothing."""

    name = "null"

    def __init__(self, tile: int) -> None:
        self.spec = ModelSpec(("spot",), (1,), "null", "none", tile, max_detections=100)

    def run(self, images: Image) -> TileOutputs:
        n, k = len(images), self.spec.max_detections
        return TileOutputs(
            np.zeros((n, k, 4), np.float32), np.zeros((n, k), np.float32), np.full((n, k), -1, np.int32),
            np.zeros(n, np.int32),
        )  # fmt: skip


class TopOfScene(Scene):
    """The first `height` rows of pixels of a scene."""

    def __init__(self, scene: Scene, height: int) -> None:
        self.name, self.width, self.height = scene.name, scene.width, min(height, scene.height)
        self._scene = scene

    def _read(self, x: int, y: int, width: int, height: int, size: tuple[int, int]) -> Image:
        return self._scene.read(x, y, width, height, size)

    def reopen(self) -> Scene | None:
        scene = self._scene.reopen()
        return None if scene is None else TopOfScene(scene, self.height)

    def close(self) -> None:
        self._scene.close()


@command("benchmarks/huge_scene.py")
def main(argv: Sequence[str] | None = None) -> int:
    words = [*(sys.argv[1:] if argv is None else argv)]
    args = arguments(words)
    if args.worker:
        print(json.dumps(measure(args)))
        return 0
    result: dict[str, Any] = {"command": "python " + " ".join(["benchmarks/huge_scene.py", *words]),
                              **environment(), "side": args.side, "filled": args.filled, "runs": []}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = args.scene or (args.work or Path(folder)) / "huge.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            began = time.perf_counter()
            write_scene(path, args.side, args.filled, args.data, args.rows and args.rows * 1024)
            print(f"{path}: {args.side}x{args.side}, {path.stat().st_size / 2**20:.0f} MiB on disk, "
                  f"written in {time.perf_counter() - began:.0f} s")  # fmt: skip
        heights = args.heights or [args.rows]
        for rows in heights:
            run = measure_in_process(words, path, rows)
            print(format_run(run))
            if args.work is not None:
                run = add_earlier_parts(run, args.work / "parts.json")
                print(f"{run['all_tiles']} of {run['tiles_in_all']} tiles in {len(run['parts'])} parts")
            result["runs"].append(run)
    result["overhead"] = overhead(args.quick)
    print(
        f"overhead per tile, scene in memory: {result['overhead']['cpu_ms_per_tile']:.3f} ms of CPU time, "
        f"{result['overhead']['wall_ms_per_tile']:.3f} ms of wall time (best of {result['overhead']['repeats']} runs)"
    )
    if args.output is not None:
        write_json(args.output, result)
        print(f"wrote {args.output}")
    return 0


def write_scene(path: Path, side: int, filled: int, data: Path | None = None, height: int | None = None) -> None:
    """Write a sparse BigTIFF in which every `filled`-th row of blocks, down to `height` pixels, has content."""
    with needs_extra("geo"):
        import rasterio
    pieces = [np.moveaxis(piece, -1, 0) for piece in (spots() if data is None else crops(data))]
    profile = {"driver": "GTiff", "width": side, "height": side, "count": 3, "dtype": "uint8", "tiled": True,
               "blockxsize": BLOCK, "blockysize": BLOCK, "BIGTIFF": "YES", "SPARSE_OK": True, "compress": "zstd",
               "crs": "EPSG:32635", "interleave": "pixel",
               "transform": rasterio.transform.from_origin(500_000, 6_000_000, 0.05, 0.05)}  # fmt: skip
    with rasterio.open(path, "w", **profile) as file:
        places = [(x, y) for y in range(0, min(side - BLOCK, height or side), BLOCK * filled)
                  for x in range(0, side - BLOCK, BLOCK)]  # fmt: skip
        for i, (x, y) in enumerate(places):
            file.write(pieces[i % len(pieces)], window=rasterio.windows.Window(x, y, BLOCK, BLOCK))


def spots() -> list[np.ndarray]:
    """Return blocks of noise with bright spots."""
    rng = np.random.default_rng(0)
    pieces = []
    for _ in range(8):
        noise = rng.integers(40, 90, (BLOCK, BLOCK, 1), dtype=np.uint8).repeat(3, axis=2)
        for x, y in rng.integers(0, BLOCK - SPOT, (20, 2)):
            noise[y : y + SPOT, x : x + SPOT] = 230
        pieces.append(noise)
    return pieces


def crops(data: Path) -> list[np.ndarray]:
    """Return the top left block of each image that is large enough."""
    paths = sorted((data / "images").iterdir())
    pieces = [read_image(path)[:BLOCK, :BLOCK] for path in paths]
    pieces = [piece for piece in pieces if piece.shape[:2] == (BLOCK, BLOCK)]
    if not pieces:
        raise ValueError(f"{data / 'images'} has no image of {BLOCK}x{BLOCK} pixels or more")
    return pieces


def add_earlier_parts(run: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return a resumed run with the sums over its parts; `path` stores the parts."""
    parts = [*(json.loads(path.read_text()) if path.is_file() else []), {**environment(), **run}]
    write_json(path, parts)
    tiles, seconds = sum(part["tiles"] for part in parts), sum(part["seconds"] for part in parts)
    busy = sum(part["busy_share"] * part["seconds"] for part in parts)
    return {
        **run,
        "all_tiles": tiles,
        "all_seconds": round(seconds, 1),
        "all_tiles_per_second": round(tiles / seconds, 2),
        "all_busy_share": round(busy / seconds, 4),
        "highest_peak_mib": max(part["peak_mib"] for part in parts),
        "parts": parts,
    }


def measure_in_process(words: Sequence[str], path: Path, rows: int | None) -> dict[str, Any]:
    """Call `measure` in a new process with the options `words`, so that peak memory is that of this run."""
    command = [sys.executable, str(Path(__file__).resolve()), *words, "--worker", "--scene", str(path)]
    command += ["--rows", str(rows)] if rows is not None else []
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print(done.stderr, end="", file=sys.stderr)
        raise SystemExit(done.returncode)
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Scan the scene once, or the rest of it that the journal in --work does not have."""
    backend: Backend = NullBackend(args.tile) if args.model is None else open_model(args.model, threads=args.threads)
    spec = backend.spec
    backend.run(np.zeros((min(args.batch, spec.max_batch), spec.tile, spec.tile, 3), np.uint8))
    before = peak_bytes()
    with open_scene(args.scene) as full:
        height = full.height
        if args.rows is not None:
            grid = plan_tiles(full.width, full.height, tile=spec.tile, overlap=args.overlap).grid
            height = grid.ys[min(args.rows, grid.rows) - 1] + grid.tile_height
        scene = TopOfScene(full, height)
        tiles = found = 0
        busy = 0.0
        began = time.perf_counter()
        options = ScanOptions(args.overlap, score=0.3, batch=args.batch, coarse=None, readers=args.readers)
        plan = plan_scan(scene, spec, options)
        with journal_of(args, scene, backend) as journal:
            earlier = 0 if journal is None else journal.tiles()
            for step in scan(backend, scene, plan, journal=journal):
                tiles, busy, found = tiles + step.tiles, busy + step.busy, found + len(step.detections)
                if args.minutes is not None and time.perf_counter() - began > 60 * args.minutes:
                    break
            seconds = time.perf_counter() - began
        tiles -= earlier
    return {"backend": backend.name, "width": scene.width, "height": scene.height, "tile": spec.tile,
            "precision": spec.precision, "backbone": spec.backbone, "batch": args.batch, "readers": args.readers,
            "threads": args.threads, "tiles": tiles, "tiles_in_all": plan.tiles, "detections": found,
            "seconds": round(seconds, 2),
            "tiles_per_second": round(tiles / seconds, 2), "busy_share": round(busy / seconds, 4),
            "peak_mib_before": round(before / 2**20), "peak_mib": round(peak_bytes() / 2**20)}  # fmt: skip


def journal_of(args: argparse.Namespace, scene: Scene, backend: Backend) -> AbstractContextManager[Journal | None]:
    if args.work is None:
        return nullcontext()
    identity = {"scene": [scene.name, scene.width, scene.height], "model": str(args.model), "tile": backend.spec.tile}
    return Journal(args.work / "huge.journal", identity, resume=True)


def overhead(quick: bool) -> dict[str, Any]:
    """Measure the time of a tile outside the model, with the scene in memory."""
    side, repeats = (4096, 3) if quick else (12_000, 7)
    scene = open_scene(np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8))
    backend = NullBackend(640)
    cpu, wall, tiles = [], [], 0
    for _ in range(repeats):
        began, began_cpu = time.perf_counter(), time.process_time()
        tiles = sum(step.tiles for step in scan(backend, scene, plan_scan(scene, backend.spec, ScanOptions())))
        wall.append((time.perf_counter() - began) / tiles * 1e3)
        cpu.append((time.process_time() - began_cpu) / tiles * 1e3)
    return {"tiles": tiles, "repeats": repeats, "cpu_ms_per_tile": round(min(cpu), 4),
            "wall_ms_per_tile": round(min(wall), 4)}  # fmt: skip


def peak_bytes() -> int:
    """Return the peak memory of this process, without memory inherited from the parent by a fork."""
    text = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in text.splitlines() if line.startswith("VmHWM"))) * 1024


def format_run(run: dict[str, Any]) -> str:
    return (
        f"{run['backend']}: {run['width']}x{run['height']}, {run['tiles']} tiles of {run['tile']} in "
        f"{run['seconds']} s, {run['tiles_per_second']} tiles/s, backend busy {run['busy_share']:.1%}, "
        f"peak {run['peak_mib']} MiB ({run['peak_mib_before']} before the scene), {run['detections']} detections"
    )


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--side", type=positive_int, default=50_000, help="side of the scene in pixels (default: 50000)")
    add("--filled", type=positive_int, default=4, help="one in N rows of blocks has content (default: 4)")
    add("--scene", type=Path, help="scene file, written if it does not exist (default: a temporary file)")
    add("--model", type=Path, help="exported model (default: a backend that does nothing)")
    add("--tile", type=positive_int, default=640, help="tile size without --model, in pixels (default: 640)")
    add("--overlap", type=int, default=128, help="overlap of tiles in pixels (default: 128)")
    add("--batch", type=positive_int, default=4, help="tiles per batch (default: 4)")
    add("--readers", type=positive_int, default=2, help="threads that read the scene (default: 2)")
    add("--threads", type=positive_int, help="CPU threads of the model (default: all cores)")
    add("--rows", type=positive_int, metavar="N", help="scan only the first N rows of tiles (default: all)")
    add("--data", type=Path, help="COCO folder whose images are the content (default: noise with spots)")
    add("--work", type=Path, help="folder of the scene and of the journal to resume from (default: none)")
    add("--minutes", type=float, help="stop after this time; needs --work (default: no limit)")
    add("--heights", type=integers, metavar="N,N", help="one run for each of these values of --rows (default: one run)")
    add("--quick", action="store_true", help="use a scene of 8000 pixels and its first two rows")
    add("--output", type=Path, help="result file, such as benchmarks/results/huge_scene.json (default: none)")
    add("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.minutes is not None and args.work is None:
        parser.error("--minutes needs --work, the folder to resume from")
    if args.quick:
        args.side, args.rows = 8000, args.rows or 2
    return args


if __name__ == "__main__":
    sys.exit(main())
