"""The host side of the TensorRT backend, against a driver by whose rules nothing happens before it is awaited.

What the GPU does cannot be tested here. What we ask of it can: which memory, which stream, in which order.
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
from tinydet.runtime.backends.cuda_lane import Execution
from tinydet.runtime.backends.tensorrt import TensorRTBackend


@pytest.fixture
def backend(engine: Engine, driver: Driver) -> TensorRTBackend:
    return TensorRTBackend(engine, SPEC, driver, engine.execution(), name="stand-in")


def test_every_batch_up_to_the_largest_gets_the_answers_of_its_tiles(backend: TensorRTBackend) -> None:
    for count in (5, 1, 12, 3, 8, 2):  # a larger one first: what it leaves in the buffers must not show
        images = tiles(count, seed=count)
        assert_equal(backend.run(images), brightest(images))


def test_answers_stay_as_they_are_when_the_next_batch_runs(backend: TensorRTBackend) -> None:
    first = backend.run(tiles(2, seed=1))
    backend.run(tiles(2, seed=2))
    assert_equal(first, brightest(tiles(2, seed=1)))


def test_tiles_need_not_be_contiguous(backend: TensorRTBackend) -> None:
    images = tiles(6)[::2, ::-1]
    assert_equal(backend.run(images), brightest(images))


def test_an_empty_batch_asks_nothing_of_the_gpu(backend: TensorRTBackend, driver: Driver) -> None:
    outputs = backend.run(tiles(0))
    assert [part.shape for part in outputs[:4]] == [(0, SLOTS, 4), (0, SLOTS), (0, SLOTS), (0,)]
    assert [part.dtype for part in outputs[:4]] == [np.float32, np.float32, np.int32, np.int32]
    assert driver.made == 0


def test_copies_and_execution_follow_each_other_on_one_stream_and_are_awaited_once(
    backend: TensorRTBackend, driver: Driver
) -> None:
    backend.run(tiles(3))
    (stream,) = driver.streams
    out = [("copy out", stream)] * 4
    assert driver.calls == [("copy in", stream), ("run", stream), *out, ("wait", stream)]


def test_a_batch_size_that_comes_again_is_one_graph_whatever_came_between(
    backend: TensorRTBackend, driver: Driver
) -> None:
    said = []
    for count in (4, 4, 3, 1, 12, 2, 1, 4):  # three are padded to four
        images = tiles(count, seed=count)
        driver.calls.clear()
        assert_equal(backend.run(images), brightest(images))
        said.append([call[0] for call in driver.calls])
    singly, graph = ["copy in", "run", *["copy out"] * 4, "wait"], ["graph", "wait"]
    assert said == [singly, graph, graph, singly, singly, singly, graph, graph]


def test_each_batch_size_has_a_context_that_is_set_once_and_all_share_one_memory(
    backend: TensorRTBackend, engine: Engine
) -> None:
    for count in (4, 4, 3, 1, 1, 9, 12, 4):
        backend.run(tiles(count))
    assert [context.batches for context in engine.contexts] == [[4], [1], [12]]
    assert len({context.scratch for context in engine.contexts}) == 1


@pytest.mark.parametrize(
    "faults",
    [[(Context, "capturable")], [(Context, "capturable"), (Context, "spoils")], [(Driver, "instantiates")]],
    ids=["spoilt", "refused", "not instantiated"],
)
def test_an_engine_that_cannot_be_captured_runs_without_a_graph(
    backend: TensorRTBackend, driver: Driver, monkeypatch: pytest.MonkeyPatch, faults: list[tuple[type, str]]
) -> None:
    for where, name in faults:
        monkeypatch.setattr(where, name, False)
    for seed in range(4):
        assert_equal(backend.run(tiles(3, seed)), brightest(tiles(3, seed)))
    said = [call[0] for call in driver.calls]
    assert said.count("run") == 4 and "graph" not in said
    assert said.count("forget the error") == 1  # it is tried once
    assert driver.graphs == {}


def test_an_engine_that_captures_by_itself_has_one_context_for_all_sizes(driver: Driver, engine: Engine) -> None:
    execution = Execution(lambda: engine.create_execution_context("of its own"), 0, False)
    backend = TensorRTBackend(engine, SPEC, driver, execution, name="")
    for count in (4, 4, 3, 1, 12, 4):
        images = tiles(count, seed=count)
        assert_equal(backend.run(images), brightest(images))
    assert [context.batches for context in engine.contexts] == [[4, 1, 12, 4]]
    assert "graph" not in [call[0] for call in driver.calls]


def test_the_stages_of_a_run_are_timed_between_events_and_leave_nothing(
    backend: TensorRTBackend, driver: Driver
) -> None:
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


def test_buffers_are_made_once_and_given_back_when_the_thread_ends(backend: TensorRTBackend, driver: Driver) -> None:
    made: list[int] = []

    def work() -> None:
        for count in (1, 12, 3, 12):
            backend.run(tiles(count))
            made.append(driver.made)
        assert driver.graphs

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert made == [12, 12, 12, 12]  # a stream, for five tensors a buffer on either side, what contexts share
    assert driver.memory == driver.streams == driver.graphs == {}


def test_each_thread_has_a_context_and_a_stream_of_its_own(
    backend: TensorRTBackend, engine: Engine, driver: Driver
) -> None:
    answers: dict[int, TileOutputs] = {}
    together = threading.Barrier(3)

    def work(seed: int) -> None:
        together.wait()
        for _ in range(20):
            answers[seed] = backend.run(tiles(3, seed))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, outputs in answers.items():
        assert_equal(outputs, brightest(tiles(3, seed)))
    assert len(engine.contexts) == len({call[-1] for call in driver.calls}) == 3
    assert driver.memory == driver.graphs == {}  # the threads have ended


@pytest.mark.parametrize("images", [tiles(13), tiles(2)[:, :4], tiles(2).astype(np.float32), tiles(2)[..., 0]])
def test_tiles_of_another_kind_are_refused(backend: TensorRTBackend, images: NDArray[Any]) -> None:
    with pytest.raises(ValueError, match=r"expected uint8 tiles \(N, 8, 8, 3\) with N <= 12, got"):
        backend.run(images)


def test_a_failed_allocation_is_reported_and_leaves_nothing_behind(backend: TensorRTBackend, driver: Driver) -> None:
    driver.room = 1000  # the images do not fit
    with pytest.raises(OSError, match=r"CUDA: out of memory \(cudaErrorMemoryAllocation\)"):
        backend.run(tiles(1))
    gc.collect()
    assert driver.memory == {} and driver.streams == {}


def test_a_failed_execution_is_reported(backend: TensorRTBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Context, "execute_async_v3", lambda self, stream: False)
    with pytest.raises(OSError, match="could not run"):
        backend.run(tiles(1))


def test_an_engine_of_other_inputs_or_outputs_is_refused(driver: Driver, engine: Engine) -> None:
    engine.tensors["labels"] = ("INT64", (-1, SLOTS))
    with pytest.raises(ValueError, match=r"INT64 \(N, 4\).*expected.*INT32 \(N, 4\)"):
        TensorRTBackend(engine, SPEC, driver, engine.execution(), name="")


def test_an_engine_for_smaller_batches_than_described_is_refused(driver: Driver, engine: Engine) -> None:
    with pytest.raises(ValueError, match="up to 12 tiles, its description says 16"):
        TensorRTBackend(engine, replace(SPEC, max_batch=16), driver, engine.execution(), name="")
