"""Show detections that exist: the application behind `tinydet view`, and the same page as a static folder."""

# Annotations are evaluated when a route is defined, because FastAPI is imported inside of functions.

import contextlib
import dataclasses
import functools
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import tinydet
from tinydet._internal.extras import needs_extra
from tinydet._internal.outputs import check_folder, make_folder, remove_empty
from tinydet._internal.progress import Progress
from tinydet.geometry.tiles import TileGrid
from tinydet.runtime.detections import Detections
from tinydet.runtime.scenes import Scene, open_scene
from tinydet.runtime.scenes.georeference import Georeference, georeference_of
from tinydet.runtime.writers import FORMATS, SceneDetections, open_writer
from tinydet.serve.detection_files import FileDetections, SceneName, read_detections
from tinydet.serve.found import SIZES, Found, Result
from tinydet.serve.page import copy_page, page_router
from tinydet.serve.scenes_api import SceneStore, scenes_router
from tinydet.serve.tiles import TILE, Levels, pyramid
from tinydet.spec import ModelSpec

SCENE = "scene"  # id of the only scene
DATA = Path("data", "scene.json")  # of a static folder, which is recognized by it
# The columns of a result in a static folder: little-endian, one after the other, `width` values per detection.
COLUMNS = (("boxes", "<f4", 4), ("scores", "<f4", 1), ("seam_distance", "<f4", 1), ("labels", "<i4", 1),
           ("tiles", "<i4", 1), ("passes", "<i4", 1))  # fmt: skip


@dataclass(frozen=True)
class ViewedFile:
    """A file of detections that was read.

    Attributes:
        id: of the result, for addresses.
        path: of the file.
        found: its detections.
    """

    id: str
    path: Path
    found: FileDetections


@dataclass(frozen=True)
class View:
    """A scene and the files of detections to show on it.

    Attributes:
        path: of the scene.
        width, height: of the scene in pixels.
        files: in the order in which they were named.
        tilings: how the scene was tiled, the full pass first; empty if unknown.
        bands: 1-based bands to show; None for the default.
        georeference: of the scene; None without one.
    """

    path: Path
    width: int
    height: int
    files: tuple[ViewedFile, ...]
    tilings: tuple[TileGrid, ...] = ()
    bands: tuple[int, ...] | None = None
    georeference: Georeference | None = None

    def open(self) -> Scene:
        """Open the scene."""
        return open_scene(self.path, bands=self.bands)

    def formats(self) -> tuple[str, ...]:
        """Return the formats in which the detections can be written here."""
        packages = {"gpkg": "pyogrio", "parquet": "pyarrow"}
        return tuple(
            name
            for name, form in FORMATS.items()
            if not form.tracked
            if not form.placed or self.georeference is not None
            if name not in packages or find_spec(packages[name]) is not None
        )

    def results(self) -> Iterator[tuple[str, Result]]:
        """Yield the id and the result of each file."""
        for each in self.files:
            found = each.found
            yield (
                each.id,
                Result(
                    each.path.name,
                    found.classes,
                    found.category_ids,
                    functools.partial(_detections, found),
                    tilings=self.tilings,
                    formats=self.formats(),
                ),
            )

    def write(self, file: ViewedFile, kind: str, path: Path) -> None:
        """Write the detections of a file in another format.

        Raises:
            ValueError, OSError: the format cannot hold them, or the file cannot be written.
            ModuleNotFoundError: the format needs a package that is not installed.
        """
        found = file.found
        classes = found.classes or ("object",)
        spec = ModelSpec(classes, found.category_ids or (1,), file.path.name, "", TILE)
        detections = found.detections.by_score()
        with open_writer(path, spec, kind) as write:
            write(
                SceneDetections(self.path.name, 1, self.width, self.height, detections, georeference=self.georeference)
            )


def open_view(
    scene: Path,
    files: Sequence[Path],
    *,
    image_id: int | str | None = None,
    categories: dict[Any, str] | None = None,
    tilings: Callable[[int, int], tuple[TileGrid, ...]] = lambda width, height: (),
    bands: tuple[int, ...] | None = None,
) -> View:
    """Open a scene and read the files of detections.

    Args:
        image_id, categories: see `SceneName`.
        tilings: returns how a scene of a width and height was tiled, the full pass first.
        bands: 1-based bands to show; None for the default.

    Raises:
        ValueError, OSError, ModuleNotFoundError: a file cannot be read, or does not belong to the scene.
    """
    with open_scene(scene, bands=bands) as opened:
        width, height = opened.width, opened.height
    name = SceneName(scene.name, width, height, image_id, categories)
    ids, grids, viewed = _distinct(file.name for file in files), tilings(width, height), []
    for id, file in zip(ids, files, strict=True):
        found = read_detections(file, name)
        if grids and "tile" not in found.detections.data:
            found = dataclasses.replace(found, detections=with_tiles(found.detections, grids[0]))
        viewed.append(ViewedFile(id, file, found))
    return View(scene, width, height, tuple(viewed), grids, bands, georeference_of(scene))


def with_tiles(detections: Detections, grid: TileGrid) -> Detections:
    """Return detections with the tile and the seam distance that they have if each is from the tile that shows it best.

    That is the tile in which the box is farthest from the inner edges.
    """
    columns, x = _best(grid.xs, grid.tile_width, grid.width, detections.boxes[:, 0], detections.boxes[:, 2])
    rows, y = _best(grid.ys, grid.tile_height, grid.height, detections.boxes[:, 1], detections.boxes[:, 3])
    data = {
        "tile": (rows * grid.columns + columns).astype(np.int32),
        "pass": np.zeros(len(detections), np.int32),
        "seam_distance": np.minimum(x, y).astype(np.float32),
    }
    return dataclasses.replace(detections, data={**detections.data, **data})


def _best(
    starts: Sequence[int], side: int, length: int, low: NDArray[Any], high: NDArray[Any]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return along one axis the tile in which each box is farthest from the inner edges, and this distance."""
    best, most = np.zeros(len(low), np.int64), np.full(len(low), -np.inf)
    for n, start in enumerate(starts):
        before = low - start if start > 0 else np.full(len(low), np.inf)
        after = start + side - high if start + side < length else np.full(len(low), np.inf)
        distance = np.minimum(before, after).astype(np.float64)
        closer = distance > most
        best[closer], most[closer] = n, distance[closer]
    return best, np.maximum(most, 0)


# ------------------------------------------------------------------------------------------------------- application


def view_application(view: View, store: SceneStore, hosts: Sequence[str]) -> Any:
    """Return a FastAPI application that shows a view.

    Args:
        store: receives the scene and its results; the caller closes it.
        hosts: names by which the server may be called, which stops pages of other sites (DNS rebinding); "*" for any.

    Raises:
        ModuleNotFoundError: FastAPI is not installed.
    """
    with needs_extra("serve"):
        from fastapi import FastAPI, HTTPException
        from fastapi.responses import FileResponse
        from starlette.background import BackgroundTask
        from starlette.middleware.trustedhost import TrustedHostMiddleware

    store.add_scene(SCENE, view.path.name, view.open, georeferenced=view.georeference is not None)
    for job, result in view.results():
        store.set_result(SCENE, job, result)
    app = FastAPI(title="tinydet view", version=tinydet.__version__, docs_url=None, redoc_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    app.include_router(page_router())
    app.include_router(scenes_router(store))
    files = {each.id: each for each in view.files}

    @app.get("/info")
    def info() -> dict[str, Any]:
        """Describe the server: it shows results that exist and runs no jobs."""
        return {"service": "tinydet view", "version": tinydet.__version__, "jobs": False}

    @app.get("/jobs/{job}/results", response_class=FileResponse)
    def results(job: str, format: str = "coco") -> FileResponse:
        """Download a result in another format."""
        if job not in files:
            raise HTTPException(404, f"there is no job {job[:80]!r}")
        if format not in view.formats():
            raise HTTPException(422, f"format: expected one of {', '.join(view.formats())}")
        folder = Path(tempfile.mkdtemp(prefix="tinydet-view-"))
        path = folder / _download(files[job], format)
        try:
            view.write(files[job], format, path)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return FileResponse(path, filename=path.name, background=BackgroundTask(shutil.rmtree, folder, True))

    return app


# ----------------------------------------------------------------------------------------------------- static folder


def check_export_folder(folder: Path) -> None:
    """Check that a static folder can be written: it does not exist, is empty, or is an earlier one.

    Raises:
        ValueError: it holds something else, or cannot be created.
    """
    check_folder(folder)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / DATA).is_file():
        raise ValueError(f"{folder} has other files; name a new or empty folder")


def export_tiles(view: View) -> int:
    """Return the number of tiles of a static folder."""
    levels = Levels(view.width, view.height)
    return levels.count(levels.max_level)


def export_view(view: View, folder: Path, progress: Progress | None = None) -> None:
    """Write the page, the tiles of the scene and the detections to a folder that any web server can serve.

    The folder appears when it is complete, and replaces an earlier one.

    Args:
        progress: called with 1 after each tile.

    Raises:
        ValueError, OSError: as `check_export_folder`; the scene is damaged, or a file cannot be written.
    """
    check_export_folder(folder)
    target = folder.resolve()  # where a link leads
    created = make_folder(target.parent)
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # left by a killed process
    try:
        part.mkdir()
        _write_folder(view, part, progress)
        if target.is_dir():
            shutil.rmtree(target)
        part.rename(target)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        remove_empty(created)
        raise


def _write_folder(view: View, folder: Path, progress: Progress | None) -> None:
    copy_page(folder)
    levels = Levels(view.width, view.height)
    results = []
    (folder / "data" / "results").mkdir(parents=True)
    (folder / "downloads").mkdir()
    for each, (job, result) in zip(view.files, view.results(), strict=True):
        found = Found(each.found.detections)
        of = found.detections
        columns = {"boxes": found.boxes, "scores": of.scores, "seam_distance": of.seam_distance, "labels": of.labels,
                   "tiles": of.tiles, "passes": of.passes}  # fmt: skip
        data = b"".join(np.ascontiguousarray(columns[name], kind).tobytes() for name, kind, _ in COLUMNS)
        (folder / "data" / "results" / f"{job}.bin").write_bytes(data)
        downloads = {}
        for kind in result.formats:
            name = _download(each, kind)
            view.write(each, kind, folder / "downloads" / name)
            downloads[kind] = f"downloads/{name}"
        summary = found.summary(len(result.classes))
        results.append({
            "job": job,
            "file": f"data/results/{job}.bin",
            "count": len(found),
            "columns": [[name, kind, width] for name, kind, width in COLUMNS],
            "score_edges": summary["score_edges"],
            "has_seams": summary["has_seams"],
            "downloads": downloads,
        })  # fmt: skip
    store = SceneStore()
    store.add_scene(SCENE, view.path.name, view.open, georeferenced=view.georeference is not None)
    for job, result in view.results():
        store.set_result(SCENE, job, result)
    with contextlib.closing(store):
        described = {**store.describe(SCENE), "overview": None}
    described["results"] = [entry | extra for entry, extra in zip(described["results"], results, strict=True)]
    described["size_edges"] = np.round(SIZES.astype(np.float64), 2).tolist()
    described["version"] = tinydet.__version__
    with view.open() as scene:
        for (level, column, row), tile in pyramid(scene, levels.max_level):
            path = folder / "data" / "tiles" / str(level) / str(column) / f"{row}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(tile)
            if progress is not None:
                progress(1)
    (folder / DATA).write_text(json.dumps(described, allow_nan=False), encoding="utf-8")


def _detections(found: FileDetections) -> Detections:
    return found.detections


def _download(file: ViewedFile, kind: str) -> str:
    suffix = "" if kind in ("coco", "yolo") else ".results" if kind == "coco-results" else ".conf"
    form = FORMATS[kind]
    return f"{file.id}{suffix if form.suffix in ('.json', '.txt') else ''}{form.suffix}"


def _distinct(names: Iterable[str]) -> list[str]:
    """Return an id for each file name: its stem in plain characters, numbered where several are the same.

    >>> _distinct(["a.json", "b c.csv", "a.csv"])
    ['a', 'b-c', 'a-2']
    """
    ids: list[str] = []
    for name in names:
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", name.rsplit(".", 1)[0]).strip("-.")[:60] or "result"
        number = 1
        while (id := stem if number == 1 else f"{stem}-{number}") in ids:
            number += 1
        ids.append(id)
    return ids
