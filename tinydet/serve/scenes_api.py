"""The routes that read scenes and finished detections: tiles, crops, detections by view, summaries."""

# Annotations are evaluated when a route is defined, because FastAPI is imported inside of functions.

import asyncio
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import cv2

from tinydet._internal.extras import needs_extra
from tinydet.geometry.tiles import TileGrid
from tinydet.runtime.scenes import Scene
from tinydet.serve.found import MAX_GRID, MAX_PAGE, Corners, Found, Result
from tinydet.serve.tiles import HANDLES, MAX_CROP, TILE, SceneTiles, TilePendingError

OPEN_SCENES = 32  # scenes whose files are open; the one that was not used for the longest time is closed
IMMUTABLE = {"Cache-Control": "private, max-age=86400, immutable"}


class SceneStore:
    """The scenes of a server and their results, for several threads.

    Scenes are opened, and results are loaded, when they are asked for. A subclass whose scenes and results change
    elsewhere brings the store up to date in `update` and `update_scene`.
    """

    def __init__(self, capacity: int = 8) -> None:
        """
        Args:
            capacity: number of loaded results that are kept.
        """
        self._lock = threading.RLock()
        self._scenes: OrderedDict[str, _Entry] = OrderedDict()  # the last used one is last
        self._loaded: OrderedDict[tuple[str, str, int], Found] = OrderedDict()
        self._capacity = capacity

    def update(self) -> None:
        """Add the scenes that there are by now."""

    def update_scene(self, scene_id: str) -> None:
        """Add or remove a scene and its results, as they are by now."""

    def public(self, scene_id: str, message: str) -> str:
        """Return a message about a scene without what clients must not see, such as paths."""
        return message

    def add_scene(
        self,
        scene_id: str,
        name: str,
        open: Callable[[], Scene],
        *,
        georeferenced: bool = False,
        size: tuple[int, int] | None = None,
        state: object = None,
    ) -> None:
        """Add a scene; one that is known keeps its results.

        Args:
            size: width and height if they are known before the scene is opened.
            state: of the file. A scene of another state replaces the one that is known.
        """
        with self._lock:
            known = self._scenes.get(scene_id)
        if known is not None and known.state != state:
            self.drop_scene(scene_id)
        with self._lock:
            if scene_id not in self._scenes:
                self._scenes[scene_id] = _Entry(name, open, georeferenced, size, state)

    def set_result(self, scene_id: str, job_id: str, result: Result) -> None:
        """Add the result of a job, or replace it, for example when a running job has found more.

        Raises:
            LookupError: there is no such scene.
        """
        with self._lock:
            entry = self._entry(scene_id)
            revision = entry.results[job_id][1] + 1 if job_id in entry.results else 1
            entry.results[job_id] = result, revision
            self._loaded.pop((scene_id, job_id, revision - 1), None)

    def drop_result(self, job_id: str) -> None:
        """Remove the result of a job from all scenes."""
        with self._lock:
            for entry in self._scenes.values():
                entry.results.pop(job_id, None)
            for key in [key for key in self._loaded if key[1] == job_id]:
                del self._loaded[key]

    def drop_scene(self, scene_id: str) -> None:
        """Remove a scene and close its file."""
        with self._lock:
            entry = self._scenes.pop(scene_id, None)
            for key in [key for key in self._loaded if key[0] == scene_id]:
                del self._loaded[key]
        if entry is not None:
            entry.close()

    def close(self) -> None:
        """Close all files."""
        for scene_id in list(self._scenes):
            self.drop_scene(scene_id)

    def scene_ids(self) -> list[str]:
        """Return the ids of all scenes, in the order in which they were added."""
        with self._lock:
            return sorted(self._scenes, key=lambda scene_id: self._scenes[scene_id].number)

    def job_ids(self, scene_id: str) -> list[str]:
        """Return the ids of the jobs of a scene, the latest last; none for an unknown scene."""
        with self._lock:
            return list(self._scenes[scene_id].results) if scene_id in self._scenes else []

    def tiles(self, scene_id: str) -> SceneTiles:
        """Return the tiles of a scene, which is opened if it is not.

        Raises:
            LookupError: there is no such scene.
            ValueError, OSError, ModuleNotFoundError: it cannot be opened.
        """
        if scene_id not in self._scenes:
            self.update_scene(scene_id)
        with self._lock:
            entry = self._entry(scene_id)
            self._scenes.move_to_end(scene_id)
            opened = [each for each in self._scenes.values() if each.tiles is not None and each is not entry]
            idle = opened[: max(0, len(opened) - OPEN_SCENES + 1)]
        for each in idle:
            each.close()
        return entry.opened()

    def result(self, scene_id: str, job_id: str | None) -> tuple[str, Result, Found]:
        """Return the id of a job, its result and the loaded detections.

        Args:
            job_id: None for the latest job of the scene.

        Raises:
            LookupError: there is no such scene or result.
            ValueError, OSError: the result cannot be loaded.
        """
        self.update_scene(scene_id)
        with self._lock:
            entry = self._entry(scene_id)
            if not entry.results:
                raise LookupError(f"the scene {scene_id!r} has no results")
            job_id = next(reversed(entry.results)) if job_id is None else job_id
            if job_id not in entry.results:
                raise LookupError(f"the scene {scene_id!r} has no result of the job {job_id!r}")
            result, revision = entry.results[job_id]
            key = scene_id, job_id, revision
            if key in self._loaded:
                self._loaded.move_to_end(key)
                return job_id, result, self._loaded[key]
        found = Found(result.load())
        with self._lock:
            self._loaded[key] = found
            while len(self._loaded) > self._capacity:
                self._loaded.popitem(last=False)
        return job_id, result, found

    def describe(self, scene_id: str) -> dict[str, Any]:
        """Return what the page must know about a scene.

        Raises:
            LookupError: there is no such scene.
            ValueError, OSError, ModuleNotFoundError: it cannot be opened.
        """
        self.update_scene(scene_id)
        tiles = self.tiles(scene_id)
        with self._lock:
            entry = self._entry(scene_id)
            results = [_described(job, *each) for job, each in entry.results.items()]
        levels = tiles.levels
        return {
            "id": scene_id,
            "name": entry.name,
            "version": entry.version,
            "width": levels.width,
            "height": levels.height,
            "tile_size": TILE,
            "min_level": 0,
            "max_level": levels.max_level,
            "georeferenced": entry.georeferenced,
            "overview": tiles.progress,
            "results": results,
        }

    def listed(self) -> list[dict[str, Any]]:
        """Return id, name, size and job ids of each scene; a scene that was never opened has no size."""
        self.update()
        rows = []
        for scene_id in self.scene_ids():
            with self._lock:
                entry = self._scenes.get(scene_id)
            if entry is not None:
                width, height = entry.size or (None, None)
                row = {"id": scene_id, "name": entry.name, "width": width, "height": height}
                rows.append({**row, "jobs": list(entry.results)})
        return rows

    def _entry(self, scene_id: str) -> "_Entry":
        if scene_id not in self._scenes:
            raise LookupError(f"there is no scene {scene_id!r}")
        return self._scenes[scene_id]


class _Entry:
    """A scene of the store."""

    count = 0

    def __init__(
        self,
        name: str,
        open: Callable[[], Scene],
        georeferenced: bool,
        size: tuple[int, int] | None,
        state: object,
    ) -> None:
        _Entry.count += 1
        self.version = secrets.token_hex(4)  # in the addresses of tiles, which browsers keep
        self.state = state
        self.number = _Entry.count
        self.name, self.georeferenced = name, georeferenced
        self.results: dict[str, tuple[Result, int]] = {}  # with its revision
        self.tiles: SceneTiles | None = None
        self.size = size
        self._open, self._lock = open, threading.Lock()

    def opened(self) -> SceneTiles:
        with self._lock:
            if self.tiles is None:
                self.tiles = SceneTiles(self._open)
                self.size = self.tiles.levels.width, self.tiles.levels.height
            return self.tiles

    def close(self) -> None:
        with self._lock:
            tiles, self.tiles = self.tiles, None
        if tiles is not None:
            tiles.close()


def scenes_router(store: SceneStore) -> Any:
    """Return a FastAPI router with the routes of a store.

    Raises:
        ModuleNotFoundError: FastAPI is not installed.
    """
    with needs_extra("serve"):
        from fastapi import APIRouter, HTTPException, Path, Query, Response

    router = APIRouter(tags=["scenes"])
    readers = ThreadPoolExecutor(2 * HANDLES, "tiles")  # apart from the threads of other requests

    Id = Annotated[str, Path(max_length=200)]
    Job = Annotated[str | None, Query(max_length=200, description="a job of the scene; default: the latest")]
    Score = Annotated[float, Query(allow_inf_nan=False, description="minimum score")]
    Box = Annotated[str, Query(max_length=200, description="x1,y1,x2,y2 in pixels of the scene")]
    Classes = Annotated[list[str] | None, Query(alias="class", description="names of classes; default: all")]

    def answered(scene: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function of the store; what a client can cause becomes 404, 422 or 503."""
        try:
            return function(*arguments)
        except TilePendingError:
            raise HTTPException(503, "the overview of the scene is being read", {"Retry-After": "1"}) from None
        except LookupError as error:
            raise HTTPException(404, str(error.args[0])) from error
        except (ValueError, OSError) as error:
            raise HTTPException(422, store.public(scene, str(error))) from error

    @router.get("/scenes")
    def list_scenes() -> dict[str, Any]:
        """List the scenes: id, name, width, height and the ids of their jobs."""
        return {"scenes": store.listed()}

    @router.get("/scenes/{scene}")
    def describe_scene(scene: Id) -> dict[str, Any]:
        """Describe a scene and its results."""
        described: dict[str, Any] = answered(scene, store.describe, scene)
        return described

    @router.get("/scenes/{scene}/tiles/{level}/{x}/{y}.jpg", response_class=Response)
    async def tile(scene: Id, level: int, x: int, y: int) -> Response:
        """Return a tile of a Deep Zoom level as JPEG."""

        def read() -> bytes:
            data: bytes = answered(scene, lambda: store.tiles(scene).tile(level, x, y))
            return data

        data = await asyncio.get_running_loop().run_in_executor(readers, read)
        return Response(data, media_type="image/jpeg", headers=IMMUTABLE)

    @router.get("/scenes/{scene}/crop", response_class=Response)
    async def crop(
        scene: Id, bbox: Box, size: Annotated[int | None, Query(ge=1, le=MAX_CROP, description="longest side")] = None
    ) -> Response:
        """Return a part of the scene as PNG, enlarged or reduced to `size` pixels."""

        def read() -> bytes:
            tiles: SceneTiles = answered(scene, store.tiles, scene)
            corners = _inside(answered(scene, parse_corners, bbox), tiles)
            if corners is None:
                raise HTTPException(422, "bbox: no pixel of the scene is inside")
            pixels = answered(scene, tiles.crop, corners, size)
            return bytes(cv2.imencode(".png", pixels[..., ::-1])[1])

        data = await asyncio.get_running_loop().run_in_executor(readers, read)
        return Response(data, media_type="image/png", headers=IMMUTABLE)

    @router.get("/scenes/{scene}/detections")
    def detections(
        scene: Id,
        job: Job = None,
        bbox: Box | None = None,
        score: Score = 0.0,
        classes: Classes = None,
        limit: Annotated[int, Query(ge=0, le=MAX_PAGE)] = 1000,
        offset: Annotated[int, Query(ge=0, le=1 << 40)] = 0,
        from_id: Annotated[int | None, Query(ge=0, le=1 << 40, description="start at this id, not at `offset`")] = None,
        grid: Annotated[int, Query(ge=0, le=MAX_GRID, description="count K x K cells of bbox instead")] = 0,
    ) -> dict[str, Any]:
        """Return detections as columns, best first; with `grid`, their density."""
        job, result, found = answered(scene, store.result, scene, job)
        corners = None if bbox is None else answered(scene, parse_corners, bbox)
        ids = found.select(corners, score, _labels(result, classes))
        answer: dict[str, Any] = {"job": job, "total": len(ids)}
        if grid:
            if corners is None:
                levels = answered(scene, store.tiles, scene).levels
                corners = 0.0, 0.0, float(levels.width), float(levels.height)
            return {**answer, "bbox": corners, "grid": found.density(ids, corners, grid)}
        if from_id is not None:
            offset = int(ids.searchsorted(from_id))
        page = ids[offset : offset + limit]
        return {**answer, "offset": offset, **found.columns(page)}

    @router.get("/scenes/{scene}/summary")
    def summary(scene: Id, job: Job = None, score: Score = 0.0) -> dict[str, Any]:
        """Return counts by class and score, and the histogram of sizes from a score on."""
        job, result, found = answered(scene, store.result, scene, job)
        return {"job": job, "classes": result.classes, **found.summary(len(result.classes), score)}

    return router


def parse_corners(text: str) -> Corners:
    """Parse "x1,y1,x2,y2".

    Raises:
        ValueError: it is something else.
    """
    try:
        x1, y1, x2, y2 = map(float, text.split(","))
    except ValueError:
        raise ValueError(f"bbox: expected x1,y1,x2,y2, got {text[:80]!r}") from None
    if not (-1e12 < x1 <= x2 < 1e12 and -1e12 < y1 <= y2 < 1e12):
        raise ValueError(f"bbox: expected x1 <= x2 and y1 <= y2, got {text[:80]!r}")
    return x1, y1, x2, y2


def _inside(corners: Corners, tiles: SceneTiles) -> tuple[int, int, int, int] | None:
    """Return whole pixels of the scene that cover the corners; None for none."""
    x1, y1 = max(0, int(corners[0] // 1)), max(0, int(corners[1] // 1))
    x2, y2 = min(tiles.levels.width, int(-(-corners[2] // 1))), min(tiles.levels.height, int(-(-corners[3] // 1)))
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


def _labels(result: Result, classes: list[str] | None) -> list[int] | None:
    if classes is None:
        return None
    wanted = set(classes)
    return [label for label, name in enumerate(result.classes) if name in wanted]


def _described(job_id: str, result: Result, revision: int) -> dict[str, Any]:
    return {
        "job": job_id,
        "name": result.name,
        "classes": result.classes,
        "category_ids": result.category_ids,
        "complete": result.complete,
        "revision": revision,
        "formats": result.formats,
        "details": result.details,
        "tilings": [_edges(grid) for grid in result.tilings],
    }


def _edges(grid: TileGrid) -> dict[str, Any]:
    return {"xs": grid.xs, "ys": grid.ys, "width": grid.tile_width, "height": grid.tile_height}
