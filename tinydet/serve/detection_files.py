"""Read the detections of one scene from a file: COCO results of any tool, or any format that inference writes."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinydet._internal.arguments import quoted
from tinydet._internal.errors import name_failures
from tinydet._internal.extras import needs_extra
from tinydet._internal.input_files import check_file, read_file
from tinydet._internal.json_files import read_json
from tinydet._internal.shell import tinydet_command
from tinydet.data.coco_entries import Entries, listed, raise_first
from tinydet.data.coco_rules import examine_sides
from tinydet.evaluate.tables import COMPLETE, read_results
from tinydet.runtime.detections import Detections
from tinydet.runtime.writers import CLASSES

SUFFIXES = (".json", ".geojson", ".gpkg", ".csv", ".parquet", ".txt")
CORNERS = ("x1", "y1", "x2", "y2")
SOME = 6  # ids or names that a message lists


@dataclass(frozen=True, eq=False)
class FileDetections:
    """The detections of a scene, with the names and COCO ids of their classes by label."""

    detections: Detections
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]


@dataclass(frozen=True)
class SceneName:
    """How files of detections refer to a scene.

    Attributes:
        name: its file name.
        width, height: in pixels.
        image_id: its COCO image id in files of several images; None: found by the name.
        categories: names by COCO id, for results that have ids only.
    """

    name: str
    width: int
    height: int
    image_id: int | str | None = None
    categories: Mapping[Any, str] | None = None


def check_detection_file(path: Path) -> None:
    """Check that a file exists and has the suffix of a format of detections.

    Raises:
        ValueError, OSError: it has not.
    """
    check_file(path, "name a file of detections")
    if _suffix(path) not in SUFFIXES:
        raise ValueError(f"{path}: detections are read from {', '.join(SUFFIXES)}; name such a file")


def read_detections(path: Path, scene: SceneName) -> FileDetections:
    """Read the detections of a scene.

    Raises:
        ValueError: the file is damaged, of another form, or belongs to other images.
        OSError: it cannot be read.
        ModuleNotFoundError: its format needs a package that is not installed.
    """
    check_detection_file(path)
    match _suffix(path):
        case ".json":
            content = read_json(path)
            if isinstance(content, Mapping) and content.get("type") == "FeatureCollection":
                return _from_features(path, content, scene)
            return _from_coco(path, content, scene)
        case ".geojson":
            return _from_features(path, read_json(path), scene)
        case ".csv":
            return _from_table(path, _csv_columns(path), scene)
        case ".parquet":
            return _from_table(path, _parquet_columns(path), scene)
        case ".gpkg":
            return _from_table(path, _geopackage_columns(path), scene)
        case _:
            return _from_labels(path, scene)


def read_categories(path: Path) -> dict[Any, str]:
    """Return the names of the categories of a COCO file by their ids.

    Raises:
        ValueError, OSError: it cannot be read, or has no categories.
    """
    content = read_json(path)
    if not isinstance(content, Mapping) or not isinstance(content.get("categories"), list):
        raise ValueError(f"{path}: expected a COCO file with 'categories'; name the annotations that the ids refer to")
    return _names(path, content["categories"])


def _suffix(path: Path) -> str:
    name = path.name.lower()
    return ".json" if name.endswith(".json.gz") else Path(name).suffix


# -------------------------------------------------------------------------------------------------------------- COCO


def _from_coco(path: Path, content: Any, scene: SceneName) -> FileDetections:
    source = str(path)
    is_file = isinstance(content, Mapping) and all(isinstance(content.get(key), list) for key in COMPLETE)
    entries = read_results(content, source)
    images = np.array(entries.identifiers("image_id", strings=True)[0], object)
    wanted = _image_of(path, content["images"], scene) if is_file else _only_image(path, images, scene)
    if wanted is not None:
        entries = entries.select(np.flatnonzero(images == wanted))
    xywh, _ = entries.boxes()
    examine_sides(entries, xywh)
    scores = entries.optional_numbers("score", np.ones(len(entries)))
    ids = entries.identifiers("category_id", strings=True)[0]
    names = _names(path, content["categories"]) if is_file else dict(scene.categories or {})
    data: dict[str, NDArray[Any]] = {}
    if len(entries.with_value("track_id")):
        data["track"] = entries.optional_numbers("track_id", np.full(len(entries), -1.0)).astype(np.int64)
    corners = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
    return _classified(path, scene, corners, scores, ids, names, data)


def _image_of(path: Path, images: Sequence[Any], scene: SceneName) -> Any:
    """Return the id of the scene in a COCO file."""
    entries = Entries("images", list(images), raise_first(str(path)))
    ids = entries.identifiers("id", strings=True)[0]
    if not ids:
        raise ValueError(f"{path} lists no image; name the detections of {scene.name}")
    names = [PurePosixPath(str(entry.get("file_name", "")).replace("\\", "/")).name for entry in entries.entries]
    if scene.image_id is not None:
        if scene.image_id not in ids:
            raise ValueError(f"{path} has no image {scene.image_id}; it has {listed(list(map(str, ids)), SOME)}")
        found = [ids.index(scene.image_id)]
    else:
        found = [n for n, name in enumerate(names) if name == scene.name] or ([0] if len(ids) == 1 else [])
    if len(found) != 1:
        what = f"{len(found)} images" if found else "no image"
        raise ValueError(
            f"{path} has {what} named {scene.name}, but {listed(names, SOME)}; choose one by its id: --image-id "
            f"{ids[(found or [0])[0]]}"
        )
    entry = entries.entries[found[0]]
    size = entry.get("width"), entry.get("height")
    if all(isinstance(side, int) for side in size) and size != (scene.width, scene.height):
        raise ValueError(
            f"{path}: its image {names[found[0]] or ids[found[0]]} has {size[0]}x{size[1]} pixels, but {scene.name} "
            f"has {scene.width}x{scene.height}; name the detections of this scene"
        )
    return ids[found[0]]


def _only_image(path: Path, images: NDArray[Any], scene: SceneName) -> Any:
    """Return the image id of results without a list of images; None for no results."""
    ids = list(dict.fromkeys(images.tolist()))
    if scene.image_id is not None:
        if ids and scene.image_id not in ids:
            raise ValueError(f"{path} has no image {scene.image_id}; it has {listed(list(map(str, ids)), SOME)}")
        return scene.image_id
    if len(ids) > 1:
        raise ValueError(
            f"{path} holds results of {len(ids)} images (ids {listed(list(map(str, ids)), SOME)}); choose the one of "
            f"{scene.name}: --image-id {ids[0]}"
        )
    return ids[0] if ids else None


def _names(path: Path, categories: Sequence[Any]) -> dict[Any, str]:
    entries = Entries("categories", list(categories), raise_first(str(path)))
    ids = entries.identifiers("id", strings=True)[0]
    return {id: str(entry.get("name", f"category {id}")) for id, entry in zip(ids, entries.entries, strict=True)}


# ------------------------------------------------------------------------------------------------------------ tables


def _from_features(path: Path, content: Any, scene: SceneName) -> FileDetections:
    features = content.get("features") if isinstance(content, Mapping) else None
    if not isinstance(features, list) or not all(isinstance(each, Mapping) for each in features):
        raise ValueError(f"{path}: expected a GeoJSON FeatureCollection, as written by {tinydet_command('infer')}")
    rows = [each.get("properties") or {} for each in features]
    keys = dict.fromkeys(key for row in rows for key in row)
    return _from_table(path, {key: [row.get(key) for row in rows] for key in keys}, scene, empty=not rows)


def _csv_columns(path: Path) -> dict[str, list[Any]]:
    try:
        text = read_file(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a CSV file in UTF-8; save it in this encoding") from error
    rows = csv.reader(io.StringIO(text))
    header = next(rows, [])
    columns: dict[str, list[Any]] = {name.strip(): [] for name in header}
    for row in rows:
        if not row:
            continue
        if len(row) != len(header):
            raise ValueError(f"{path} line {rows.line_num}: {len(row)} fields, but the header has {len(header)}")
        for column, value in zip(columns.values(), row, strict=True):
            column.append(value if value != "" else None)
    return columns


def _parquet_columns(path: Path) -> dict[str, list[Any]]:
    with needs_extra("tables"):
        import pyarrow.parquet
    with name_failures(path, "read"):
        table = pyarrow.parquet.read_table(path)
    return {name: table.column(name).to_pylist() for name in table.column_names}


def _geopackage_columns(path: Path) -> dict[str, list[Any]]:
    with needs_extra("geo"):
        import pyogrio.raw
    with name_failures(path, "read"):
        meta, _, _, values = pyogrio.raw.read(str(path), read_geometry=False)
    return {name: list(column.tolist()) for name, column in zip(meta["fields"], values, strict=True)}


def _from_table(
    path: Path, columns: Mapping[str, list[Any]], scene: SceneName, *, empty: bool = False
) -> FileDetections:
    missing = [name for name in CORNERS if name not in columns]
    if missing and not empty:
        raise ValueError(
            f"{path} has no column {missing[0]}; a table of detections needs the corners x1, y1, x2, y2 in pixels of "
            "the scene, and should have score and class"
        )
    rows = range(len(columns["x1"])) if not empty else range(0)
    if "scene" in columns and (scenes := list(dict.fromkeys(map(str, columns["scene"])))) and len(scenes) > 1:
        mine = [name for name in scenes if PurePosixPath(name.replace("\\", "/")).name == scene.name]
        if len(mine) != 1:
            raise ValueError(
                f"{path} holds {len(scenes)} scenes ({listed(scenes, SOME)}), of which {len(mine)} are named "
                f"{scene.name}; name the detections of this scene"
            )
        kept = [n for n in rows if str(columns["scene"][n]) == mine[0]]
    else:
        kept = list(rows)

    def numbers(name: str, default: float) -> NDArray[np.float64]:
        if name not in columns:
            return np.full(len(kept), default)
        column = columns[name]
        return np.array([default if column[n] is None else _number(path, name, n, column[n]) for n in kept], float)

    corners = np.stack([numbers(name, math.nan) for name in CORNERS], axis=1) if kept else np.zeros((0, 4))
    bad = np.flatnonzero(~np.isfinite(corners).all(axis=1) | (corners[:, 2:] < corners[:, :2]).any(axis=1))
    if len(bad):
        raise ValueError(
            f"{path}: row {kept[bad[0]] + 1} has the corners {corners[bad[0]].tolist()}; expected x1 <= x2 and y1 <= y2"
        )
    data: dict[str, NDArray[Any]] = {}
    if "tile" in columns:
        data["tile"] = numbers("tile", 0).astype(np.int32)
        data["pass"] = numbers("pass", 0).astype(np.int32)
        data["seam_distance"] = numbers("seam_distance", math.inf).astype(np.float32)
        data["seam_distance"][np.isnan(data["seam_distance"])] = np.inf
    ids: list[Any] = [1] * len(kept)
    names: dict[Any, str] = {1: "object"}
    if "class" in columns:
        of = [str(columns["class"][n]) for n in kept]
        numbered = "category_id" in columns
        keys = [int(value) for value in numbers("category_id", 0)] if numbered else of
        names = dict(zip(keys, of, strict=True))
        if len(set(of)) != len(names):  # one id for several names
            keys, names = of, {name: name for name in of}
        ids = list(keys)
    elif "category_id" in columns:
        ids = [int(value) for value in numbers("category_id", 0)]
        names = dict(scene.categories or {})
    return _classified(path, scene, corners, numbers("score", 1.0), ids, names, data)


def _number(path: Path, name: str, row: int, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{path}: row {row + 1} has the {name} {quoted(value)}, which is not a number") from None


# ------------------------------------------------------------------------------------------------------- YOLO labels


def _from_labels(path: Path, scene: SceneName) -> FileDetections:
    lines = read_file(path).decode("utf-8", "replace").splitlines()
    rows = [(n, line.replace(",", " ").split()) for n, line in enumerate(lines, 1) if line.strip()]
    if any("," in line for line in lines):
        raise ValueError(f"{path}: tracks of a video (MOTChallenge); the viewer shows still scenes")
    values = np.zeros((len(rows), 6))
    values[:, 5] = 1
    for place, (n, words) in enumerate(rows):
        try:
            numbers = [float(word) for word in words]
        except ValueError:
            numbers = []
        good = len(numbers) in (5, 6) and all(map(math.isfinite, numbers)) and numbers[0] >= 0 and numbers[0] % 1 == 0
        if not good or not all(-0.5 <= value <= 1.5 for value in numbers[1:5]):
            raise ValueError(
                f"{path} line {n}: expected a YOLO label, class x y width height [score] as fractions of the scene, "
                f"got {quoted(' '.join(words)[:60])}"
            )
        values[place, : len(numbers)] = numbers
    center, size = values[:, 1:3] * (scene.width, scene.height), values[:, 3:5] * (scene.width, scene.height)
    corners = np.concatenate([center - size / 2, center + size / 2], axis=1)
    classes = path.with_name(CLASSES)
    names = {n: f"class {n}" for n in values[:, 0].astype(int).tolist()}
    if classes.is_file():
        names |= dict(enumerate(read_file(classes).decode("utf-8", "replace").splitlines()))
    ids = values[:, 0].astype(int).tolist()
    return _classified(path, scene, corners, values[:, 5], ids, names, {})


# -------------------------------------------------------------------------------------------------------------- both


def _classified(
    path: Path,
    scene: SceneName,
    corners: NDArray[np.float64],
    scores: NDArray[np.float64],
    ids: Sequence[Any],
    names: Mapping[Any, str],
    data: dict[str, NDArray[Any]],
) -> FileDetections:
    """Return detections with labels in the order of their category ids; an id without a name is named by its number."""
    if not np.isfinite(scores).all():
        raise ValueError(f"{path}: detection {int(np.flatnonzero(~np.isfinite(scores))[0]) + 1} has no finite score")
    inside = ((corners[:, 2:] > 0) & (corners[:, :2] < (scene.width, scene.height))).all(axis=1)
    if len(corners) and not inside.any():
        raise ValueError(
            f"{path}: all {len(corners)} boxes are outside of {scene.name} ({scene.width}x{scene.height} pixels); name "
            "the detections of this scene"
        )
    known: Callable[[Any], tuple[bool, Any]] = lambda id: (isinstance(id, str), id)  # noqa: E731
    order = sorted({*ids, *names}, key=known)
    labels = {id: n for n, id in enumerate(order)}
    numbers = [int(id) if isinstance(id, int) and not isinstance(id, bool) else n for n, id in enumerate(order, 1)]
    return FileDetections(
        Detections(
            corners.astype(np.float32),
            scores.astype(np.float32),
            np.array([labels[id] for id in ids], np.int32),
            data,
        ),
        tuple(str(names.get(id, f"category {id}")) for id in order),
        tuple(numbers),
    )
