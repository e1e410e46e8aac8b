"""Functions from tiles to boxes: the forms of their results, what `load` says of them, and what is wrong with them."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from tinydet.runtime import Model, detect, load
from tinydet.runtime.backends import check_outputs
from tinydet.runtime.backends.function import FunctionBackend, describe_function
from tinydet.spec import ModelSpec

Parts = tuple[np.ndarray, np.ndarray, np.ndarray]
TILE = 64


def found_on(count: int, seed: int) -> list[Parts]:
    """Random boxes of some tiles, two of three tiles without any."""
    rng = np.random.default_rng(seed)
    tiles = []
    for _ in range(count):
        each = int(rng.integers(0, 4)) * int(rng.integers(0, 2))
        corner = rng.uniform(0, 40, (each, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(1, 20, (each, 2))], axis=1)
        tiles.append((boxes, rng.uniform(0.1, 1, each), rng.integers(0, 3, each)))
    return tiles


def padded(tiles: list[Parts]) -> Parts:
    most = max(len(boxes) for boxes, _, _ in tiles)
    boxes, scores = np.full((len(tiles), most, 4), np.nan), np.zeros((len(tiles), most))
    labels = np.full((len(tiles), most), -1)
    for i, parts in enumerate(tiles):
        for target, values in zip((boxes, scores, labels), parts, strict=True):
            target[i, : len(values)] = values
    return boxes, scores, labels


def named(parts: Any) -> dict[str, Any]:
    return dict(zip(("labels", "boxes", "scores"), (parts[2], parts[0], parts[1]), strict=True))


def rows(parts: Parts) -> np.ndarray:
    return np.concatenate([parts[0], parts[1][:, None], parts[2][:, None]], axis=1)


def lists(parts: Parts) -> list[Any]:
    return [values.tolist() for values in parts]


def tensors(parts: Parts) -> tuple[Any, ...]:
    torch = pytest.importorskip("torch")
    boxes, scores, labels = (torch.from_numpy(values) for values in parts)
    return boxes.requires_grad_(), scores, labels


FORMS: dict[str, Callable[[list[Parts]], Any]] = {
    "tuples": list,
    "a tuple of tuples": tuple,
    "a generator": iter,
    "lists of numbers": lambda tiles: [lists(parts) for parts in tiles],
    "dicts": lambda tiles: [named(parts) for parts in tiles],
    "dicts of tensors": lambda tiles: [named(tensors(parts)) for parts in tiles],
    "rows": lambda tiles: [rows(parts) for parts in tiles],
    "rows as lists": lambda tiles: [rows(parts).tolist() for parts in tiles],
    "three padded arrays": padded,
    "a list of padded arrays": lambda tiles: list(padded(tiles)),
    "a dict of padded arrays": lambda tiles: named(padded(tiles)),
    "padded tensors": lambda tiles: tensors(padded(tiles)),
    "three lists of arrays": lambda tiles: tuple(map(list, zip(*tiles, strict=True))),
    "three lists of lists": lambda tiles: list(map(list, zip(*map(lists, tiles), strict=True))),
    "a dict of lists of tensors": lambda tiles: named(list(map(list, zip(*map(tensors, tiles), strict=True)))),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_result_says_the_same(form: str) -> None:
    spec = describe_function(found_on, classes=["a", "b", "c"], tile=TILE, spec={"score_floor": 0.3})
    for count, seed in itertools.product((1, 2, 3, 4), range(8)):
        tiles = found_on(count, seed)
        outputs = FunctionBackend(lambda _, tiles=tiles: FORMS[form](tiles), spec).run(images(count))
        check_outputs(outputs, spec, count, name="test")
        for i, (boxes, scores, labels) in enumerate(tiles):
            order = [k for k in np.argsort(-scores) if scores[k] >= 0.3]
            n = len(order)
            assert outputs.candidates[i] == n == (outputs.labels[i] >= 0).sum()
            np.testing.assert_array_equal(outputs.boxes[i, :n], boxes[order].astype(np.float32))
            np.testing.assert_array_equal(outputs.scores[i, :n], scores[order].astype(np.float32))
            np.testing.assert_array_equal(outputs.labels[i, :n], labels[order])


def images(count: int) -> np.ndarray:
    return np.zeros((count, TILE, TILE, 3), np.uint8)


def test_half_precision_tensors_are_read() -> None:
    torch = pytest.importorskip("torch")
    box, score, label = torch.tensor([[1, 2, 5, 6]]), torch.tensor([0.5]), torch.tensor([2])
    spec = describe_function(found_on, classes=["a", "b", "c"], tile=TILE)
    for kind in (torch.bfloat16, torch.float16):
        run = FunctionBackend(lambda _, kind=kind: [(box.to(kind), score.to(kind), label)], spec).run
        assert run(images(1)).boxes.tolist() == [[[1, 2, 5, 6]]]
    run = FunctionBackend(lambda _: [([*box], [*score], [*label])], spec).run  # lists of tensors of one box
    assert run(images(1)).labels.tolist() == [[2]]


@pytest.fixture
def scene() -> np.ndarray:
    """White squares and bars on black."""
    pixels = np.zeros((200, 330, 3), np.uint8)
    for x, y, width, height in (
        (20, 30, 10, 10),
        (60, 60, 10, 10),
        (120, 80, 8, 8),
        (300, 180, 9, 9),
        (90, 150, 20, 6),
    ):
        pixels[y : y + height, x : x + width] = 255
    return pixels


@pytest.fixture
def whites(white_squares: Callable) -> Callable[[np.ndarray], list[Any]]:
    """The white squares of each tile, as a user would return them."""
    backend = white_squares(max_batch=100)

    def find(tiles: np.ndarray) -> list[Any]:
        outputs = backend.run(tiles)
        tiles[:] = 77  # it may change what it was given
        good = outputs.labels >= 0
        return [(outputs.boxes[i, row], outputs.scores[i, row], outputs.labels[i, row]) for i, row in enumerate(good)]

    find.batches = backend.batches  # type: ignore[attr-defined]
    return find


def test_a_function_finds_what_the_same_backend_finds(whites: Callable, white_squares: Callable, scene: Any) -> None:
    expected = Model(white_squares(), overlap=16).detect(scene)
    names = {0: "square", 1: "bar"}
    for classes in (["square", "bar"], ("square", "bar"), np.array(["square", "bar"]), names):
        found = load(whites, classes=classes, tile=64, overlap=16).detect(scene)
        assert len(found) == 5
        np.testing.assert_array_equal(found.boxes, expected.boxes)
        np.testing.assert_array_equal(found.scores, expected.scores)
        assert found.class_names.tolist() == expected.class_names.tolist()
    assert {one["category_id"] for one in found.to_coco()} == {1, 2}
    assert len(detect(whites, scene, classes=names, tile=64, overlap=16)) == 5


def test_a_backend_is_loaded_as_it_is(white_squares: Callable, scene: np.ndarray) -> None:
    backend = white_squares()
    model = load(backend, overlap=16)
    assert model.backend is backend and len(model.detect(scene)) == 5


def test_the_function_gets_up_to_a_batch_of_tiles(whites: Callable, scene: np.ndarray) -> None:
    model = load(whites, classes=["square", "bar"], tile=64, overlap=16, batch=20)
    model.detect(scene)
    assert max(whites.batches) == 20  # type: ignore[attr-defined]


def test_two_threads_never_run_the_function_at_once(scene: np.ndarray) -> None:
    active, most = [0], [0]

    def slow(tiles: np.ndarray) -> list[Any]:
        active[0] += 1
        most[0] = max(most[0], active[0])
        time.sleep(0.002)
        active[0] -= 1
        return [[]] * len(tiles)

    model = load(slow, classes=["a"], tile=64, overlap=16)
    threads = [threading.Thread(target=model.detect, args=(scene,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]


TWINS = ([(10, 10, 20, 20), (11, 10, 21, 20), (10, 10, 20, 20)], [0.9, 0.8, 0.7], [0, 0, 1])


def test_boxes_of_a_tile_suppress_each_other_only_if_asked() -> None:
    pixels = np.zeros((64, 64, 3), np.uint8)
    for changes, count in (({}, 3), ({"nms_iou": 0.5}, 2), ({"nms_iou": 0.9}, 3), ({"spec": {"nms_iou": 0.5}}, 2)):
        model = load(lambda _: [TWINS], classes=["a", "b"], tile=64, **changes)
        assert len(model.detect(pixels)) == count


def test_a_tile_with_as_many_boxes_as_the_function_can_return_is_saturated() -> None:
    pixels = np.zeros((64, 64, 3), np.uint8)
    for limit, score, saturated, count in (
        (2, 0.3, 1, 2),
        (3, 0.3, 1, 3),
        (3, 0.75, 0, 2),
        (4, 0.3, 0, 3),
        (None, 0.3, 0, 3),
    ):
        spec = {} if limit is None else {"max_detections": limit}
        found = load(lambda _: [TWINS], classes=["a", "b"], tile=64, spec=spec, score=score).detect(pixels)
        assert (found.result.saturated, len(found)) == (saturated, count)


def test_an_exception_of_the_function_is_the_cause_of_one_clear_line(scene: np.ndarray) -> None:
    def fails(tiles: np.ndarray) -> Any:
        raise KeyError("weights\nmissing")

    def fails_later(tiles: np.ndarray) -> Iterator[Any]:
        yield TWINS
        fails(tiles)

    for function in (fails, fails_later):
        with pytest.raises(RuntimeError) as caught:
            load(function, classes=["a", "b"], tile=64, overlap=16).detect(scene)
        assert isinstance(caught.value.__cause__, KeyError)
        start = rf"^function {function.__name__} raised KeyError on tiles \(4, 64, 64, 3\): .*missing"
        assert caught.match(start) and "\n" not in str(caught.value)


def test_ctrl_c_in_the_function_stops_the_scan(scene: np.ndarray) -> None:
    def interrupted(tiles: np.ndarray) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load(interrupted, classes=["a"], tile=64).detect(scene)


BOX = [1, 2, 5, 6]
WRONG_RESULTS: dict[str, tuple[Any, str]] = {
    "nothing": (None, "got None; does the function end with `return`"),
    "a number": (3, "2 entries, got 3"),
    "a text": ("ab", "2 entries, got 'ab'"),
    "no tile": ([], "2 entries, got a list of shape"),
    "one tile": (([BOX], [0.9], [0]), "2 entries, got a tuple"),
    "too many tiles": ([[], [], [], []], "2 entries, got a list"),
    "a dict without labels": ({"boxes": [[], []], "scores": [[], []]}, "2 entries, got a dict of boxes, scores"),
    "a tile without labels": ([{"boxes": []}] * 2, "tile 0 of the batch: expected scores and labels, got the keys"),
    "texts": (["ab", "cd"], r"tile 0 of the batch: expected \(boxes, scores, labels\) or rows \(M, 6\), got 'ab'"),
    "no labels": ([([BOX], [0.9])] * 2, "tile 0 of the batch: expected"),
    "rows of five": ([np.zeros((3, 5))] * 2, r"got a ndarray of shape \(3, 5\)"),
    "a flat box": ([(BOX, [0.9], [0])] * 2, r"boxes: expected \(M, 4\), got \(4,\)"),
    "more scores than boxes": ([[], ([BOX], [0.9, 0.8], [0])], r"tile 1 of the batch: scores: expected \(1,\)"),
    "words": ([([["a", "b", "c", "d"]], [0.9], [0])] * 2, "tile 0 of the batch: boxes: expected numbers"),
    "ragged": ([([BOX, BOX[:3]], [0.9, 0.9], [0, 0])] * 2, "boxes: cannot be converted to an array"),
    "width and height": (
        [([[30, 30, 9, 9]], [0.9], [0])] * 2,
        r"not x, y, width, height, got \[30.0, 30.0, 9.0, 9.0\]",
    ),
    "NaN": ([([[1, 2, np.nan, 6]], [0.9], [0])] * 2, "boxes: expected finite numbers, got"),
    "logits": ([([BOX], [3.5], [0])] * 2, "scores: expected probabilities from 0 to 1, .* got 3.5"),
    "a NaN score": ([([BOX], [np.nan], [0])] * 2, "scores: expected probabilities"),
    "a label too many": ([([BOX], [0.9], [2])] * 2, "labels: expected 0 to 1, .*background first, got 2"),
    "a broken label": ([([BOX], [0.9], [0.5])] * 2, "labels: expected integers, got 0.5"),
    "fractions": ([([[0.1, 0.2, 0.3, 0.4]], [0.9], [0])] * 2, "expected pixels, 0 to 64, got fractions"),
}


@pytest.mark.parametrize("fault", WRONG_RESULTS)
def test_a_wrong_result_is_one_line_that_names_function_rule_and_value(fault: str) -> None:
    result, message = WRONG_RESULTS[fault]

    def finder(tiles: np.ndarray) -> Any:
        return result

    backend = FunctionBackend(finder, describe_function(finder, classes=["a", "b"], tile=TILE))
    with pytest.raises(ValueError, match=f"^function finder: .*{message}") as caught:
        backend.run(images(2))
    assert "\n" not in str(caught.value)


def test_a_result_of_one_tile_without_a_list_is_explained() -> None:
    backend = FunctionBackend(lambda _: TWINS, describe_function(found_on, classes=["a", "b"], tile=TILE))
    with pytest.raises(ValueError, match=r"for one tile, return \[\(boxes, scores, labels\)\]"):
        backend.run(images(1))


SPEC = ModelSpec(("a",), (5,), "mine", "none", 64)
WRONG_ARGUMENTS: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "^classes and tile: missing; .*load\\(found_on, classes="),
    "no tile": ({"classes": ["a"]}, "^tile: missing"),
    "one name": ({"classes": "person", "tile": 64}, "classes: expected a list of names, .* got 'person'"),
    "no names": ({"classes": [], "tile": 64}, "classes must be one or more names"),
    "numbers as names": ({"classes": [1], "tile": 64}, "classes.* must be a valid string, got 1"),
    "labels from 1": (
        {"classes": {1: "a"}, "tile": 64},
        r"expected the labels 0 to 0 .* got \[1\]; .*background",
    ),
    "a text as tile": ({"classes": ["a"], "tile": "64"}, "tile must be a valid integer, got '64'"),
    "no pixels": ({"classes": ["a"], "tile": 0}, "tile must be 1 to"),
    "an IoU of 2": ({"classes": ["a"], "tile": 64, "nms_iou": 2}, "nms_iou must be above 0 and at most 1"),
    "a wrong field": ({"spec": {"clases": ["a"]}}, "spec: no field 'clases' in ModelSpec; did you mean classes"),
    "a wrong pad": ({"classes": ["a"], "tile": 64, "spec": {"pad": (1, 2)}}, "pad"),
    "a text as spec": ({"spec": "a"}, "spec: expected a ModelSpec or a dict of some of its fields, got 'a'"),
    "threads": ({"spec": SPEC, "threads": 2}, "threads=2: the code chooses its threads"),
    "a backend": ({"spec": SPEC, "backend": "onnx"}, "backend='onnx': the code decides"),
    "an overlap": ({"spec": SPEC, "overlap": "a"}, "overlap"),
}


@pytest.mark.parametrize("fault", WRONG_ARGUMENTS)
def test_a_wrong_argument_is_refused_when_the_function_is_loaded(fault: str) -> None:
    arguments, message = WRONG_ARGUMENTS[fault]
    with pytest.raises(ValueError, match=message) as caught:
        load(found_on, **arguments)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_what_describes_a_function_does_not_describe_a_file_or_a_backend(white_squares: Callable) -> None:
    for changes in ({"classes": ["a"]}, {"nms_iou": 0.5}, {"spec": SPEC}):
        (name,) = changes
        with pytest.raises(ValueError, match=f"^{name}=.*: a model file carries its own"):
            load("model.onnx", **changes)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=f"^{name}=.*: a backend carries its own"):
            load(white_squares(), **changes)
    with pytest.raises(TypeError, match=r"got the class WhiteSquares; create one: WhiteSquares\(\.\.\.\)"):
        load(type(white_squares()))
    with pytest.raises(TypeError, match="model: expected a path, a function from tiles to boxes, or a backend"):
        load(3)  # type: ignore[arg-type]


def test_a_whole_spec_is_used_as_it_is_and_arguments_replace_its_fields() -> None:
    assert load(found_on, spec=SPEC).spec == SPEC  # type: ignore[arg-type]
    changed = load(found_on, spec=SPEC, tile=128, classes=["a", "b"]).spec  # type: ignore[arg-type]
    assert (changed.tile, changed.classes, changed.category_ids) == (128, ("a", "b"), (1, 2))
    light = load(found_on, spec={"category_ids": [0], "pad": (114, 114, 114)}, classes=["a"], tile=np.int64(32)).spec
    assert (light.category_ids, light.pad, light.tile, light.detector) == ((0,), (114, 114, 114), 32, "found_on")
    assert repr(load(found_on, spec=light)) == "Model(found_on, tile 32, function found_on: a)"  # type: ignore[arg-type]
