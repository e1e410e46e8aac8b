"""COCO ground truth and COCO results as flat arrays, checked on the way in.

Annotations keep what the evaluators look at and a training set need not: the written area, the id, the flags one by
one, boxes as written and not clipped.
"""

from __future__ import annotations

import gzip
import json
import math
import numbers
import zlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FULLY_VISIBLE = 1 - 1e-12  # the evaluators' value for an object without visibility


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """Annotations of the selected images and categories, parallel arrays sorted by category, image, place in the file.

    Attributes:
        image_ids: ascending; every image counts, with or without objects.
        file_names: parallel to `image_ids`; empty text where the file does not say.
        category_ids: ascending.
        category_names: parallel to `category_ids`.
        other_category_ids: of the file, but not selected.
        image: (M,) index into `image_ids`.
        category: (M,) index into `category_ids`.
        boxes: (M, 4) x, y, width, height in pixels, as written.
        area: (M,) square pixels as written, else width * height.
        size: (M,) pixels: `size` as written, else sqrt(area).
        height: (M,) pixels: `height` as written, else that of the box.
        visible: (M,) visible share: `vis_ratio` as written, else that of the box `vis`, else `FULLY_VISIBLE`.
        visible_citypersons: (M,) the same, but where there is neither, that of the box `vis_bbox`.
        crowd, ignore, uncertain: (M,) flags.
        id_zero: (M,) true where the annotation id is 0.
        notes: what a reader of the scores should know.
    """

    image_ids: tuple[Any, ...]
    file_names: tuple[str, ...]
    category_ids: tuple[Any, ...]
    category_names: tuple[str, ...]
    other_category_ids: tuple[Any, ...]
    image: NDArray[np.int64]
    category: NDArray[np.int64]
    boxes: NDArray[np.float64]
    area: NDArray[np.float64]
    size: NDArray[np.float64]
    height: NDArray[np.float64]
    visible: NDArray[np.float64]
    visible_citypersons: NDArray[np.float64]
    crowd: NDArray[np.bool_]
    ignore: NDArray[np.bool_]
    uncertain: NDArray[np.bool_]
    id_zero: NDArray[np.bool_]
    notes: tuple[str, ...]

    @property
    def group(self) -> NDArray[np.int64]:
        """(M,) one number for each category and image, ascending."""
        return self.category * len(self.image_ids) + self.image


@dataclass(frozen=True, eq=False)
class Results:
    """Detections, parallel arrays sorted by category, image, descending score, place in the file.

    Attributes:
        image, category: (N,) indices into the ground truth's images and categories.
        boxes: (N, 4) x, y, width, height in pixels.
        scores: (N,) finite.
        rank: (N,) place among the detections of its image and category, 0 for the best.
        notes: what was left out.
    """

    image: NDArray[np.int64]
    category: NDArray[np.int64]
    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]
    rank: NDArray[np.int64]
    notes: tuple[str, ...]

    def best(self, n: int) -> Results:
        """The best `n` of each image and category."""
        kept = self.rank < n
        return self if kept.all() else self.where(kept)

    def where(self, kept: NDArray[np.bool_]) -> Results:
        """Those that a mask (N,) selects."""
        return Results(
            self.image[kept], self.category[kept], self.boxes[kept], self.scores[kept], self.rank[kept], self.notes
        )

    def by_score(self) -> NDArray[np.int64]:
        """(N,) indices sorted by category, then descending score; ties by image, then place in the file."""
        return np.lexsort((-self.scores, self.category))  # stable

    def group(self, images: int) -> NDArray[np.int64]:
        """(N,) one number for each category and image, ascending, as `GroundTruth.group` counts them."""
        return self.category * images + self.image


def read_json(path: Path) -> Any:
    """The content of a `.json` or `.json.gz` file.

    Raises:
        ValueError: naming the file, where it is not JSON.
        OSError: where it cannot be read.
    """
    content = Path(path).read_bytes()
    try:
        if content.startswith(b"\x1f\x8b"):  # by content: a renamed file is no fault
            content = gzip.decompress(content)
        return json.loads(content)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: truncated or damaged gzip file ({error}); write or download it again") from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        what = "is empty" if not content.strip() else f"is not JSON ({error})"
        raise ValueError(f"{path}: {what}; write or download it again") from error


def tabulate_ground_truth(
    document: Any,
    *,
    categories: Sequence[str] | None = None,
    image_ids: Collection[Any] | None = None,
    source: str = "ground truth",
) -> GroundTruth:
    """COCO ground truth as arrays.

    Args:
        categories: names of those to score; None for all of the file.
        image_ids: those to score; None for all of the file.
        source: name of the file for messages.

    Raises:
        ValueError: what is missing or malformed, and where.
    """
    if not isinstance(document, Mapping):
        raise ValueError(
            f"{source}: expected a COCO object with images, annotations and categories, got {_kind(document)}"
        )
    for key in ("images", "annotations", "categories"):
        if not isinstance(document.get(key), list):
            what = f"{key!r} is {_kind(document[key])}, not a list" if key in document else f"has no {key!r}"
            raise ValueError(f"{source}: {what}; expected a COCO file with images, annotations and categories")
    notes: list[str] = []
    names = _by_id(document["images"], "images", "file_name", source, image_ids)
    known = _by_id(document["categories"], "categories", "name", source, None)
    chosen = known
    if not names:
        raise ValueError(f"{source}: no image to score; 'images' must list every image, also those without objects")
    if categories is not None:
        unknown = [name for name in categories if name not in known.values()]
        if unknown or not categories:
            what = f"has no category {unknown[0]!r}" if unknown else "no category was selected"
            raise ValueError(f"{source}: {what}; choose from {', '.join(known.values())}")
        chosen = {id: name for id, name in known.items() if name in categories}
    if not chosen:
        raise ValueError(f'{source}: \'categories\' is empty; list the classes, as in {{"id": 1, "name": "person"}}')

    entries: list[dict[str, Any]] = document["annotations"]
    where = f"{source}: annotations"
    image = _indices(entries, "image_id", names, where)
    category = _indices(entries, "category_id", chosen, where)
    if image_ids is None and (count := int((image < 0).sum())):
        notes.append(
            f"{source}: {count} annotations of images that 'images' does not list are left out, as in pycocotools"
        )
    kept = np.flatnonzero((image >= 0) & (category >= 0))
    kept = kept[np.lexsort((kept, image[kept], category[kept]))]
    taken = [entries[n] for n in kept.tolist()]
    boxes = tabulate_boxes(taken, where, kept)
    area = boxes[:, 2] * boxes[:, 3]
    written = [entry.get("area") for entry in taken]
    if without := sum(value is None for value in written):
        notes.append(f"{source}: {without} annotations have no 'area'; width * height is taken")
        written = [b if a is None else a for a, b in zip(written, area.tolist(), strict=True)]
    area = _numbers(written, "area", where, kept)
    ids = [entry.get("id") for entry in taken]
    if twice := [i for i, times in Counter(i for i in ids if i is not None).items() if times > 1]:
        raise ValueError(
            f"{source}: two annotations have the id {twice[0]} ({len(twice)} ids are used twice); evaluators tell "
            "objects apart by their id: renumber them"
        )
    with np.errstate(invalid="ignore"):  # a negative area has no size, and lies in no range
        size = np.sqrt(area)
    return GroundTruth(
        image_ids=tuple(names),
        file_names=tuple(str(name or "") for name in names.values()),
        category_ids=tuple(chosen),
        category_names=tuple(str(name) for name in chosen.values()),
        other_category_ids=tuple(id for id in known if id not in chosen),
        image=image[kept],
        category=category[kept],
        boxes=boxes,
        area=area,
        size=_written(taken, "size", size, where, kept),
        height=_written(taken, "height", boxes[:, 3], where, kept),
        visible=_visible(taken, boxes, ("vis",), where, kept),
        visible_citypersons=_visible(taken, boxes, ("vis_bbox", "vis"), where, kept),
        crowd=_flags(taken, "iscrowd"),
        ignore=_flags(taken, "ignore"),
        uncertain=_flags(taken, "uncertain"),
        id_zero=np.array([i is not None and i == 0 for i in ids], bool),
        notes=tuple(notes),
    )


def tabulate_results(detections: Any, truth: GroundTruth, *, source: str = "detections") -> Results:
    """COCO results as arrays; those of categories that are not scored are left out.

    Raises:
        ValueError: what is missing or malformed, and where; an image id that the ground truth does not have; no
            detection of any of its categories.
    """
    if not isinstance(detections, list):
        hint = ""
        if isinstance(detections, Mapping) and isinstance(detections.get("annotations"), list):
            hint = "; this looks like ground truth or a wrapped result: give the list itself"
        raise ValueError(f"{source}: expected a list of COCO results, got {_kind(detections)}{hint}")
    image = _indices(detections, "image_id", dict.fromkeys(truth.image_ids), source)
    if (image < 0).any():
        strange = np.flatnonzero(image < 0)
        first = detections[int(strange[0])]["image_id"]
        raise ValueError(
            f"{source}: {len(strange)} of {len(detections)} detections name images that the ground truth does not list "
            f"(first: image_id {first!r} in entry {strange[0]}); score them against the split that they were made on"
        )
    category = _indices(detections, "category_id", dict.fromkeys(truth.category_ids), source)
    left_out = [detections[n]["category_id"] for n in np.flatnonzero(category < 0).tolist()]
    unknown = [i for i in left_out if i not in truth.other_category_ids]
    notes = []
    if unknown:
        listed = ", ".join(map(str, sorted(set(unknown), key=str)[:8]))
        if len(unknown) == len(detections):
            scored = ", ".join(f"{i} ({n})" for i, n in zip(truth.category_ids, truth.category_names, strict=True))
            raise ValueError(
                f"{source}: the ground truth has none of the categories of the detections: they have category_id "
                f"{listed}, scored are {scored}"
            )
        notes.append(
            f"{source}: {len(unknown)} detections of categories that the ground truth does not have (category_id "
            f"{listed}) are left out"
        )
    if not detections:
        notes.append(f"{source}: no detections")
    kept = np.flatnonzero(category >= 0)
    taken = [detections[n] for n in kept.tolist()] if len(kept) < len(detections) else detections
    boxes = tabulate_boxes(taken, source, kept)
    if without := [n for n, entry in zip(kept.tolist(), taken, strict=True) if "score" not in entry]:
        raise ValueError(f"{source}[{without[0]}] has no 'score'; results need one, is this a ground-truth file?")
    scores = _numbers([entry["score"] for entry in taken], "score", source, kept)
    image, category = image[kept], category[kept]
    order = np.lexsort((-scores, image, category))  # stable: ties stay in the order of the file
    image, category = image[order], category[order]
    return Results(image, category, boxes[order], scores[order], _ranks(image, category), tuple(notes))


def tabulate_boxes(
    entries: list[dict[str, Any]], where: str, places: NDArray[np.int64] | None = None
) -> NDArray[np.float64]:
    """The `bbox` of every entry: (N, 4) x, y, width, height.

    Args:
        where: name of the list for messages.
        places: (N,) the entries' places in that list; None for 0, 1, ...

    Raises:
        ValueError: the first that is missing or is not four finite numbers.
    """
    if not entries:
        return np.zeros((0, 4))
    try:
        values = [entry["bbox"] for entry in entries]
        if set(map(type, chain.from_iterable(values))) <= {int, float} and set(map(len, values)) == {4}:
            boxes = np.array(values, np.float64)
            if np.isfinite(boxes).all():
                return boxes
    except (KeyError, TypeError, OverflowError):
        pass
    good = []
    for n, entry in zip(range(len(entries)) if places is None else places.tolist(), entries, strict=True):
        if "bbox" not in entry:
            raise ValueError(f"{where}[{n}] has no 'bbox'; every entry needs [x, y, width, height] in pixels")
        box = entry["bbox"]
        sound = isinstance(box, Sequence | np.ndarray) and len(box) == 4 and all(map(_is_number, box))
        if not sound or not all(map(math.isfinite, box)):
            raise ValueError(f"{where}[{n}]: bbox {str(box)[:80]} is not four finite numbers [x, y, width, height]")
        good.append([float(value) for value in box])
    return np.array(good)


def _ranks(image: NDArray[np.int64], category: NDArray[np.int64]) -> NDArray[np.int64]:
    n = len(image)
    starts = np.flatnonzero(np.r_[n > 0, (np.diff(image) != 0) | (np.diff(category) != 0)])
    lengths = np.diff(np.r_[starts, n])
    return np.arange(n) - np.repeat(starts, lengths)


def _by_id(entries: list[Any], key: str, label: str, source: str, only: Collection[Any] | None) -> dict[Any, Any]:
    """id -> label, ascending id."""
    ids = []
    for n, entry in enumerate(entries):
        if not isinstance(entry, Mapping) or "id" not in entry:
            raise ValueError(f"{source}: {key}[{n}] has no 'id'; give each entry one")
        ids.append(entry["id"])
    try:
        table = {entry["id"]: entry.get(label, "") for entry in entries}
        ordered = sorted(table)
    except TypeError as error:
        raise ValueError(f"{source}: the ids of {key!r} are not all numbers ({error}); renumber them") from error
    if len(table) < len(ids):
        twice = next(i for i in ordered if ids.count(i) > 1)
        raise ValueError(f"{source}: two {key} have the id {twice!r}; give each entry its own")
    wanted = None if only is None else set(only)
    return {i: table[i] for i in ordered if wanted is None or i in wanted}


def _indices(entries: list[Any], key: str, table: Mapping[Any, Any], where: str) -> NDArray[np.int64]:
    """(N,) place of each entry's `key` in `table`; -1 where it is not there."""
    place = {i: n for n, i in enumerate(table)}
    try:
        return np.fromiter((place.get(entry[key], -1) for entry in entries), np.int64, len(entries))
    except (KeyError, TypeError, AttributeError):
        for n, entry in enumerate(entries):
            if not isinstance(entry, Mapping):
                raise ValueError(f"{where}[{n}] is {_kind(entry)}, not an object with {key!r}") from None
            if key not in entry:
                has = ", ".join(map(repr, entry)) or "nothing"
                raise ValueError(f"{where}[{n}] has no {key!r} (it has {has}); every entry needs one") from None
            if not isinstance(entry[key], (int, str, float)):
                raise ValueError(f"{where}[{n}]: {key!r} is {_kind(entry[key])}, not an id") from None
        raise


def _numbers(values: list[Any], key: str, where: str, places: NDArray[np.int64]) -> NDArray[np.float64]:
    """(N,) finite numbers."""
    if set(map(type, values)) <= {int, float} or all(map(_is_number, values)):
        array = np.array(values, np.float64)
        if np.isfinite(array).all():
            return array
    for n, value in zip(places.tolist(), values, strict=True):
        if not _is_number(value) or not math.isfinite(value):
            raise ValueError(f"{where}[{n}]: {key} {str(value)[:80]!r} is not a finite number; correct it")
    raise AssertionError(f"{key}: no fault found")


def _written(
    entries: list[dict[str, Any]], key: str, otherwise: NDArray[np.float64], where: str, places: NDArray[np.int64]
) -> NDArray[np.float64]:
    """(N,) `key` of each entry, `otherwise` where it has none."""
    values = otherwise.copy()
    if written := [n for n, entry in enumerate(entries) if key in entry]:
        values[written] = _numbers([entries[n][key] for n in written], key, where, places[written])
    return values


def _visible(
    entries: list[dict[str, Any]],
    boxes: NDArray[np.float64],
    keys: Sequence[str],
    where: str,
    places: NDArray[np.int64],
) -> NDArray[np.float64]:
    """`vis_ratio`, else the share of the box under the last of `keys` that an entry has, else FULLY_VISIBLE."""
    visible = np.full(len(entries), FULLY_VISIBLE)
    for key in keys:
        if written := [n for n, entry in enumerate(entries) if key in entry]:
            seen = tabulate_boxes([{"bbox": entries[n][key]} for n in written], f"{where} ({key})", places[written])
            with np.errstate(divide="ignore", invalid="ignore"):
                share = (seen[:, 3] / boxes[written, 3]) * (seen[:, 2] / boxes[written, 2])
            visible[written] = np.where((boxes[written, 2:] > 0).all(axis=1), share, 0.0)
    return _written(entries, "vis_ratio", visible, where, places)


def _flags(entries: list[dict[str, Any]], key: str) -> NDArray[np.bool_]:
    return np.fromiter((bool(entry.get(key)) for entry in entries), np.bool_, len(entries))


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)  # numpy's scalars too


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "nothing (null)"}
    return kinds.get(type(value), f"a {type(value).__name__}")
