"""What an actor on a cluster does: open the model once, scan the tiles of its parts, and return their records.

Windows are read here and boxes are returned, so no pixels pass through Ray. An actor writes no files.
"""

from __future__ import annotations

import dataclasses
import json
import os
import struct
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinydet._internal.errors import is_out_of_memory, reason
from tinydet._internal.extras import needs_extra
from tinydet._internal.input_files import hash_file
from tinydet.infer.jobs import Job, RunPlan
from tinydet.infer.scenes import InferenceRun, KnownRecords
from tinydet.infer.settings import Settings
from tinydet.runtime.backends import Backend, open_model
from tinydet.runtime.journal import BatchRecord
from tinydet.runtime.model_files import local_model
from tinydet.runtime.pieces import Piece, Span, piece_of
from tinydet.runtime.plan import ScanPlan
from tinydet.runtime.scan import scan_scenes
from tinydet.runtime.scenes import DamagedSceneError, open_scene
from tinydet.runtime.scenes.pixels import KeptLimits, Limits
from tinydet.runtime.scenes.sources import Source, is_stream

HEAD = struct.Struct("<I")  # bytes of the JSON in front of the records
MOST_DEATHS = 2  # of workers in one part, then in one scene of it, until the scene is given up


@dataclass(frozen=True)
class Setup:
    """What an actor needs to start; small, because Ray keeps it for restarts.

    Attributes:
        model: path of the model file, the same on every node, or its address in a store.
        model_hash: its SHA-256.
        backend, tile, threads: as for `open_model`.
    """

    model: Path
    model_hash: str
    backend: str
    tile: int | None
    threads: int
    settings: Settings


@dataclass
class Scanned:
    """The records of one piece of a scene.

    Attributes:
        scene: index of the scene in the run.
        piece: its tiles; empty if the scene could not be opened.
        identity: what the records depend on, see `Journal`.
        records: as `BatchRecord.to_bytes` returns them.
        unlike: how the scene differs from the training images of the model; only of the first piece.
        failure: why the scene cannot be read, or not any further; else empty.
        limits: of the stretch, if the scene is a raster of more than 8 bits.
    """

    scene: int
    piece: Piece = field(default_factory=lambda: Piece(0, 0))
    identity: dict[str, Any] = field(default_factory=dict)
    records: list[bytes] = field(default_factory=list)
    unlike: str = ""
    failure: str = ""
    limits: Limits | None = None


class Keeper:
    """One actor for all workers: it counts how often a part was begun, and has each stretch measured once."""

    def __init__(self) -> None:
        self._begun: Counter[Hashable] = Counter()
        self._limits: dict[str, Any] = {}

    def begin(self, key: Hashable) -> int:
        """Return how often a part, or a scene of it, was begun before: so many workers died while they scanned it."""
        self._begun[key] += 1
        return self._begun[key] - 1

    def end(self, key: Hashable) -> None:
        """Forget how often a scene was begun, because a worker has finished it."""
        del self._begun[key]

    def limits(self, path: str, stretch: tuple[float, float], bands: tuple[int, ...] | None) -> list[Any]:
        """Return a reference to the limits of a scene, or to None if it cannot be read; a task measures them once."""
        with needs_extra("ray"):
            import ray
        if path not in self._limits:
            task = ray.remote(_measured).options(num_cpus=0, max_retries=3)
            self._limits[path] = task.remote(path, stretch, bands)
        return [self._limits[path]]


class Worker:
    """The class that Ray Data calls with one part at a time."""

    def __init__(self, setup: Setup, keeper: Any) -> None:
        """
        Args:
            keeper: handle of the `Keeper`.
        """
        self._setup, self._keeper = setup, keeper
        self._error = ""
        try:
            model = local_model(setup.model)
            found = hash_file(model)
            if found != setup.model_hash:
                raise ValueError(
                    f"{setup.model} on a worker differs from the driver's file; copy it to all nodes again"
                )
            self._backend: Backend | None = open_model(model, setup.backend, tile=setup.tile, threads=setup.threads)
        except (ValueError, OSError, ImportError) as error:  # Ray would start the actor again and again
            self._backend, self._error = None, str(error)

    def __call__(self, table: Any) -> Any:
        """Scan the part of a table with one row: `part` and `scenes`. Return its `result`, see `unpack`."""
        with needs_extra("ray"):
            import pyarrow as pa
        (row,) = table.to_pylist()
        result = pack(self._error, []) if self._error else self._scan(row["part"], json.loads(row["scenes"]))
        return pa.table({"part": [row["part"]], "result": pa.array([result], pa.large_binary())})

    def _scan(self, part: int, scenes: Sequence[Any]) -> bytes:
        assert self._backend is not None
        with needs_extra("ray"):
            import ray
        share = [
            (index, source_of(source), Span(index, start, stop, weight))
            for index, source, start, stop, weight in scenes
        ]
        run = ShareRun(self._backend, self._setup, self._shared_limits)
        try:
            if ray.get(self._keeper.begin.remote(part)) <= MOST_DEATHS:
                return pack("", run.scan(share))
            found = []  # one scene after the other, to find the one that kills the workers
            for index, source, span in share:
                if ray.get(self._keeper.begin.remote((part, index))) > MOST_DEATHS:
                    why = (
                        f"{source.label}: every worker that scanned it died, maybe of lack of memory; use fewer workers"
                    )
                    found.append(Scanned(index, failure=why))
                else:
                    found += run.scan([(index, source, span)])
                    # The next scene of the part may kill this worker, and the one after it begins with this scene.
                    ray.get(self._keeper.end.remote((part, index)))
            return pack("", found)
        except (ValueError, OSError, ImportError) as error:
            return pack(str(error), [])
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return pack(f"{share[0][1].label}: {reason(error)}", [])

    def _shared_limits(self, source: Source) -> Limits | None:
        with needs_extra("ray"):
            import ray
        settings = self._setup.settings
        assert self._backend is not None
        (ref,) = ray.get(self._keeper.limits.remote(source.location, self._backend.spec.stretch, settings.bands))
        limits = ray.get(ref)
        assert limits is None or isinstance(limits, Limits)
        return limits


class ShareRun(InferenceRun):
    """Scans pieces of scenes into memory."""

    def __init__(self, backend: Backend, setup: Setup, shared_limits: Callable[[Source], Limits | None]) -> None:
        """
        Args:
            shared_limits: returns the limits of a scene that other workers scan too.
        """
        super().__init__(backend, setup.model_hash, dataclasses.replace(setup.settings, resume=False))
        self._shared_limits = shared_limits
        self._spans: dict[Job, Span] = {}
        self._scanned: dict[Job, Scanned] = {}

    def scan(self, share: Sequence[tuple[int, Source, Span]]) -> list[Scanned]:
        """Run the tiles of some spans of scenes.

        Args:
            share: index of the scene in the run, the scene, and the span.

        Raises:
            ValueError, OSError: the settings do not fit a scene, or the model returns invalid outputs.
        """
        jobs = {Job(source, (), None, None, None): (index, span) for index, source, span in share}
        self._spans = {job: span for job, (_, span) in jobs.items()}
        self._scanned = {job: Scanned(index) for job, (index, _) in jobs.items()}
        plan = RunPlan(list(jobs))
        scans = scan_scenes(
            self._backend,
            jobs,
            lambda job: self._open(job, plan),
            self._settings.options,
        )
        with closing(scans):
            for job, results in scans:
                try:
                    self._scanned[job].unlike = getattr(results.scan, "unlike", "")
                    for _ in results:
                        pass
                except DamagedSceneError as error:
                    self._scanned[job].failure = str(error)
        return list(self._scanned.values())

    def _records(self, job: Job, plan: ScanPlan, identity: dict[str, Any], stack: ExitStack) -> KnownRecords:
        scanned, piece = self._scanned[job], piece_of(self._spans[job], plan)
        scanned.piece, scanned.identity = piece, {**identity, "piece": [piece.start, piece.stop]}
        return KnownRecords(_Memory(scanned.records), 0, piece, None if len(piece) and piece.start == 0 else "")

    def _limits(self, job: Job) -> KeptLimits:
        def limits(measure: Callable[[], Limits]) -> Limits:
            shared = None if self._spans[job].whole else self._shared_limits(job.source)
            found = self._scanned[job].limits = measure() if shared is None else shared
            return found

        return limits


class _Memory:
    """Keeps the records of a scan in memory."""

    def __init__(self, kept: list[bytes]) -> None:
        self._kept = kept

    def records(self, pass_index: int = 0) -> Iterator[BatchRecord]:
        return iter(())

    def append(self, record: BatchRecord) -> None:
        self._kept.append(record.to_bytes())


def pack(error: str, scanned: Sequence[Scanned]) -> bytes:
    """Return the result of a part as bytes: JSON, then the records.

    Args:
        error: why the part cannot be scanned by any worker; else empty.
    """
    entries = [
        {
            "scene": each.scene,
            "piece": [each.piece.start, each.piece.stop],
            "identity": each.identity,
            "records": [len(record) for record in each.records],
            "unlike": each.unlike,
            "failure": each.failure,
            "limits": None if each.limits is None else [each.limits.low, each.limits.high],
        }
        for each in scanned
    ]
    head = json.dumps({"error": error, "scanned": entries}).encode()
    return b"".join([HEAD.pack(len(head)), head, *(record for each in scanned for record in each.records)])


def unpack(data: bytes) -> tuple[str, list[Scanned]]:
    """Return what `pack` was given."""
    (length,) = HEAD.unpack_from(data)
    position = HEAD.size + length
    content = json.loads(data[HEAD.size : position])
    scanned = []
    for entry in content["scanned"]:
        records = []
        for size in entry["records"]:
            records.append(data[position : position + size])
            position += size
        limits = entry["limits"] and Limits(*map(tuple, entry["limits"]))
        scanned.append(
            Scanned(
                entry["scene"],
                Piece(*entry["piece"]),
                entry["identity"],
                records,
                entry["unlike"],
                entry["failure"],
                limits,
            )
        )
    return content["error"], scanned


def describe(source: Source) -> dict[str, Any]:
    """Return a source as JSON values, for `Worker`, which runs in another folder and writes no outputs."""
    location = source.location if is_stream(source.location) else os.path.abspath(source.location)
    return {**dataclasses.asdict(dataclasses.replace(source, item=None)), "location": location}


def source_of(values: dict[str, Any]) -> Source:
    """Return the source that `describe` was given, without its STAC item."""
    for name in ("size", "corner", "listed"):
        values[name] = values[name] if values[name] is None else tuple(values[name])
    return Source(**values)


def _measured(path: str, stretch: tuple[float, float], bands: tuple[int, ...] | None) -> Limits | None:
    """Measure the limits of a scene; None if it cannot be read, which is reported where it is scanned."""
    found: list[Limits] = []

    def keep(measure: Callable[[], Limits]) -> Limits:
        found.append(measure())
        return found[0]

    try:
        open_scene(path, stretch=stretch, bands=bands, limits=keep).close()
    except (ValueError, OSError):
        return None
    return found[0] if found else None
