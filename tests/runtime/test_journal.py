from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tinydet.runtime.backends import TileOutputs
from tinydet.runtime.detections import Detections
from tinydet.runtime.journal import BATCH, DONE, FRAME, BatchRecord, Journal
from tinydet.runtime.options import ScanOptions
from tinydet.runtime.plan import plan_scan
from tinydet.runtime.scan import collect, detect_scene, scan
from tinydet.runtime.scenes import open_scene

IDENTITY = {"scene": "a.tif", "scale": 0.5, "tile": 64}


def boxes(seed: int, count: int = 3) -> BatchRecord:
    rng = np.random.default_rng(seed)
    return BatchRecord(
        np.arange(seed, seed + 2),
        np.array([90 + seed]),
        np.array([], np.int64),
        Detections(
            rng.uniform(0, 100, (count, 4)),
            rng.uniform(0, 1, count).astype(np.float32),
            rng.integers(0, 5, count, dtype=np.int32),
            {"tile": np.full(count, seed)},
        ),
        seed,
        seed % 2,
    )


def equal(one: BatchRecord, two: BatchRecord) -> bool:
    return one.to_bytes() == two.to_bytes() and all(
        np.array_equal(getattr(one.detections, name), getattr(two.detections, name))
        for name in ("boxes", "scores", "labels", "tiles")
    )


def test_records_are_read_back_by_pass(tmp_path: Path) -> None:
    written = [boxes(seed, count) for seed, count in ((0, 3), (1, 0), (2, 7), (3, 1))]
    with Journal(tmp_path / "j", IDENTITY, resume=False) as journal:
        assert not (tmp_path / "j").exists()  # created with the first record
        for found in written:
            journal.append(found)
    with Journal(tmp_path / "j", IDENTITY, resume=True) as journal:
        assert journal.outputs is None
        for number in (0, 1):
            read = list(journal.records(number))
            assert all(equal(a, b) for a, b in zip(read, written[number::2], strict=True))


def test_only_an_incomplete_record_is_lost_and_writing_continues(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", IDENTITY, resume=False) as journal:
        journal.append(boxes(0))
        whole = (tmp_path / "j").stat().st_size
        journal.append(boxes(2))
    data = (tmp_path / "j").read_bytes()
    head = data.index(b"\n") + 1
    for end in range(head):
        (tmp_path / "j").write_bytes(data[:end])
        with Journal(tmp_path / "j", IDENTITY, resume=True) as journal:
            assert list(journal.records()) == []
            journal.append(boxes(0))
        assert (tmp_path / "j").read_bytes() == data[:whole]
    for end in range(whole, len(data)):
        (tmp_path / "j").write_bytes(data[:end])
        with Journal(tmp_path / "j", IDENTITY, resume=True) as journal:
            assert [record.pass_index for record in journal.records()] == [0]
            journal.append(boxes(4))
            assert len(list(journal.records())) == 2
    (tmp_path / "j").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with Journal(tmp_path / "j", IDENTITY, resume=True) as journal:
        assert len(list(journal.records())) == 1


def test_other_settings_are_refused_by_name_and_a_fresh_start_deletes_the_old_journal(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", IDENTITY, resume=False) as journal:
        journal.append(boxes(0))
    with pytest.raises(ValueError, match=r"other settings \(scale was 0.5\); use the same ones, or start again"):
        Journal(tmp_path / "j", {**IDENTITY, "scale": 1.0}, resume=True)
    with Journal(tmp_path / "j", {**IDENTITY, "scale": 1.0}, resume=False) as journal:
        assert list(journal.records()) == []
    (tmp_path / "j").write_text("something else\n")
    with pytest.raises(ValueError, match="not a journal of an interrupted run; move it away"):
        Journal(tmp_path / "j", IDENTITY, resume=True)


def test_a_second_run_cannot_write_the_same_journal(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", IDENTITY, resume=False) as journal:
        journal.append(boxes(0))
        for resume in (True, False):
            with pytest.raises(OSError, match="another run is processing this scene"):
                Journal(tmp_path / "j", IDENTITY, resume=resume)
        assert len(list(journal.records())) == 1


def test_a_complete_scene_names_the_files_that_were_written(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", IDENTITY, resume=False) as journal:
        journal.append(boxes(0))
        journal.finish({"a.json": "abc"}, {"boxes": 3})
    with Journal(tmp_path / "j", IDENTITY, resume=True) as journal:
        assert journal.outputs == {"a.json": "abc"}
        assert journal.counts == {"boxes": 3}
        assert len(list(journal.records())) == 1


class PowerCut(Exception):
    pass


@pytest.mark.parametrize("sizes", [None, (4.0, 10.0, 30.0)], ids=["one pass", "with a coarse pass"])
def test_a_run_that_is_interrupted_repeatedly_gives_the_result_of_an_uninterrupted_one(
    white_squares: Callable, tmp_path: Path, sizes: tuple | None
) -> None:
    rng = np.random.default_rng(0)
    pixels = np.zeros((400, 300, 3), np.uint8)
    for x, y in rng.integers(0, 280, (60, 2)):
        pixels[y : y + 9, x : x + 7] = 255
    pixels[330:360, 40:75] = 255
    options = ScanOptions(overlap=32, batch=2)
    backend, scene = white_squares(object_sizes=sizes), open_scene(pixels)
    expected = detect_scene(backend, scene, options)
    batches = len(backend.batches)

    def cut(images: np.ndarray) -> TileOutputs:
        if len(backend.batches) - before == 7:
            raise PowerCut
        outputs: TileOutputs = run(images)
        return outputs

    backend = white_squares(object_sizes=sizes)
    run, backend.run = backend.run, cut
    for _ in range(20):
        before = len(backend.batches)
        with Journal(tmp_path / "j", IDENTITY, resume=True) as journal:
            try:
                result = collect(scan(backend, scene, plan_scan(scene, backend.spec, options), journal=journal))
            except PowerCut:
                continue
            break
    assert len(backend.batches) <= batches + 6  # interruptions make some batches smaller, but no tile runs twice
    assert sum(backend.batches) == result.tiles == expected.tiles
    for name in ("boxes", "scores", "labels", "tiles", "seam_distance"):
        assert np.array_equal(getattr(result.detections, name), getattr(expected.detections, name))


@pytest.mark.parametrize(
    "line", [b"[" * 9999, b"[]", b"5", b'{"a": ' + b"9" * 5000 + b"}", b'{"a": "\\ud800"}', b"\xff"]
)
def test_a_first_line_of_another_program_is_refused_in_one_line(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "j").write_bytes(line + b"\n")
    with pytest.raises(ValueError, match=r"j: [^\n]*not a journal of an interrupted run; move it away$"):
        Journal(tmp_path / "j", IDENTITY, resume=True)


def test_a_pipe_or_folder_in_place_of_a_journal_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, message in ((tmp_path / "pipe", "a pipe or device"), (tmp_path, "a folder, not a file")):
        for resume in (False, True):
            with pytest.raises(OSError, match=message):
                Journal(path, IDENTITY, resume=resume)


def with_record(path: Path, mark: bytes, data: bytes) -> None:
    """Append a record whose checksum is right."""
    with Journal(path, IDENTITY, resume=False) as journal:
        journal.append(BatchRecord())
        journal._append(mark, data)


@pytest.mark.parametrize("data", [b"", b"1234", b"\xff" * 24, b"\x00" * 23])
def test_a_record_that_another_program_wrote_is_refused(tmp_path: Path, data: bytes) -> None:
    with_record(tmp_path / "j", BATCH, data)
    with (
        Journal(tmp_path / "j", IDENTITY, resume=True) as journal,
        pytest.raises(ValueError, match="j: a damaged record"),
    ):
        journal.tiles()
    with_record(tmp_path / "j", FRAME, data)
    with (
        Journal(tmp_path / "j", IDENTITY, resume=True) as journal,
        pytest.raises(ValueError, match="j: a damaged record"),
    ):
        list(journal.frames())
    with_record(tmp_path / "j", DONE, data)
    with pytest.raises(ValueError, match="j: a damaged record"):
        Journal(tmp_path / "j", IDENTITY, resume=True)


@pytest.mark.parametrize(
    "record",
    [
        BatchRecord(tiles=np.array([10**6])),
        BatchRecord(empty=np.array([-1])),
        dataclasses.replace(boxes(0), tiles=np.array([0]), empty=np.array([1])),  # five classes, the model has two
        BatchRecord(detections=Detections(np.full((1, 4), np.nan), np.ones(1, np.float32), np.zeros(1, np.int32))),
    ],
)
def test_a_record_that_the_scene_cannot_have_is_refused(
    white_squares: Callable, tmp_path: Path, record: BatchRecord
) -> None:
    scene, backend = open_scene(np.zeros((100, 100, 3), np.uint8)), white_squares()
    plan = plan_scan(scene, backend.spec, ScanOptions(overlap=8, coarse=None))
    with Journal(tmp_path / "j", IDENTITY, resume=False) as journal:
        journal.append(record)
        with pytest.raises(ValueError, match="impossible tiles or boxes"):
            collect(scan(backend, scene, plan, journal=journal))
