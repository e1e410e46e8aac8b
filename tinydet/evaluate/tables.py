"""COCO ground truth and COCO results as flat arrays, checked while they are read.

The columns and their rules are those of `tinydet.data.coco_entries`, but scoring asks for less than training: images
need no size, annotations need no id, and those of unlisted images are left out. It keeps what evaluators look at and a
training dataset does not hold: areas as written, ids, single flags, boxes that are not clipped.

Ids are integers or strings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinydet._internal.console import plural
from tinydet._internal.shell import command_line
from tinydet.data.coco_derive import whole_number
from tinydet.data.coco_entries import (
    Entries,
    Section,
    check_categories,
    json_kind,
    listed,
    raise_first,
    read_sections,
    short,
)
from tinydet.data.coco_rules import FILE_NAME, TEXT, examine_sides, parent_categories

COMPLETE = ("images", "categories", "annotations")  # lists of a COCO file
LARGEST_SIDE = 1 << 31  # pixels
FULLY_VISIBLE = 1 - 1e-12  # the evaluators' value for an object without visibility


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """Annotations of the selected images and categories: parallel arrays sorted by category, image, place in the file.

    Attributes:
        image_ids: ascending; includes images without objects.
        file_names: parallel to `image_ids`; empty if the file does not give one.
        pixels: (I,) width * height of each image; NaN if the file does not give them.
        category_ids: ascending.
        category_names: parallel to `category_ids`.
        other_category_ids: ids of the file that are not selected.
        other_category_names: parallel to `other_category_ids`.
        image: (M,) index into `image_ids`.
        category: (M,) index into `category_ids`.
        boxes: (M, 4) x, y, width, height in pixels, as written.
        area: (M,) square pixels as written; default: width * height.
        size: (M,) pixels: `size` as written; default: sqrt(area).
        height: (M,) pixels: `height` as written; default: that of the box.
        visible: (M,) visible share: `vis_ratio` as written, or the share of the box `vis`; default: `FULLY_VISIBLE`.
        visible_citypersons: (M,) the same, but the box `vis_bbox` is read too if there is no `vis`.
        crowd, ignore, uncertain: (M,) flags.
        id_zero: (M,) true if the annotation id is 0.
        notes: remarks for the reader of the scores.
    """

    image_ids: tuple[Any, ...]
    file_names: tuple[str, ...]
    pixels: NDArray[np.float64]
    category_ids: tuple[Any, ...]
    category_names: tuple[str, ...]
    other_category_ids: tuple[Any, ...]
    other_category_names: tuple[str, ...]
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
        """(M,) a number for each pair of category and image, ascending."""
        return self.category * len(self.image_ids) + self.image


@dataclass(frozen=True, eq=False)
class Results:
    """Detections: parallel arrays sorted by category, image, descending score, place in the file.

    Attributes:
        image, category: (N,) indices into the ground truth's images and categories.
        boxes: (N, 4) x, y, width, height in pixels.
        scores: (N,) finite.
        rank: (N,) position among the detections of the same image and category, 0 for the highest score.
        notes: what was left out.
    """

    image: NDArray[np.int64]
    category: NDArray[np.int64]
    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]
    rank: NDArray[np.int64]
    notes: tuple[str, ...]

    def best(self, n: int) -> Results:
        """Return the `n` highest-scoring detections of each image and category."""
        kept = self.rank < n
        return self if kept.all() else self.where(kept)

    def where(self, kept: NDArray[np.bool_]) -> Results:
        """Return the detections that a mask (N,) selects."""
        return Results(
            self.image[kept], self.category[kept], self.boxes[kept], self.scores[kept], self.rank[kept], self.notes
        )

    def by_score(self) -> NDArray[np.int64]:
        """Return (N,) indices sorted by category, then descending score; ties by image, then place in the file."""
        return np.lexsort((-self.scores, self.category))  # stable

    def group(self, images: int) -> NDArray[np.int64]:
        """Return (N,) a number for each pair of category and image, ascending, the same as `GroundTruth.group`."""
        return self.category * images + self.image


def tabulate_ground_truth(
    document: Any,
    *,
    categories: Sequence[str] | None = None,
    image_ids: Collection[Any] | None = None,
    source: str = "ground truth",
) -> GroundTruth:
    """Return COCO ground truth as arrays.

    Args:
        document: content of the file.
        categories: names of the categories to score; None scores all.
        image_ids: ids of the images to score; None scores all.
        source: name of the file for messages.

    Raises:
        ValueError: something is missing or malformed; names the file and the entry.
    """
    report = raise_first(source)
    sections = read_sections(document, report)
    images = Entries("images", sections["images"], report)
    names = _labels(images, "file_name", FILE_NAME, source)
    pixels = dict(zip(images.ids, _pixels(images).tolist(), strict=True))
    if image_ids is not None:
        wanted = set(image_ids)
        names = {id: name for id, name in names.items() if id in wanted}
        if not names:
            raise ValueError(f"{source}: no image to score; 'images' must list every image, also those without objects")
    categories_read = Entries("categories", sections["categories"], report)
    known = _labels(categories_read, "name", TEXT, source)
    chosen = known
    if categories is not None:
        check_categories(source, categories, list(known.values()))
        chosen = {id: name for id, name in known.items() if name in categories}

    annotations = Entries("annotations", sections["annotations"], report)
    annotations.read_ids(strings=True, required=False)
    image, _ = annotations.references("image_id", list(names), strings=True)
    category, _ = annotations.references("category_id", list(chosen), strings=True)
    _check_types(annotations, "image_id", "images", names, image < 0)
    _check_types(annotations, "category_id", "categories", known, category < 0)
    notes: list[str] = []
    if image_ids is None and (count := int((image < 0).sum())):
        notes.append(
            f"{source}: left out, as in pycocotools: {plural(count, 'annotation')} of images that 'images' does not "
            "list"
        )
    others = [entry["category_id"] for entry in annotations.select(np.flatnonzero(category < 0)).entries]
    if count := sum(id not in known for id in others):
        notes.append(f"{source}: left out: {plural(count, 'annotation')} of categories that 'categories' does not list")
    parents = parent_categories(categories_read.entries)
    named = {id for id, parent in zip(categories_read.ids, parents.tolist(), strict=True) if parent}
    used = set(np.unique(category).tolist())
    if roots := [name for n, (id, name) in enumerate(chosen.items()) if id in named and n not in used]:
        notes.append(f"{source}: no object can be of {listed(roots)}, the supercategory of others; it has no score")
    kept = np.flatnonzero((image >= 0) & (category >= 0))
    kept = kept[np.lexsort((kept, image[kept], category[kept]))]
    scored = annotations.select(kept)
    scored.check_unique()
    boxes, _ = scored.boxes()
    examine_sides(scored, boxes)
    area = scored.optional_numbers("area", boxes[:, 2] * boxes[:, 3])
    if without := len(scored) - len(scored.with_value("area")):
        notes.append(f"{source}: {plural(without, 'annotation')} without 'area'; width * height is used")
    with np.errstate(invalid="ignore"):  # a negative area has no size and lies in no range
        size = np.sqrt(area)
    return GroundTruth(
        image_ids=tuple(names),
        file_names=tuple(names.values()),
        pixels=np.array([pixels[id] for id in names], np.float64),
        category_ids=tuple(chosen),
        category_names=tuple(chosen.values()),
        other_category_ids=tuple(id for id in known if id not in chosen),
        other_category_names=tuple(name for id, name in known.items() if id not in chosen),
        image=image[kept],
        category=category[kept],
        boxes=boxes,
        area=area,
        size=scored.optional_numbers("size", size),
        height=scored.optional_numbers("height", boxes[:, 3]),
        visible=_visible(scored, boxes, ("vis",)),
        visible_citypersons=_visible(scored, boxes, ("vis_bbox", "vis")),
        crowd=scored.flags("iscrowd")[0],
        ignore=scored.flags("ignore")[0],
        uncertain=scored.flags("uncertain")[0],
        id_zero=scored.has_id & np.array([id == 0 for id in scored.ids], bool),
        notes=tuple(notes),
    )


def tabulate_results(detections: Any, truth: GroundTruth, *, source: str = "detections") -> Results:
    """Return COCO results as arrays, without those of categories that are not scored.

    Args:
        detections: a list of results, whose ids are those of the ground truth; or a COCO file of `tinydet infer`, whose
            images and categories are found in the ground truth by their names, or by their ids if it has no such names.

    Raises:
        ValueError: something is missing or malformed; an image is not in the ground truth; or no detection is of a
            category of the ground truth.
    """
    entries = read_results(detections, source)
    content, detections = detections, entries.entries
    image = _image_index(entries, content, truth, source)
    if (image < 0).any():
        unlisted = np.flatnonzero(image < 0)
        first = detections[int(unlisted[0])]["image_id"]
        other = _other_type(first)
        hint = f", but the ground truth has {other!r}: text and numbers differ" if other in truth.image_ids else ""
        if isinstance(content, Mapping):
            hint = "; images are found by their file names"
        raise ValueError(
            f"{source}: {len(unlisted)} of {len(detections)} detections are on images that the ground truth does not "
            f"list (first: image_id {short(first)} in entry {unlisted[0]}{hint}); score them against the split "
            "that they were made on"
        )
    category = _category_index(entries, content, truth, source)
    unknown = [detections[n]["category_id"] for n in np.flatnonzero(category < 0).tolist()]
    category[category >= len(truth.category_ids)] = -1
    notes = []
    if unknown:
        ids = ", ".join(map(short, sorted(set(unknown), key=str)[:8]))
        if len(unknown) == len(detections):
            scored = ", ".join(f"{i} ({n})" for i, n in zip(truth.category_ids, truth.category_names, strict=True))
            raise ValueError(
                f"{source}: the ground truth has none of the categories of the detections: they have category_id "
                f"{ids}, scored are {scored}"
            )
        notes.append(
            f"{source}: {len(unknown)} detections of categories that the ground truth does not have (category_id "
            f"{ids}) are left out"
        )
    if not detections:
        notes.append(f"{source}: no detections")
    kept = np.flatnonzero(category >= 0)
    if len(kept) < len(entries):
        entries = entries.select(kept)
    boxes, _ = entries.boxes()
    scores, _ = entries.numbers("score", missing="results need one; is this a ground-truth file?")
    image, category = image[kept], category[kept]
    order = np.lexsort((-scores, image, category))  # stable: ties stay in the order of the file
    image, category = image[order], category[order]
    return Results(image, category, boxes[order], scores[order], _ranks(image, category), tuple(notes))


def read_results(detections: Any, source: str) -> Entries:
    """Return the entries of COCO results: a list, or the annotations of a COCO file.

    Raises:
        ValueError: anything else.
    """
    if isinstance(detections, Mapping) and all(isinstance(detections.get(key), list) for key in COMPLETE):
        detections = detections["annotations"]
    if not isinstance(detections, list):
        hint = ""
        if isinstance(detections, Mapping):
            lists = [key for key, value in detections.items() if isinstance(value, list) and _are_scored(value)]
            if lists:
                alone = command_line("jq", f".{lists[0]}", source)
                hint = f"; the list is under {short(lists[0])}, write it alone: {alone}"
            elif "annotations" in detections:
                hint = "; this looks like ground truth"
        raise ValueError(f"{source}: expected a list of COCO results, got a JSON {json_kind(detections)}{hint}")
    return Entries("results", detections, raise_first(source))


def _image_index(entries: Entries, content: Any, truth: GroundTruth, source: str) -> NDArray[np.int64]:
    """Return (N,) the index into the ground truth's images of each result; -1 if it is not there.

    Names count unless several images have the same, as the sub-images of a corner file do.
    """
    if isinstance(content, Mapping):
        names = _labels(Entries("images", content["images"], raise_first(source)), "file_name", FILE_NAME, source)
        if all(any(all_names) and _are_unique(all_names) for all_names in (tuple(names.values()), truth.file_names)):
            index, _ = entries.references("image_id", list(names), strings=True)
            return _through(index, _indices_of_files(list(names.values()), truth.file_names))
    return entries.references("image_id", truth.image_ids, strings=True)[0]


def _category_index(entries: Entries, content: Any, truth: GroundTruth, source: str) -> NDArray[np.int64]:
    """Return (N,) the index into the ground truth's categories of each result, -1 if unknown; unselected come last."""
    if isinstance(content, Mapping):
        names = _labels(Entries("categories", content["categories"], raise_first(source)), "name", TEXT, source)
        places = {name: n for n, name in enumerate((*truth.category_names, *truth.other_category_names)) if name}
        if not places.keys().isdisjoint(names.values()):
            index, _ = entries.references("category_id", list(names), strings=True)
            return _through(index, [places.get(name, -1) for name in names.values()])
    return entries.references("category_id", (*truth.category_ids, *truth.other_category_ids), strings=True)[0]


def _indices_of_files(names: Sequence[str], among: Sequence[str]) -> list[int]:
    """Return the index of each file: the same path, or the only path that ends in the other; -1 for none or several."""
    place = {name: n for n, name in enumerate(among)}
    of_base: dict[str, list[int]] = {}
    for n, name in enumerate(among):
        of_base.setdefault(PurePosixPath(name).name, []).append(n)
    indices = []
    for name in names:
        alike = [place[name]] if name in place else of_base.get(PurePosixPath(name).name, [])
        fitting = [n for n in alike if _ends_alike(name, among[n])]
        indices.append(fitting[0] if len(fitting) == 1 else -1)
    uses = Counter(indices)
    return [n if uses[n] == 1 else -1 for n in indices]


def _ends_alike(one: str, other: str) -> bool:
    pairs = zip(reversed(PurePosixPath(one).parts), reversed(PurePosixPath(other).parts), strict=False)
    return all(left == right for left, right in pairs)


def _are_unique(names: Sequence[str]) -> bool:
    return len(set(names)) == len(names)


def _through(index: NDArray[np.int64], places: Sequence[int]) -> NDArray[np.int64]:
    """Return `places[index]`, -1 where the index is."""
    return np.array([*places, -1], np.int64)[index]


def _ranks(image: NDArray[np.int64], category: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return (N,) the position within each run of equal image and category."""
    n = len(image)
    starts = np.flatnonzero(np.r_[n > 0, (np.diff(image) != 0) | (np.diff(category) != 0)])
    lengths = np.diff(np.r_[starts, n])
    return np.arange(n) - np.repeat(starts, lengths)


def _are_scored(entries: list[Any]) -> bool:
    return bool(entries) and isinstance(entries[0], Mapping) and "score" in entries[0]


def _labels(entries: Entries, label: str, remedy: str, source: str) -> dict[Any, str]:
    """Return the field `label` by id, ids ascending; empty if the field is absent or null."""
    entries.read_ids(strings=True)
    entries.check_unique()
    labels = dict.fromkeys(entries.ids, "")
    named = entries.select(entries.with_value(label))
    labels.update(zip(named.ids, named.strings(label, remedy)[0], strict=True))
    texts = [id for id in labels if isinstance(id, str)]
    if 0 < len(texts) < len(labels):
        raise ValueError(
            f"{source}: {len(texts)} of the ids of {entries.section!r} are text, such as {short(texts[0])}, the others "
            "numbers; write all as numbers"
        )
    return {id: labels[id] for id in sorted(labels)}


def _check_types(
    annotations: Entries, key: str, section: Section, known: Collection[Any], unlisted: NDArray[np.bool_]
) -> None:
    """Check that no unlisted id becomes a listed one when written as text, or as a number."""
    broken = [n for n in np.flatnonzero(unlisted).tolist() if _other_type(annotations.entries[n][key]) in known]
    annotations.check(
        f"annotation whose {key} is of another type than in {section}",
        broken,
        lambda n: (
            f"has the {key} {short(annotations.entries[n][key])}, but {section!r} has "
            f"{short(_other_type(annotations.entries[n][key]))}"
        ),
        "text and numbers differ; write both as numbers",
    )


def _other_type(id: Any) -> int | str | None:
    """Return an id that is text as a number, and one that is a number as text."""
    return whole_number(id) if isinstance(id, str) else str(int(id))


def _pixels(images: Entries) -> NDArray[np.float64]:
    """Return (I,) width * height; NaN where one is missing or not a number above 0, because scoring needs no size."""

    def side(entry: Mapping[str, Any], key: str) -> float:
        value = entry.get(key)
        return float(value) if isinstance(value, int | float) and 0 < value < LARGEST_SIDE else np.nan

    return np.array([side(entry, "width") * side(entry, "height") for entry in images.entries], np.float64)


def _visible(entries: Entries, boxes: NDArray[np.float64], keys: Sequence[str]) -> NDArray[np.float64]:
    """Return (N,) `vis_ratio`, or the share of the box under the last of `keys` that an entry has."""
    visible = np.full(len(entries), FULLY_VISIBLE)
    for key in keys:
        if len(present := entries.with_value(key)):
            part, _ = entries.select(present).boxes(key)
            with np.errstate(divide="ignore", invalid="ignore"):
                share = (part[:, 3] / boxes[present, 3]) * (part[:, 2] / boxes[present, 2])
            visible[present] = np.where((boxes[present, 2:] > 0).all(axis=1), share, 0.0)
    return entries.optional_numbers("vis_ratio", visible)
