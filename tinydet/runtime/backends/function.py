"""Run a Python function as a backend, so that a detector of any framework works without an export."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinydet._internal.arguments import quoted
from tinydet._internal.json_files import checked
from tinydet._internal.suggestions import did_you_mean
from tinydet.runtime.backends.contract import TileOutputs
from tinydet.spec import LARGEST, ModelSpec

TileFunction = Callable[[NDArray[np.uint8]], Any]

PARTS = ("boxes", "scores", "labels")
FORMS = (
    "a list with one entry per tile, each (boxes, scores, labels), a dict of these, or an array of rows x1, y1, x2, "
    "y2, score, label"
)


class FunctionBackend:
    """Runs a function on tiles and converts the boxes that it returns.

    The function takes tiles (N, T, T, 3), uint8 RGB, which it may keep or change. It is called with up to
    `ScanOptions.batch` tiles, never by two threads at a time. It returns, in any order of the boxes,

    - one entry per tile: `(boxes, scores, labels)`, a mapping with these keys, or an array (M, 6) of rows x1, y1, x2,
      y2, score, label; M may differ from tile to tile; or
    - `(boxes, scores, labels)` of all tiles, or a mapping with these keys: each an array (N, K, ...) or a list of one
      array per tile. The label -1 marks an empty slot.

    Boxes are xyxy in pixels of the tile, scores between 0 and 1, labels indices into `spec.classes`. NumPy arrays,
    torch tensors on any device, and lists of numbers are accepted. Boxes with a score below `spec.score_floor` are
    dropped. A tile with `spec.max_detections` boxes or more counts as saturated, and the best of them are kept.

    Attributes:
        spec: what the function expects and returns.
        name: for messages.
    """

    def __init__(self, function: TileFunction, spec: ModelSpec) -> None:
        self.spec, self.name = spec, f"function {function_name(function)}"
        self._function, self._lock = function, threading.Lock()

    def run(self, images: NDArray[np.uint8]) -> TileOutputs:
        """Run the function on tiles (N, T, T, 3), uint8 RGB.

        Raises:
            RuntimeError: the function raised an exception, which is the cause of this one.
            ValueError: it returned something else than boxes, scores and labels.
        """
        count, tile = len(images), self.spec.tile
        try:
            with self._lock:
                returned = self._function(images.copy())
                if isinstance(returned, Iterator):  # a generator, which runs the function's code here
                    returned = list(returned)
        except Exception as error:
            text = " ".join(str(error).split()) or "no message"
            raise RuntimeError(
                f"{self.name} raised {type(error).__name__} on tiles ({count}, {tile}, {tile}, 3): {text}"
            ) from error
        try:
            return _outputs([_parts(entry, i) for i, entry in enumerate(_entries(returned, count))], self.spec)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from None


def function_name(function: object) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


def describe_function(
    function: TileFunction, spec: ModelSpec | Mapping[str, Any] | None = None, **fields: Any
) -> ModelSpec:
    """Return the ModelSpec of a function from the few fields that matter.

    Category ids are 1, 2, ... if they are not given. Without `nms_iou`, the runtime suppresses no boxes within a tile,
    because most detectors have done so. Without `max_detections`, no tile counts as saturated.

    Args:
        spec: a complete ModelSpec, or some of its fields; at least `classes` and `tile` here or in `fields`.
        fields: replace those of `spec`; None for those that are not given. `classes` may be a mapping from labels to
            names.

    Raises:
        ValueError: a field is missing, unknown or out of range.
    """
    name = function_name(function)
    given = {key: value for key, value in fields.items() if value is not None}
    if isinstance(spec, ModelSpec):
        if not given:
            return spec
        spec = {**dataclasses.asdict(spec), "nms_in_graph": spec.nms_in_graph and "nms_iou" not in given}
        if "classes" in given and len(given["classes"]) != len(spec["classes"]):
            del spec["category_ids"]
    elif spec is not None and not isinstance(spec, Mapping):
        raise ValueError(f"spec: expected a ModelSpec or a dict of some of its fields, got {quoted(spec)}")
    merged: dict[str, Any] = {**(spec or {}), **given}
    known = [field.name for field in dataclasses.fields(ModelSpec)]
    if unknown := [key for key in merged if key not in known]:
        raise ValueError(f"spec: no field {unknown[0]!r} in ModelSpec{did_you_mean(str(unknown[0]), known)}")
    if missing := [key for key in ("classes", "tile") if key not in merged]:
        raise ValueError(
            f"{' and '.join(missing)}: missing; a function needs its class names and the side of its tiles, for "
            f"example load({name}, classes=['person', 'car'], tile=640)"
        )
    classes = _class_names(merged["classes"])
    defaults = {
        "category_ids": tuple(range(1, len(classes) + 1)),
        "detector": name,
        "backbone": "",
        "max_batch": LARGEST,
        "max_detections": LARGEST,
        "nms_in_graph": "nms_iou" not in merged,
    }
    values = {key: value.item() if isinstance(value, np.generic) else value for key, value in merged.items()}
    return checked(
        ModelSpec,
        {**defaults, **values, "classes": classes},
        source=f"load({name}, ...)",
        what="spec",
        remedy="correct this argument",
    )


def _class_names(classes: object) -> tuple[str, ...]:
    """Return class names in the order of their labels."""
    if isinstance(classes, Mapping):
        if sorted(classes, key=repr) != sorted(range(len(classes)), key=repr):
            raise ValueError(
                f"classes: expected the labels 0 to {len(classes) - 1} as keys, got {quoted(list(classes))}; name all "
                "labels from 0 on, such as 0: 'background'"
            )
        return tuple(classes[label] for label in range(len(classes)))
    if isinstance(classes, str) or not isinstance(classes, Sequence | np.ndarray):
        raise ValueError(f"classes: expected a list of names, or a dict from label to name, got {quoted(classes)}")
    return tuple(str(name) if isinstance(name, np.str_) else name for name in classes)


def _entries(returned: Any, count: int) -> Sequence[Any]:
    """Split what a function returned for `count` tiles into one entry per tile.

    Raises:
        ValueError: it is something else.
    """
    if returned is None:
        raise ValueError(f"expected {FORMS}, got None; does the function end with `return`?")
    if isinstance(returned, Mapping):
        parts = [returned[part] for part in PARTS if part in returned]
        if _are_of_all_tiles(parts, count):
            return list(zip(*parts, strict=True))
    elif _shape(returned):
        if _are_of_all_tiles(returned, count):
            return list(zip(*returned, strict=True))
        if len(returned) == count:
            return list(returned)
    entries = "1 entry" if count == 1 else f"{count} entries"
    hint = "; for one tile, return [(boxes, scores, labels)]" if count == 1 else ""
    raise ValueError(f"expected {FORMS}: {entries}, got {_described(returned)}{hint}")


def _are_of_all_tiles(parts: Sequence[Any], count: int) -> bool:
    """Return whether these are boxes, scores and labels of all tiles, and not the entries of three tiles.

    >>> box, one_tile = (1, 2, 5, 6), ([(1, 2, 5, 6)], [0.9], [0])
    >>> _are_of_all_tiles(([[box], [], [box]], [[0.9], [], [0.8]], [[0], [], [1]]), 3)
    True
    >>> _are_of_all_tiles([one_tile, ([], [], []), one_tile], 3)
    False
    """

    def fits(part: Any, axes: int) -> bool:
        if len(_shape(part)) == 0 or len(part) != count:
            return False
        if hasattr(part, "shape"):
            return len(part.shape) == axes + 1
        return all(len(shape := _shape(of_tile)) == axes or shape[:1] == (0,) for of_tile in part)

    return len(parts) == len(PARTS) and fits(parts[0], 2) and fits(parts[1], 1) and fits(parts[2], 1)


def _parts(entry: Any, tile: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return boxes (M, 4), scores (M,) and labels (M,) of one tile.

    Raises:
        ValueError: names the tile, the part and the rule.
    """
    place = f"tile {tile} of the batch"
    shape = _shape(entry)
    if isinstance(entry, Mapping):
        if absent := [part for part in PARTS if part not in entry]:
            raise ValueError(f"{place}: expected {' and '.join(absent)}, got the keys {quoted(list(entry))}")
        parts = [entry[part] for part in PARTS]
    elif shape and shape[0] == 0:
        parts = [(), (), ()]
    elif len(shape) == 2 and shape[1] == 6:
        rows = _array(entry, f"{place}: rows")
        parts = [rows[:, :4], rows[:, 4], rows[:, 5]]
    elif isinstance(entry, list | tuple) and len(entry) == len(PARTS):
        parts = list(entry)
    else:
        raise ValueError(f"{place}: expected (boxes, scores, labels) or rows (M, 6), got {_described(entry)}")
    boxes, scores, labels = (_array(value, f"{place}: {part}") for value, part in zip(parts, PARTS, strict=True))
    if not boxes.size:
        boxes = boxes.reshape(0, 4)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"{place}: boxes: expected (M, 4), got {boxes.shape}")
    for part, values in (("scores", scores), ("labels", labels)):
        if values.shape != (len(boxes),) and (values.size or len(boxes)):
            raise ValueError(f"{place}: {part}: expected ({len(boxes)},), one for each box, got {values.shape}")
    return boxes, scores.reshape(-1), labels.reshape(-1)


def _outputs(tiles: Sequence[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]], spec: ModelSpec) -> TileOutputs:
    """Check the values and put the boxes of each tile into slots, by descending score."""
    kept = [labels >= 0 for _, _, labels in tiles]
    triples = [tuple(values[good] for values in parts) for parts, good in zip(tiles, kept, strict=True)]
    boxes, scores, labels = (np.concatenate(column) for column in zip(*triples, strict=True))
    _check_values(boxes, scores, labels, spec)
    slots, most = 1, spec.max_detections
    chosen = []
    for boxes, scores, labels in triples:
        above = np.flatnonzero(scores >= spec.score_floor)
        order = above[np.argsort(-scores[above], kind="stable")]
        chosen.append((boxes[order[:most]], scores[order[:most]], labels[order[:most]], len(order)))
        slots = max(slots, min(len(order), most))
    outputs = TileOutputs(
        np.zeros((len(tiles), slots, 4), np.float32),
        np.zeros((len(tiles), slots), np.float32),
        np.full((len(tiles), slots), -1, np.int32),
        np.zeros(len(tiles), np.int32),
    )
    for i, (boxes, scores, labels, found) in enumerate(chosen):
        outputs.boxes[i, : len(boxes)] = boxes
        outputs.scores[i, : len(boxes)] = scores
        outputs.labels[i, : len(boxes)] = labels
        # A function that stops at its limit does not say how many boxes it left out.
        outputs.candidates[i] = found if found < most else max(found, most + 1)
    return outputs


def _check_values(boxes: NDArray[Any], scores: NDArray[Any], labels: NDArray[Any], spec: ModelSpec) -> None:
    last = len(spec.classes) - 1
    inverted = (boxes[:, 2:] < boxes[:, :2] - 1).any(axis=1)
    for part, rule, values, wrong in (
        ("boxes", "finite numbers", boxes, ~np.isfinite(boxes).all(axis=1)),
        ("boxes", "x1, y1, x2, y2 with x1 <= x2 and y1 <= y2, not x, y, width, height", boxes, inverted),
        ("scores", "probabilities from 0 to 1, after the sigmoid or softmax", scores, ~((scores >= 0) & (scores <= 1))),
        ("labels", "integers", labels, labels != np.rint(labels)),
        (
            "labels",
            f"0 to {last}, indices into the classes; if the labels start at 1, name the background first",
            labels,
            labels > last,
        ),
    ):
        if wrong.any():
            raise ValueError(f"{part}: expected {rule}, got {values[np.argmax(wrong)].tolist()}")
    if len(boxes) > 1 and boxes.max() <= 1 and boxes[:, :2].any(axis=1).all():  # no box touches the corner
        raise ValueError(
            f"boxes: expected pixels, 0 to {spec.tile}, got fractions, the largest {boxes.max():.3g}; multiply by "
            f"{spec.tile}"
        )


def _array(value: Any, place: str) -> NDArray[Any]:
    """Convert an array, a torch tensor or a list of these.

    Raises:
        ValueError: it is not an array of numbers.
    """
    try:
        array = np.asarray(_without_gradient(value))
    except Exception as error:  # of another library's arrays, such as those on a GPU
        raise ValueError(f"{place}: cannot be converted to an array: {' '.join(str(error).split())}") from error
    if array.dtype.kind not in "iuf" and array.size:
        raise ValueError(f"{place}: expected numbers, got {quoted(value)}")
    return array.astype(np.float64)


def _without_gradient(value: Any) -> Any:
    """Return a torch tensor as one that NumPy can read; also those in a list."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        return value.float() if str(value.dtype) == "torch.bfloat16" else value
    if isinstance(value, list | tuple) and any(hasattr(item, "detach") for item in value):
        return [np.asarray(_without_gradient(item)) for item in value]
    return value


def _shape(value: Any) -> tuple[int, ...]:
    """Return the shape of an array, or of nested lists by their first elements; () for anything else."""
    if hasattr(value, "shape"):
        return tuple(value.shape)
    if isinstance(value, list | tuple):
        return (len(value), *(_shape(value[0]) if value else ()))
    return ()


def _described(value: object) -> str:
    if isinstance(value, Mapping):
        return f"a dict of {', '.join(map(str, value))}"
    shape = _shape(value)
    return f"a {type(value).__name__} of shape {shape}" if shape else quoted(value)
