"""The host side of the TensorRT backend: which memory, stream and order of calls it uses, on a stand-in for the driver.

The stand-in runs work only when its stream is synchronized. The GPU itself is not tested.
"""

from __future__ import annotations

import gc
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cuda_stand_in import SLOTS, SPEC, Context, Driver, Engine, assert_equal, brightest, tiles
from numpy.typing import NDArray

from tinydet.runtime.backends import TileOutputs
from tinydet.runtime.backends.engine_runner import Execution
from tinydet.runtime.backends.tensorrt import TensorRTBackend


@pytest.fixture
def backend(engine: Engine, driver: Driver) -> TensorRTBackend:
    return TensorRTBackend(engine, SPEC, driver, engine.execution(), name="stand-in")


def test_every_batch_size_gets_the_outputs_of_its_tiles(backend: TensorRTBackend) -> None:
    for count in (5, 1, 12, 3, 8, 2):  # a larger one first: its tiles remain in the buffers and must not show
        images = tiles(count, seed=count)
        assert_equal(backend.run(images), brightest(images))


def test_outputs_are_not_overwritten_by_the_next_batch(backend: TensorRTBackend) -> None:
    first = backend.run(tiles(2, seed=1))
    backend.run(tiles(2, seed=2))
    assert_equal(first, brightest(tiles(2, seed=1)))


def test_tiles_need_not_be_contiguous(backend: TensorRTBackend) -> None:
    images = tiles(6)[::2, ::-1]
    assert_equal(backend.run(images), brightest(images))


def test_an_empty_batch_does_not_use_the_gpu(backend: TensorRTBackend, driver: Driver) -> None:
    outputs = backend.run(tiles(0))
    assert [part.shape for part in outputs[:4]] == [(0, SLOTS, 4), (0, SLOTS), (0, SLOTS), (0,)]
    assert [part.dtype for part in outputs[:4]] == [np.float32, np.float32, np.int32, np.int32]
    assert driver.made == 0


def test_copies_and_execution_share_one_stream_and_one_synchronization(
    backend: TensorRTBackend, driver: Driver
) -> None:
    backend.run(tiles(3))
    (stream,) = driver.streams
    out = [("copy out", stream)] * 4
    assert driver.calls == [("copy in", stream), ("run", stream), *out, ("wait", stream)]


def test_a_repeated_batch_size_runs_as_one_cuda_graph(backend: TensorRTBackend, driver: Driver) -> None:
    observed = []
    for count in (4, 4, 3, 1, 12, 2, 1, 4):  # 3 is padded to 4
        images = tiles(count, seed=count)
        driver.calls.clear()
        assert_equal(backend.run(images), brightest(images))
        observed.append([call[0] for call in driver.calls])
    first, graph = ["copy in", "run", *["copy out"] * 4, "wait"], ["graph", "wait"]
    assert observed == [first, graph, graph, first, first, first, graph, graph]


def test_each_batch_size_has_its_own_context_and_all_share_one_memory(backend: TensorRTBackend, engine: Engine) -> None:
    for count in (4, 4, 3, 1, 1, 9, 12, 4):
        backend.run(tiles(count))
    assert [context.batches for context in engine.contexts] == [[4], [1], [12]]
    assert len({context.scratch for context in engine.contexts}) == 1


@pytest.mark.parametrize(
    "faults",
    [[(Context, "capturable")], [(Context, "capturable"), (Context, "spoils")], [(Driver, "instantiates")]],
    ids=["invalidated", "refused", "not instantiated"],
)
def test_an_engine_that_cannot_be_captured_runs_without_a_cuda_graph(
    backend: TensorRTBackend, driver: Driver, monkeypatch: pytest.MonkeyPatch, faults: list[tuple[type, str]]
) -> None:
    for where, name in faults:
        monkeypatch.setattr(where, name, False)
    for seed in range(4):
        assert_equal(backend.run(tiles(3, seed)), brightest(tiles(3, seed)))
    calls = [call[0] for call in driver.calls]
    assert calls.count("run") == 4 and "graph" not in calls
    assert calls.count("clear the error") == 1  # one attempt
    assert driver.graphs == {}


def test_an_engine_that_captures_graphs_itself_has_one_context(driver: Driver, engine: Engine) -> None:
    execution = Execution(lambda: engine.create_execution_context("own memory"), 0, False)
    backend = TensorRTBackend(engine, SPEC, driver, execution, name="")
    for count in (4, 4, 3, 1, 12, 4):
        images = tiles(count, seed=count)
        assert_equal(backend.run(images), brightest(images))
    assert [context.batches for context in engine.contexts] == [[4, 1, 12, 4]]
    assert "graph" not in [call[0] for call in driver.calls]


def test_stages_are_timed_by_events_which_are_freed(backend: TensorRTBackend, driver: Driver) -> None:
    for _ in range(2):
        backend.run(tiles(3))
        assert backend.stage_times(tiles(3)) == {"copy in": 1.0, "execute": 1.0, "copy out": 1.0}
    assert driver.marks == {}
    with pytest.raises(ValueError, match="nothing to time"):
        backend.stage_times(tiles(0))


def test_a_batch_smaller_than_the_profile_is_padded_to_it(driver: Driver, engine: Engine) -> None:
    engine.smallest = 4
    images = tiles(1)
    backend = TensorRTBackend(engine, SPEC, driver, engine.execution(), name="")
    assert_equal(backend.run(images), brightest(images))
    assert engine.contexts[0].batches == [4]


def test_buffers_are_allocated_once_and_freed_with_the_thread(backend: TensorRTBackend, driver: Driver) -> None:
    made: list[int] = []

    def work() -> None:
        for count in (1, 12, 3, 12):
            backend.run(tiles(count))
            made.append(driver.made)
        assert driver.graphs

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert made == [
        12,
        12,
        12,
        12,
    ]  # a stream, a host and a device buffer for each of five tensors, and the shared memory of the contexts
    assert driver.memory == driver.streams == driver.graphs == {}


def test_each_thread_has_its_own_context_and_stream(backend: TensorRTBackend, engine: Engine, driver: Driver) -> None:
    outputs_of: dict[int, TileOutputs] = {}
    together = threading.Barrier(3)

    def work(seed: int) -> None:
        together.wait()
        for _ in range(20):
            outputs_of[seed] = backend.run(tiles(3, seed))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, outputs in outputs_of.items():
        assert_equal(outputs, brightest(tiles(3, seed)))
    assert len(engine.contexts) == len({call[-1] for call in driver.calls}) == 3
    assert driver.memory == driver.graphs == {}  # the threads have ended


@pytest.mark.parametrize("images", [tiles(13), tiles(2)[:, :4], tiles(2).astype(np.float32), tiles(2)[..., 0]])
def test_tiles_of_another_shape_or_type_are_refused(backend: TensorRTBackend, images: NDArray[Any]) -> None:
    with pytest.raises(ValueError, match=r"expected uint8 tiles \(N, 8, 8, 3\) with N <= 12, got"):
        backend.run(images)


def test_a_failed_allocation_is_reported_and_frees_the_others(backend: TensorRTBackend, driver: Driver) -> None:
    driver.room = 1000  # the images do not fit
    with pytest.raises(OSError, match=r"CUDA: out of memory \(cudaErrorMemoryAllocation\)"):
        backend.run(tiles(1))
    gc.collect()
    assert driver.memory == {} and driver.streams == {}


def test_a_failed_execution_is_reported(backend: TensorRTBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Context, "execute_async_v3", lambda self, stream: False)
    with pytest.raises(OSError, match="could not run"):
        backend.run(tiles(1))


def test_an_engine_with_other_inputs_or_outputs_is_refused(driver: Driver, engine: Engine) -> None:
    engine.tensors["labels"] = ("INT64", (-1, SLOTS))
    with pytest.raises(ValueError, match=r"INT64 \(N, 4\).*expected.*INT32 \(N, 4\)"):
        TensorRTBackend(engine, SPEC, driver, engine.execution(), name="")


def test_an_engine_for_smaller_batches_than_its_spec_is_refused(driver: Driver, engine: Engine) -> None:
    with pytest.raises(ValueError, match="up to 12 tiles, its description says 16"):
        TensorRTBackend(engine, replace(SPEC, max_batch=16), driver, engine.execution(), name="")
