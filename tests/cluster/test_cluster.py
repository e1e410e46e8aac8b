"""Scans on a real local Ray: the outputs of one process, whatever dies meanwhile."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinydet._internal.arguments import number_range
from tinydet.infer.__main__ import main
from tinydet.infer.ray_driver import Cluster, _workers, check_address
from tinydet.infer.ray_worker import Scanned, describe, pack, source_of, unpack
from tinydet.runtime.pieces import Piece
from tinydet.runtime.scenes.catalogues import CatalogueItem
from tinydet.runtime.scenes.pixels import Limits
from tinydet.runtime.scenes.sources import Source
from tinydet.spec import ModelSpec

ROOT = Path(__file__).resolve().parents[2]
SPEC = ModelSpec(
    classes=("square", "bar"),
    category_ids=(7, 0),
    detector="cells",
    backbone="none",
    tile=64,
    max_batch=4,
    max_detections=50,
    nms_in_graph=True,
    object_sizes=(6.0, 8.0, 40.0),
)


def test_a_result_is_read_back() -> None:
    scanned = [
        Scanned(3, Piece(4, 9), {"scene": "a"}, [b"one\0", b"", b"\0two"], "unlike", "", Limits((1.5,), (2.5,))),
        Scanned(0, failure="damaged"),
    ]
    assert unpack(pack("", scanned)) == ("", scanned)
    assert unpack(pack("wrong model", [])) == ("wrong model", [])


def test_a_worker_in_another_folder_opens_the_same_scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    item = CatalogueItem("x", "", (("instruments", ["a camera"]),))
    sources = [
        Source("a.tif", 1, file_name="a.tif", size=(8, 6), corner=(0, 0, 4, 4), item=item),
        Source("s3://survey/b.tif", 2, listed=(10, 3)),
        Source("https://user:pw@host/c.tif?X-Amz-Signature=0a", 3),
    ]
    sent = [json.loads(json.dumps(describe(source))) for source in sources]
    (tmp_path / "worker").mkdir()
    monkeypatch.chdir(tmp_path / "worker")
    received = [source_of(values) for values in sent]
    places = [str(tmp_path / "a.tif"), sources[1].location, sources[2].location]
    assert received == [
        dataclasses.replace(source, location=place, item=None) for source, place in zip(sources, places, strict=True)
    ]
    assert len({hash(source) for source in (*received, *sources)}) > 3  # keys of the spans of a part


@pytest.mark.parametrize(("text", "expected"), [("1", (1, 1)), ("2-8", (2, 8)), ("0-3", None), ("8-2", None)])
def test_numbers_of_workers(text: str, expected: tuple[int, int] | None) -> None:
    if expected is not None:
        assert number_range(text) == expected
        return
    with pytest.raises(ArgumentTypeError, match="expected a number such as 4, or a range such as 2-8"):
        number_range(text)


def test_an_address_is_not_a_scene(capsys) -> None:
    for address in ("local", "auto", "head:6379", "ray://10.0.0.1:10001", "[::1]:6379"):
        check_address(address)
    assert main(["--ray", "flight/", "--image", "a.png"]) == 2
    assert "got 'flight/'; name scenes before --ray" in capsys.readouterr().err
    assert main(["--image", "a.png", "--workers", "3"]) == 2
    assert "--workers and --gpus-per-worker are for a Ray cluster; add --ray" in capsys.readouterr().err


def test_a_worker_must_fit_on_one_node() -> None:
    nodes = [{"Alive": True, "Resources": {"CPU": 4.0}}, {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}]
    total = {"CPU": 4.0}
    assert _workers(Cluster(threads=2), total, nodes) == (1, 2)
    assert _workers(Cluster(workers=(2, 9)), total, nodes) == (2, 9)
    for cluster in (Cluster(threads=5), Cluster(gpus=0.5)):
        with pytest.raises(ValueError, match="no node of the Ray cluster has"):
            _workers(cluster, total, nodes)


# ------------------------------------------------------------------------------------------------------ on a real Ray


def raster(path: Path, seed: int, width: int, height: int, *, deep: bool = False) -> None:
    rasterio = pytest.importorskip("rasterio")
    rng = np.random.default_rng(seed)
    pixels = np.zeros((height, width), np.uint16 if deep else np.uint8)
    for _ in range(width * height // 2000):
        side = int(rng.choice([8, 8, 8, 32]))
        x, y = (int(rng.integers(0, limit - side)) // 8 * 8 for limit in (width, height))
        pixels[y : y + side, x : x + side] = 4000 if deep else 255
    where = {"width": width, "height": height, "count": 1, "dtype": pixels.dtype, "crs": "EPSG:32632"}
    where["transform"] = rasterio.Affine(0.1, 0, 5e5, 0, -0.1, 5e6)
    with rasterio.open(path, "w", driver="GTiff", **where) as file:
        file.write(pixels, 1)


@pytest.fixture(scope="module")
def survey(make_onnx: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small scenes and one large one, and what one process finds in them."""
    pytest.importorskip("ray")
    folder = tmp_path_factory.mktemp("survey")
    make_onnx(folder / "model.onnx", spec=SPEC)
    (folder / "flight").mkdir()
    for n in range(6):
        raster(folder / "flight" / f"{n}.tif", n, 150 + 40 * n, 200)
    raster(folder / "flight" / "deep.tif", 8, 400, 900, deep=True)
    raster(folder / "flight" / "giant.tif", 9, 1600, 2000)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(words("one.csv")) == 0
    return folder


@pytest.fixture
def folder(survey: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(survey, tmp_path, dirs_exist_ok=True, copy_function=shutil.copy2)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def started(start: Callable[[], Any]) -> Any:
    """Start Ray, which gives itself 30 s: too few on a busy machine."""
    for attempt in range(4):
        try:
            return start()
        except Exception as error:
            if "timed out during startup" not in str(error) or attempt == 3:
                raise
    raise AssertionError


def words(output: str, *more: object) -> list[str]:
    options = ("--overlap", "24", "--model", "model.onnx", "--backend", "onnx", "--threads", "1", "--output", output)
    return ["--image", "flight", *options, *map(str, more)]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """Three Ray nodes on this machine; the program is connected to the first."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster as Nodes

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_BACKEND_LOG_LEVEL", "fatal")
        patch.setenv("RAY_AUTH_MODE", "disabled")
        memory = {"object_store_memory": 1 << 27}
        head = {"num_cpus": 2, "include_dashboard": False, **memory}
        nodes = started(lambda: Nodes(initialize_head=True, head_node_args=head))
        nodes.extra = [started(lambda: nodes.add_node(num_cpus=1, **memory)) for _ in range(2)]
        ray.init(address=nodes.address, log_to_driver=False)
        yield nodes
        ray.shutdown()
        nodes.shutdown()


class Watch(threading.Thread):
    """Does something as soon as a condition holds while a run is in progress."""

    def __init__(self, when: Callable[[], object], then: Callable[[Any], object], times: int = 1) -> None:
        super().__init__(daemon=True)
        self.when, self.then, self.times, self.done, self.stop = when, then, times, 0, False
        self.start()

    def run(self) -> None:
        while not self.stop and self.done < self.times:
            if found := self.when():
                self.then(found)
                self.done += 1
            time.sleep(0.02)

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop = True
        self.join()


def workers() -> list[int]:
    """The processes of the actors."""
    return [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/cmdline") if b"ray::MapWorker" in read(path)]


def holders(name: str) -> list[int]:
    """The actors that have a file open."""
    found = []
    for pid in workers():
        try:
            if any(os.readlink(link).endswith(name) for link in Path(f"/proc/{pid}/fd").iterdir()):
                found.append(pid)
        except OSError:
            pass
    return found


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def kill(pids: list[int]) -> None:
    for pid in pids[:1]:
        os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_worker_and_a_node_die_and_nothing_is_lost_or_double(folder: Path, nodes: Any) -> None:
    def midway(count: int) -> Callable[[], object]:
        return lambda: len(list(folder.glob("all.parts/*-of-*.json"))) >= count and workers()

    with (
        Watch(midway(3), kill) as killed,
        Watch(midway(6), lambda _: nodes.remove_node(nodes.extra.pop(), allow_graceful=False)) as removed,
    ):
        assert main(words("all.csv", "--ray", "--workers", "2-3", "--resume")) == 0
    assert (killed.done, removed.done) == (1, 1)
    assert (folder / "all.csv").read_bytes() == (folder / "one.csv").read_bytes()


@pytest.mark.slow
def test_unreadable_scenes_and_those_that_kill_their_workers_are_named_and_the_others_finish(
    folder: Path, nodes: Any, capsys
) -> None:
    (folder / "flight" / "1.tif").write_bytes((folder / "flight" / "1.tif").read_bytes()[:3000])
    with Watch(lambda: holders("flight/4.tif"), kill, times=99) as killed:  # as the system does without memory
        assert main(words("all.csv", "--ray", "--workers", "2", "--skip-unreadable")) == 3
    assert killed.done >= 4
    error = capsys.readouterr().err
    assert "1.tif" in error
    assert "4.tif: every worker that scanned it died" in error
    (folder / "flight" / "4.tif").write_bytes(b"")
    assert main(words("rest.csv", "--skip-unreadable")) == 3
    assert (folder / "all.csv").read_bytes() == (folder / "rest.csv").read_bytes()
    assert not (folder / "all.parts").exists()


@pytest.mark.slow
def test_a_driver_that_is_killed_continues_with_the_unfinished_parts(folder: Path) -> None:
    command = [sys.executable, "-m", "tinydet", "infer", *words("all.csv", "--ray", "--workers", "2", "--resume")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def parts() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in folder.glob("all.parts/*-of-*.json")}

    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as driver:
        while len(parts()) < 4 and driver.poll() is None:
            time.sleep(0.02)
        driver.kill()
    before = parts()
    assert 4 <= len(before) < 16
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"{len(before)} of them by an earlier run" in done.stdout
    after = parts()
    assert len(after) == 16
    assert {path: after[path] for path in before} == before
    assert (folder / "all.csv").read_bytes() == (folder / "one.csv").read_bytes()


@pytest.mark.slow
def test_actors_that_take_all_cpus_starve_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the Python API, in a program that has started Ray itself."""
    ray = pytest.importorskip("ray")
    from tinydet.cluster import infer

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("RAY_BACKEND_LOG_LEVEL", "fatal")
    ray.shutdown()
    started(
        lambda: ray.init(
            address="local", num_cpus=2, object_store_memory=1 << 27, include_dashboard=False, log_to_driver=False
        )
    )
    try:
        options = {"model": "model.onnx", "backend": "onnx", "overlap": 24, "format": ["csv"]}
        summary = infer("flight", output="all.csv", workers=2, **options)
    finally:
        ray.shutdown()
    assert summary["total"]["done"] == 8
    assert (folder / "all.csv").read_bytes() == (folder / "one.csv").read_bytes()
    with pytest.raises(TypeError, match="no option 'scores'"):
        infer("flight", output="all.csv", scores=1)
    with pytest.raises(ValueError, match="--score"):
        infer("flight", output="all.csv", score=7)
