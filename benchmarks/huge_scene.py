"""Scan a BigTIFF of 50 000 x 50 000 pixels: memory, how busy the backend is, tiles a second.

    python benchmarks/huge_scene.py                       the whole scene, with a backend that does nothing
    python benchmarks/huge_scene.py --model model.int8.onnx --data my/val --minutes 8 --work huge/
    python benchmarks/huge_scene.py --heights 4,16        does memory grow with the height?

The scene is written as tiles of 512, zstd, with content in every `--filled`-th row of blocks: noise and bright spots,
or with `--data` pieces of the pictures of a COCO folder. The other blocks are left out of the file (sparse), as in a
mosaic. They read as zeros and are run like all others: nothing is skipped. `--rows` looks at the first rows of tiles
only, for a run that fits a coffee; with `--filled 1` that is a dense part.

With `--minutes` a run stops in time, and the same command goes on from its journal in `--work`; peak memory and shares
are of each part.

Also measured: what a tile costs beside the model, from memory, with a backend that does nothing (processor time of
all threads, and wall time).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from environment import ROOT, environment

from tinydet._internal.atomic import write_json
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
SPOT = 10  # pixels


class NullBackend:
    """Takes tiles and finds nothing, at once."""

    name = "null"

    def __init__(self, tile: int) -> None:
        self.spec = ModelSpec(("spot",), (1,), "null", "none", tile, max_detections=100)

    def run(self, images: Image) -> TileOutputs:
        n, k = len(images), self.spec.max_detections
        return TileOutputs(
            np.zeros((n, k, 4), np.float32), np.zeros((n, k), np.float32), np.full((n, k), -1, np.int32),
            np.zeros(n, np.int32),
        )  # fmt: skip


class Upper(Scene):
    """The first `height` rows of pixels of another scene."""

    def __init__(self, scene: Scene, height: int) -> None:
        self.name, self.width, self.height = scene.name, scene.width, min(height, scene.height)
        self._scene = scene

    def _read(self, x: int, y: int, width: int, height: int, size: tuple[int, int]) -> Image:
        return self._scene.read(x, y, width, height, size)

    def reopen(self) -> Scene | None:
        more = self._scene.reopen()
        return None if more is None else Upper(more, self.height)

    def close(self) -> None:
        self._scene.close()


def main() -> int:
    args = arguments()
    if args.worker:
        print(json.dumps(measure(args)))
        return 0
    result: dict[str, Any] = {"command": "python " + " ".join(["benchmarks/huge_scene.py", *sys.argv[1:]]),
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
            run = in_a_process_of_its_own(path, rows)
            print(line(run))
            if args.work is not None:
                run = with_earlier_parts(run, args.work / "parts.json")
                print(f"{run['all_tiles']} of {run['tiles_in_all']} tiles in {len(run['parts'])} parts")
            result["runs"].append(run)
    result["overhead"] = overhead(args.quick)
    print(
        f"beside the model, from memory: {result['overhead']['cpu_ms_per_tile']:.3f} ms of processor, "
        f"{result['overhead']['wall_ms_per_tile']:.3f} ms of wall time a tile (best of {result['overhead']['repeats']})"
    )
    if args.output is not None:
        write_json(args.output, result)
        print(f"wrote {args.output}")
    return 0


def write_scene(path: Path, side: int, filled: int, data: Path | None = None, height: int | None = None) -> None:
    """A sparse BigTIFF; some rows of blocks, down to `height`, have content."""
    with needs_extra("geo"):
        import rasterio
    pieces = [np.moveaxis(piece, -1, 0) for piece in (spots() if data is None else pieces_of(data))]
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
    """Blocks of noise with bright spots."""
    rng = np.random.default_rng(0)
    pieces = []
    for _ in range(8):
        noise = rng.integers(40, 90, (BLOCK, BLOCK, 1), dtype=np.uint8).repeat(3, axis=2)
        for x, y in rng.integers(0, BLOCK - SPOT, (20, 2)):
            noise[y : y + SPOT, x : x + SPOT] = 230
        pieces.append(noise)
    return pieces


def pieces_of(data: Path) -> list[np.ndarray]:
    """The first block of each picture that is large enough."""
    paths = sorted((data / "images").iterdir())
    pieces = [read_image(path)[:BLOCK, :BLOCK] for path in paths]
    pieces = [piece for piece in pieces if piece.shape[:2] == (BLOCK, BLOCK)]
    if not pieces:
        raise SystemExit(f"{data / 'images'} has no picture of {BLOCK}x{BLOCK} pixels or more")
    return pieces


def with_earlier_parts(run: dict[str, Any], path: Path) -> dict[str, Any]:
    """A run that goes on from others, with what they measured."""
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


def in_a_process_of_its_own(path: Path, rows: int | None) -> dict[str, Any]:
    """Peak memory is that of a process, so each run has its own."""
    words = [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:], "--worker", "--scene", str(path)]
    words += ["--rows", str(rows)] if rows is not None else []
    done = subprocess.run(words, cwd=Path.cwd(), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def measure(args: argparse.Namespace) -> dict[str, Any]:
    backend: Backend = NullBackend(args.tile) if args.model is None else open_model(args.model, threads=args.threads)
    spec = backend.spec
    backend.run(np.zeros((min(args.batch, spec.max_batch), spec.tile, spec.tile, 3), np.uint8))
    before = peak_bytes()
    with open_scene(args.scene) as whole:
        height = whole.height
        if args.rows is not None:
            grid = plan_tiles(whole.width, whole.height, tile=spec.tile, overlap=args.overlap).grid
            height = grid.ys[min(args.rows, grid.rows) - 1] + grid.tile_height
        scene = Upper(whole, height)
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
    """What a tile costs beside the model, with the scene in memory."""
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
    """The most that this process held so far; what it inherited by a fork does not count."""
    text = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in text.splitlines() if line.startswith("VmHWM"))) * 1024


def line(run: dict[str, Any]) -> str:
    return (
        f"{run['backend']}: {run['width']}x{run['height']}, {run['tiles']} tiles of {run['tile']} in "
        f"{run['seconds']} s, {run['tiles_per_second']} tiles/s, backend busy {run['busy_share']:.1%}, "
        f"peak {run['peak_mib']} MiB ({run['peak_mib_before']} before the scene), {run['detections']} detections"
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--side", type=int, default=50_000, help="of the scene, pixels (default 50000)")
    add("--filled", type=int, default=4, help="rows of blocks for one with content (default 4)")
    add("--scene", type=Path, help="the file; written where it does not exist, and kept (default: a temporary one)")
    add("--model", type=Path, help="exported model (default: a backend that does nothing)")
    add("--tile", type=int, default=640, help="of the backend that does nothing (default 640)")
    add("--overlap", type=int, default=128)
    add("--batch", type=int, default=4)
    add("--readers", type=int, default=2, help="threads that read (default 2)")
    add("--threads", type=int, help="of the model (default: all)")
    add("--rows", type=int, help="look at the first so many rows of tiles (default: all)")
    add("--data", type=Path, help="COCO folder whose pictures are the content (default: noise with spots)")
    add("--work", type=Path, help="folder of the scene and of the journal that the same command goes on from")
    add("--minutes", type=float, help="stop after so many")
    add("--heights", type=lambda text: [int(part) for part in text.split(",")], help="a run for each number of rows")
    add("--quick", action="store_true", help="a scene of 8000 pixels, two rows")
    add("--output", type=Path, help=f"JSON (a full run: {ROOT / 'benchmarks/results/huge_scene.json'})")
    add("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.minutes is not None and args.work is None:
        parser.error("--minutes needs --work, the folder to go on from")
    if args.quick:
        args.side, args.rows = 8000, args.rows or 2
    return args


if __name__ == "__main__":
    sys.exit(main())
