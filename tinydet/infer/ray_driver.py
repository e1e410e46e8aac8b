"""Run the parts of a run on Ray Data, and store what the workers return.

The division into parts, the journals and the join are those of `tinydet infer --part` and `--join`. A result is written
as soon as it arrives, in any order, so the driver holds a few results in memory. A run that is started again runs the
parts that have no result.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinydet._internal.arguments import quoted
from tinydet._internal.console import plural
from tinydet._internal.errors import reason
from tinydet._internal.extras import needs_extra
from tinydet._internal.outputs import created_folders
from tinydet._internal.progress import Bar
from tinydet.infer.jobs import SKIP_HINT, Job, RunPlan
from tinydet.infer.parts import COMPLETE, MOST_PARTS, Part, PartsFolder, images_only, scene_key
from tinydet.infer.ray_worker import Keeper, Scanned, Setup, Worker, describe, unpack
from tinydet.runtime.backends import Backend
from tinydet.runtime.journal import BatchRecord, Journal
from tinydet.runtime.pieces import Span
from tinydet.runtime.scenes import DamagedSceneError

logger = logging.getLogger("tinydet.infer")

PART_BYTES = 1 << 24  # of files in a part, unless that makes fewer than PARTS_PER_WORKER
PARTS_PER_WORKER = 8
STORE_BYTES = 1 << 28  # of memory for results on this machine, if Ray is started here
LOCAL = "local"
STARTS, SLOW_START = 3, "timed out during startup"  # Ray gives itself 30 s, too few on a busy machine


@dataclass(frozen=True)
class Cluster:
    """Where and with how many workers to run.

    Attributes:
        address: of a Ray cluster; "local" starts Ray on this machine, or connects to that of RAY_ADDRESS.
        workers: least and largest number of actors; None: 1 to as many as there are CPUs, or GPUs if `gpus` is set.
        gpus: GPUs of a worker; a fraction shares one.
        threads: CPUs of a worker, on which it runs the model.
    """

    address: str = LOCAL
    workers: tuple[int, int] | None = None
    gpus: float = 0.0
    threads: int = 1


def check_address(address: str) -> None:
    """Check the form of an address.

    Raises:
        ValueError: it is something else, such as the name of a scene.
    """
    if not re.fullmatch(r"local|auto|(ray://)?[\w.\-\[\]:]+:\d+", address):
        raise ValueError(
            f"--ray: expected no value, auto, or the address of a Ray cluster such as head:6379 or ray://head:10001, "
            f"got {quoted(address)}; name scenes before --ray, or with --image"
        )


class ClusterRun:
    """Scans all images of a run on a cluster, into the journals of its parts."""

    def __init__(self, cluster: Cluster, setup: Setup, backend: Backend, folder: Path, plan: RunPlan) -> None:
        """
        Args:
            backend: the model as it was opened here, for its description.
            folder: of the parts.
        """
        self._cluster, self._setup, self._plan = cluster, setup, plan
        self._jobs, _ = images_only(plan.jobs)
        self._folder = PartsFolder(folder, self._jobs, setup.settings, backend, setup.model_hash)
        self._tiles = self._boxes = 0

    def run(self) -> None:
        """Run the parts that have no result yet.

        Raises:
            ValueError, OSError: Ray cannot be reached, or has no node for a worker; a scene cannot be read and is not
                skipped; the settings do not fit a scene; another run uses the folder.
            ModuleNotFoundError: Ray is not installed.
        """
        folder = self._folder
        with created_folders([folder.path]), folder.claimed("run"):
            count, todo = folder.unfinished(self._count())
            folder.check_others(Part(0, count))
            if not todo:
                return
            with _connected(self._cluster) as workers:
                known = count - len(todo)
                before = f", {known} of them by an earlier run" if known else ""
                logger.info(f"Ray: {plural(count, 'part')}{before}, {workers[0]} to {plural(workers[1], 'worker')}")
                with Bar(count, "part", speed=self._speed) as bar:
                    bar.skip(known)
                    try:
                        for part, data in self._results(todo, workers):
                            self._store(part, *unpack(data))
                            bar.update()
                    except (KeyboardInterrupt, OSError, ValueError):
                        logger.info(f"  finished parts are kept in {folder.path}; the same command continues")
                        raise

    def _count(self) -> int:
        """Return the number of parts: enough to balance the workers, and not so few that one takes long."""
        most = self._cluster.workers[1] if self._cluster.workers else os.cpu_count() or 1
        return min(MOST_PARTS, max(self._folder.weight // PART_BYTES, PARTS_PER_WORKER * most))

    def _speed(self, seconds: float) -> str:
        return f"{self._tiles / seconds:.1f} tiles/s, {plural(self._boxes, 'box')} before stitching"

    def _results(self, todo: list[Part], workers: tuple[int, int]) -> Iterator[tuple[Part, bytes]]:
        """Yield the result of each part, in the order in which they arrive."""
        with needs_extra("ray"):
            import pyarrow as pa
            import ray
            from ray.data import ActorPoolStrategy, DataContext
        context = DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        for name in ("ray.data", "ray"):
            logging.getLogger(name).setLevel(logging.ERROR)
        # The parts are the input itself, not the output of tasks that read them, and the driver writes. So actors that
        # take all CPUs starve nothing; a pool between `read_parquet` and `write_parquet` hangs.
        shares = self._folder.shares(todo[0].count)
        tables = [
            pa.table({"part": [part.number], "scenes": [self._described(shares[part.number - 1])]}) for part in todo
        ]
        keeper = ray.remote(Keeper).options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote()
        results = ray.data.from_arrow(tables).map_batches(
            Worker,
            fn_constructor_args=(self._setup, keeper),
            batch_size=1,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(min_size=workers[0], max_size=workers[1], max_tasks_in_flight_per_actor=2),
            num_cpus=self._cluster.threads,
            num_gpus=self._cluster.gpus or None,
        )
        count = todo[0].count
        for batch in results.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=1):
            yield Part(batch["part"][0].as_py(), count), batch["result"][0].as_py()

    def _described(self, share: list[Span]) -> str:
        """Return the scenes of a part as JSON, for `Worker`."""
        return json.dumps(
            [
                [span.scene, describe(self._jobs[span.scene].source), span.start, span.stop, span.weight]
                for span in share
            ]
        )

    def _store(self, part: Part, error: str, scanned: list[Scanned]) -> None:
        """Write the journals of a part, then its file."""
        if error:
            raise ValueError(error)
        journals, failures = {}, {}
        for each in scanned:
            job = self._jobs[each.scene]
            if each.failure:
                if not self._setup.settings.skip_unreadable:
                    raise DamagedSceneError(f"{each.failure}{SKIP_HINT if len(self._plan.jobs) > 1 else ''}")
                failures[scene_key(job)] = each.failure
            if each.limits is not None:
                self._folder.store_limits(job, each.limits)
            if len(each.piece):
                path = self._write(job, each)
                journals[path.name] = path.stat().st_size
        self._folder.write(part, COMPLETE, {"journals": journals, "failures": failures})

    def _write(self, job: Job, each: Scanned) -> Path:
        path = self._folder.journal(job, each.piece)
        with Journal(path, each.identity, resume=False) as journal:
            for data in each.records:
                record = BatchRecord.from_bytes(data)
                journal.append(record)
                self._tiles += len(record.finished)
                self._boxes += len(record.detections)
            if each.failure:
                journal.fail(each.failure)
            else:
                journal.finish({}, {"unlike": each.unlike})
        return path


@contextmanager
def _connected(cluster: Cluster) -> Iterator[tuple[int, int]]:
    """Connect to Ray, or start it here, for the duration of the block; yield the least and largest number of workers.

    Raises:
        OSError: it cannot be reached.
        ValueError: no node has the resources of a worker.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else every pool of actors that may restart warns
    with needs_extra("ray"):
        import ray
    own = not ray.is_initialized()
    local = cluster.address == LOCAL and "RAY_ADDRESS" not in os.environ
    if own:
        started: dict[str, Any] = {"address": None if cluster.address == LOCAL else cluster.address}
        if local:
            most = cluster.workers[1] if cluster.workers else max(1, (os.cpu_count() or 1) // cluster.threads)
            # One more than the workers take: Ray schedules tasks of its own.
            cpus = max(os.cpu_count() or 1, most * cluster.threads + 1)
            started = {
                "address": LOCAL,
                "num_cpus": cpus,
                "object_store_memory": STORE_BYTES,
                "include_dashboard": False,
            }
        for attempt in range(STARTS if local else 1):
            try:
                ray.init(**started, log_to_driver=False, logging_level=logging.ERROR)
                break
            except Exception as error:  # Ray raises errors of any class
                ray.shutdown()
                if attempt < STARTS - 1 and SLOW_START in str(error) and local:
                    continue
                what, way = (
                    ("Ray cannot be started here", "try again, or use --part")
                    if local
                    else ("no Ray cluster can be reached", "check the address with `ray status`")
                )
                raise OSError(f"--ray {cluster.address}: {what} ({reason(error)}); {way}") from error
    try:
        yield _workers(cluster, ray.cluster_resources(), ray.nodes())
    finally:
        if own:
            ray.shutdown()


def _workers(cluster: Cluster, total: dict[str, float], nodes: list[dict[str, Any]]) -> tuple[int, int]:
    """Return the least and largest number of workers.

    Raises:
        ValueError: no node has the resources of a worker.
    """
    needs = {"CPU": cluster.threads, **({"GPU": cluster.gpus} if cluster.gpus else {})}
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    if not any(all(node.get(name, 0) >= count for name, count in needs.items()) for node in alive):
        wanted = " and ".join(f"{count:g} {name}" for name, count in needs.items())
        raise ValueError(
            f"no node of the Ray cluster has {wanted}, which a worker needs; lower --threads or --gpus-per-worker"
        )
    if cluster.workers is not None:
        return cluster.workers
    return 1, max(1, int(min(total.get(name, 0) // count for name, count in needs.items())))
