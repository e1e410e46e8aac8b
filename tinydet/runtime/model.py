"""The Python API: load a model once, give it scenes, and get arrays, images or the types of other tools."""

from __future__ import annotations

import dataclasses
import glob
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, NoReturn, TypeAlias, TypeGuard, cast, overload

import numpy as np
from numpy.typing import NDArray

from tinydet._internal.arguments import quoted
from tinydet._internal.extras import needs_extra
from tinydet._internal.names import public_location
from tinydet._internal.progress import Progress
from tinydet._internal.stores import is_bucket, is_store, to_path
from tinydet.runtime.auto_tile import AutoTile, auto_overlap
from tinydet.runtime.backends import Backend, choose_model
from tinydet.runtime.backends.function import FunctionBackend, TileFunction, describe_function
from tinydet.runtime.domain import gsd_of, unlike_training
from tinydet.runtime.drawing import draw
from tinydet.runtime.image_output import MAX_SIDE, SUGGESTED, check_image_path, longest_side, save_image
from tinydet.runtime.options import ScanOptions
from tinydet.runtime.scan import SceneResult, detect_scene, detect_scenes
from tinydet.runtime.scenes import EXPECTED, Image, Scene, SceneLike, open_scene
from tinydet.runtime.scenes.camera_metadata import CameraMetadata, read_camera
from tinydet.runtime.scenes.footprint import footprint_of
from tinydet.runtime.scenes.georeference import Georeference, GeoreferenceError, georeference_of
from tinydet.runtime.scenes.memory import is_pillow, name_of_file, open_bytes, read_all
from tinydet.runtime.scenes.sources import IMAGES, VIDEOS, find_sources, is_stream, path_of
from tinydet.runtime.scenes.video import RATE, Video
from tinydet.runtime.score_calibration import score_thresholds
from tinydet.runtime.tracking import TRACK, VideoTracker, check_tracking
from tinydet.runtime.writers import CLASSES, SceneDetections, UnknownSuffixError, format_of, open_writer, write_classes
from tinydet.runtime.writers.table import columns
from tinydet.spec import ModelSpec

logger = logging.getLogger("tinydet.runtime")

Detector: TypeAlias = "Model | Path | str | Backend | TileFunction"

SCORE = 0.3  # default minimum score of a `Model`; the low default of `ScanOptions` is for measuring average precision


class Detection(NamedTuple):
    """One object.

    Attributes:
        box: (4,) x1, y1, x2, y2 in pixels of the scene.
        score: 0 to 1.
        label: index into the model's classes.
        class_name: name of the class.
    """

    box: NDArray[np.float32]
    score: float
    label: int
    class_name: str


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Prediction(SceneDetections):
    """What a model found in one scene, by descending score. Extends `SceneDetections`.

    A sequence: `len(found)`, `for detection in found`, `found[0]` is a `Detection`; `found[:10]` and
    `found[found.scores > 0.5]` are predictions.

    Attributes:
        spec: of the model; names and COCO ids of its classes.
        result: number of tiles, of saturated tiles, seconds; see `SceneResult`. Selections keep that of the scan.
        source: what the scene was read from, for `plot` and `crop`: a path, or pixels in memory. A frame of a video
            keeps its pixels.
        warnings: how the scene differs from the training images of the model, see `tinydet.runtime.domain`; empty if it
            does not.
    """

    spec: ModelSpec
    result: SceneResult
    source: SceneLike | None = None
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.detections)

    def __iter__(self) -> Iterator[Detection]:
        rows = zip(self.boxes, self.scores.tolist(), self.labels.tolist(), strict=True)
        for box, score, label in rows:
            yield Detection(box, score, label, self.spec.classes[label])

    @overload
    def __getitem__(self, which: int) -> Detection: ...

    @overload
    def __getitem__(self, which: slice | Sequence[int] | Sequence[bool] | NDArray[Any]) -> Prediction: ...

    def __getitem__(self, which: int | slice | Sequence[int] | Sequence[bool] | NDArray[Any]) -> Detection | Prediction:
        """Return one detection for an integer, else the selection: a slice, a boolean mask or indices."""
        if isinstance(which, int | np.integer) and not isinstance(which, bool):
            label = int(self.labels[which])
            return Detection(self.boxes[which], float(self.scores[which]), label, self.spec.classes[label])
        if not isinstance(which, slice):
            which = np.asarray(which) if len(np.atleast_1d(which)) else np.zeros(0, np.intp)
            if which.ndim != 1 or which.dtype.kind not in "iub":
                raise TypeError(f"expected an integer, a slice, a boolean mask or indices, got {quoted(which)}")
        return dataclasses.replace(self, detections=self.detections[which])

    def __repr__(self) -> str:
        counts = np.bincount(self.labels, minlength=len(self.spec.classes)).tolist()
        found = ", ".join(f"{count} {name}" for name, count in zip(self.spec.classes, counts, strict=True) if count)
        number = f"{len(self)} detection{'' if len(self) == 1 else 's'}"
        return f"Prediction({self.scene!r}, {self.width}x{self.height}, {number}{found and f': {found}'})"

    def filter(self, *, score: float = 0.0, classes: str | int | Iterable[str | int] | None = None) -> Prediction:
        """Return the detections with at least this score and of these classes.

        Args:
            score: minimum score.
            classes: names or indices of classes, one or several; None for all.

        Raises:
            ValueError: the model has no such class, or the score is not a number.
        """
        if not isinstance(score, int | float | np.number) or np.isnan(score):
            raise ValueError(f"score: expected a number, got {quoted(score)}")
        kept = self.scores >= score
        if classes is not None:
            wanted = list(classes) if isinstance(classes, Iterable) and not isinstance(classes, str) else [classes]
            known = self.spec.classes
            indices = [known.index(c) if isinstance(c, str) and c in known else c for c in wanted]
            for index in indices:
                if not isinstance(index, int | np.integer) or isinstance(index, bool) or not 0 <= index < len(known):
                    raise ValueError(f"the model has no class {index!r}; choose from {', '.join(known)}")
            kept &= np.isin(self.labels, np.asarray(indices, np.int64))
        return self[kept]

    @property
    def boxes(self) -> NDArray[np.float32]:
        """(N, 4) xyxy in pixels of the scene."""
        return self.detections.boxes

    @property
    def scores(self) -> NDArray[np.float32]:
        """(N,) descending."""
        return self.detections.scores

    @property
    def labels(self) -> NDArray[np.int32]:
        """(N,) index into `spec.classes`."""
        return self.detections.labels

    @property
    def tracks(self) -> NDArray[np.int64] | None:
        """(N,) number of the object, the same in all frames; -1 for a detection without one. None without tracking."""
        return self.detections.tracks

    @property
    def class_names(self) -> NDArray[np.object_]:
        """(N,) names of the classes, so that `found[found.class_names == "car"]` selects one."""
        return np.array(self.spec.classes, object)[self.labels]

    def plot(self, path: Path | str | None = None, *, legend: bool = False) -> Image:
        """Draw the detections on the scene: an array (H, W, 3) uint8 in RGB.

        It has the size of the scene, or at most 16 million pixels for a scene of more than 40 million. For OpenCV,
        which takes BGR: `found.plot()[..., ::-1]`.

        Args:
            path: also write the drawing to this image file.
            legend: append the classes with their counts below the scene.

        Raises:
            ValueError: the image cannot be read again, or not be written with this suffix.
            OSError: a file is missing or cannot be written.
        """
        if path is not None:
            check_image_path(to_path(path))
        side = MAX_SIDE if path is None else longest_side(to_path(path))
        with self._open() as scene:
            image = draw(scene, self.detections, self.spec.classes, legend=legend, max_side=side)
        if path is not None:
            save_image(to_path(path), image)
        return image

    def crop(self, padding: float = 0) -> list[Image]:
        """Cut the detections out of the scene: arrays (h, w, 3) uint8 in RGB, in the order of the boxes.

        Args:
            padding: pixels of the scene to add on each side. Crops end at the border of the scene.

        Raises:
            ValueError: the padding is negative, or the image cannot be read again.
            OSError: the file is missing.
        """
        if not isinstance(padding, int | float | np.number) or not 0 <= padding < np.inf:
            raise ValueError(f"padding must be a number of pixels, 0 or more, got {quoted(padding)}")
        with self._open() as scene:
            size = np.array((scene.width, scene.height))
            low = np.clip(np.floor(self.boxes[:, :2].astype(np.float64) - padding), 0, size - 1).astype(int)
            high = np.clip(np.ceil(self.boxes[:, 2:].astype(np.float64) + padding), low + 1, size).astype(int)
            return [
                scene.read(x1, y1, x2 - x1, y2 - y1).copy()
                for (x1, y1), (x2, y2) in zip(low.tolist(), high.tolist(), strict=True)
            ]

    def _open(self) -> AbstractContextManager[Scene]:
        """Open the scene again.

        Raises:
            ValueError: the prediction has no image, or the image has changed its size.
        """
        if self.source is None:
            raise ValueError(f"{self.scene}: this prediction has no image to draw on")
        if isinstance(self.source, Scene):
            return nullcontext(self.source)  # closed by whoever opened it
        scene = open_scene(self.source, stretch=self.spec.stretch)
        if (scene.width, scene.height) != (self.width, self.height):
            scene.close()
            raise ValueError(
                f"{self.scene} has {scene.width}x{scene.height} pixels, and had {self.width}x{self.height} when it was "
                "scanned; scan it again"
            )
        return scene

    def to_coco(self) -> list[dict[str, Any]]:
        """Convert to COCO results, with the category ids of the training annotations."""
        return self.detections.to_coco(self.image_id, self.spec.category_ids)

    def to_pandas(self) -> Any:
        """Convert to a `pandas.DataFrame` with one row per box and the columns of the CSV file.

        Raises:
            ModuleNotFoundError: pandas is not installed.
        """
        with needs_extra("tables"):
            import pandas
        return pandas.DataFrame(columns(self, self.spec))

    def to_supervision(self) -> Any:
        """Convert to `supervision.Detections`; its `data` has the class names and the columns of `Detections`.

        Raises:
            ModuleNotFoundError: supervision is not installed.
        """
        with needs_extra("supervision"):
            import supervision
        found = self.detections
        data = {"tile": found.tiles, "pass": found.passes, "seam_distance": found.seam_distance, **found.data}
        data.pop(TRACK, None)
        return supervision.Detections(
            xyxy=found.boxes.copy(),
            confidence=found.scores.copy(),
            class_id=found.labels.astype(int),
            tracker_id=None if found.tracks is None else found.tracks.astype(int),
            data={
                "class_name": np.asarray(self.class_names, str),
                **{name: column.copy() for name, column in data.items()},
            },
        )

    def to_fiftyone(self) -> Any:
        """Convert to `fiftyone.Detections`, a field of a FiftyOne sample.

        Raises:
            ModuleNotFoundError: FiftyOne is not installed.
        """
        with needs_extra("fiftyone"):
            import fiftyone
        found = self.detections
        corners = found.boxes.astype(np.float64) / ((self.width, self.height) * 2)
        corners[:, 2:] -= corners[:, :2]  # FiftyOne: left, top, width, height, as fractions of the image
        tracks = [-1] * len(found) if found.tracks is None else found.tracks.tolist()
        rows = zip(self.class_names, corners.tolist(), found.scores.tolist(), found.tiles.tolist(), tracks, strict=True)
        return fiftyone.Detections(
            detections=[
                fiftyone.Detection(
                    label=name, bounding_box=box, confidence=score, index=None if track < 0 else track, tile=tile
                )
                for name, box, score, tile, track in rows
            ]
        )

    def save(self, path: Path | str, format: str | None = None) -> None:
        """Write a file in the format of its suffix: detections, or an image with the detections drawn on it.

        YOLO labels (`.txt`) come with a `classes.txt` in the same folder.

        Args:
            format: a key of `tinydet.runtime.writers.FORMATS`, such as "coco-results".

        Raises:
            ValueError: an unknown suffix or format, or a map format for a scene without georeference.
            OSError: the file cannot be written.
        """
        path = to_path(path)
        if format is None and path.suffix.lower() in IMAGES:
            self.plot(path, legend=True)
            return
        try:
            writer = open_writer(path, self.spec, format)
        except UnknownSuffixError as error:
            raise ValueError(f"{error}, and {SUGGESTED} for an image with the detections drawn on it") from error
        with writer as write:
            write(self)
        if format_of(path, None if format is None else [format]).one_scene:
            write_classes(path.with_name(CLASSES), self.spec)


class Model:
    """An exported model, and how it scans scenes.

    Attributes:
        backend: what runs the model.
        options: how scenes are scanned.
    """

    def __init__(self, backend: Backend, options: ScanOptions | None = None, **changes: Any) -> None:
        """
        Args:
            options: how scenes are scanned; None for the defaults of `ScanOptions` with a score of 0.3.
            changes: fields of `ScanOptions` that replace those of `options`, for example `overlap=64`.

        Raises:
            ValueError: an option is out of range, or the score is "auto" and the model has no thresholds.
        """
        self.backend = backend
        self.options = (ScanOptions(score=SCORE) if options is None else options).changed(changes)
        score_thresholds(self.spec, self.options.score)  # refuses "auto" if the model has no thresholds
        self._has_warned = False

    def __repr__(self) -> str:
        spec, classes = self.spec, ", ".join(self.spec.classes)
        network = f"{spec.detector} {spec.backbone}".strip()
        return f"Model({network}, tile {spec.tile}, {self.backend.name}: {classes})"

    @property
    def spec(self) -> ModelSpec:
        """The description that the model carries."""
        return self.backend.spec

    @overload
    def detect(
        self, scene: SceneLike, *, image_id: int = 1, progress: Progress | None = None, gps: bool = False
    ) -> Prediction: ...

    @overload
    def detect(
        self,
        scene: list[Any] | tuple[Any, ...],
        *,
        image_id: int = 1,
        progress: Progress | None = None,
        gps: bool = False,
    ) -> list[Prediction]: ...

    def detect(
        self,
        scene: SceneLike | list[Any] | tuple[Any, ...],
        *,
        image_id: int = 1,
        progress: Progress | None = None,
        gps: bool = False,
        **options: NoReturn,
    ) -> Prediction | list[Prediction]:
        """Detect the objects of one scene, or of each scene of a list or tuple, whose tiles share batches.

        Args:
            scene: an image file or raster of any size; the content of an image file as bytes, or an open binary file; a
                Pillow image of any mode; an array (H, W) or (H, W, C) in RGB; an open scene; or a list of these.
            image_id: for COCO files; further scenes of a list count up.
            progress: called with the number of tiles that were just finished; `tqdm.update` fits.
            gps: place the detections of a drone photo without georeference by its camera metadata, as `tinydet infer
                --gps` does. A photo that cannot be placed has no georeference, and a warning says why.

        Returns:
            A prediction; a list of them for a list.

        Raises:
            ValueError: the scene is damaged, an option does not fit the model, or the model returns invalid outputs.
            OSError: the file is missing.
            TypeError: `scene` is something else; or an option of the scan, which belongs to `load`.
        """
        _refuse("detect", options)
        if isinstance(scene, list | tuple):
            entries = [_Input(one, self.spec, self.options.scale, gps, i) for i, one in enumerate(scene)]
            sources = [entry.open() if isinstance(entry.source, Scene) else entry.open for entry in entries]
            results = detect_scenes(self.backend, sources, self.options, progress=progress)
            return [
                self._warned(entry.prediction(result, id))
                for id, (entry, result) in enumerate(zip(entries, results, strict=True), image_id)
            ]
        return self._detect(scene, image_id, progress, gps=gps)

    def stream(
        self,
        scenes: SceneLike | Iterable[SceneLike],
        *,
        gps: bool = False,
        track: bool = False,
        **options: NoReturn,
    ) -> Iterator[Prediction]:
        """Detect the objects of one scene after the other. A scene is read when its prediction is requested.

        Args:
            scenes: each as for `detect`, or a folder, a pattern (`flight/**/*.tif`), a video file, a stream
                (`rtsp://...`) or a webcam (`"0"`). Each frame of a video is a scene.
            gps: as for `detect`.
            track: number the objects of each video, see `Prediction.tracks`. Images are the frames of one video, in
                their order, 25 per second. Detections down to a third of the score are kept if they continue a track.

        Raises:
            ValueError, OSError, TypeError: as `detect`; also if a pattern matches nothing, or a stream breaks.
            ModuleNotFoundError: `track` needs a package that is not installed.
        """
        _refuse("stream", options)
        if track:
            check_tracking()
        return self._stream(scenes, gps=gps, track=track)

    def _stream(self, scenes: SceneLike | Iterable[SceneLike], *, gps: bool, track: bool) -> Iterator[Prediction]:
        if not _is_one(scenes) and (not isinstance(scenes, Iterable) or _is_foreign_array(scenes)):
            raise TypeError(f"scenes: expected {EXPECTED}, or several of these, got {_described(scenes)}")
        new_tracker = (lambda: VideoTracker(self.spec, self.options)) if track else (lambda: None)
        images = new_tracker()
        image_id = 1
        for scene in cast(Iterable[SceneLike], [scenes] if _is_one(scenes) else scenes):
            if isinstance(scene, PathLike):
                scene = to_path(cast(Path, scene))
            if not isinstance(scene, str | Path):
                yield self._detect(scene, image_id, gps=gps, tracker=images, seconds=image_id / RATE)
                image_id += 1
                continue
            for source in find_sources([scene]):
                if source.moving:
                    tracker = new_tracker()
                    with Video(source.location) as video:
                        for frame in video:
                            prediction = self._detect(frame.scene, image_id, tracker=tracker, seconds=frame.seconds)
                            name = f"{source.file_name}#{frame.index}"
                            yield dataclasses.replace(
                                prediction, file_name=name, frame=frame.index, seconds=frame.seconds
                            )
                            image_id += 1
                else:
                    prediction = self._detect(source.path, image_id, gps=gps, tracker=images, seconds=image_id / RATE)
                    yield dataclasses.replace(prediction, file_name=source.file_name)
                    image_id += 1

    def _detect(
        self,
        scene: object,
        image_id: int,
        progress: Progress | None = None,
        *,
        gps: bool = False,
        tracker: VideoTracker | None = None,
        seconds: float = 0.0,
    ) -> Prediction:
        entry = _Input(scene, self.spec, self.options.scale, gps)
        options = self.options if tracker is None else tracker.options
        with nullcontext(entry.open()) if isinstance(scene, Scene) else entry.open() as opened:
            result = detect_scene(self.backend, opened, options, progress=progress)
            if tracker is not None:
                result = dataclasses.replace(result, detections=tracker.update(opened, result.detections, seconds))
        return self._warned(entry.prediction(result, image_id))

    def _warned(self, prediction: Prediction) -> Prediction:
        """Log the warnings of the first prediction that has any; all predictions carry their own."""
        if prediction.warnings and not self._has_warned:
            self._has_warned = True
            for warning in prediction.warnings:
                logger.warning(warning)
        return prediction


def _refuse(method: str, options: Mapping[str, object]) -> None:
    """Raise TypeError if there are options, because how scenes are scanned is chosen when the model is loaded."""
    for name, value in options.items():
        ScanOptions().changed({name: value})  # refuses other names
        raise TypeError(f"{method} takes no {name}; options belong to the model: load(…, {name}={quoted(value)})")


class _Input:
    """One scene of a call: its type is checked at once, and it is opened later.

    Args:
        scale: resize factor of the scan.
        index: in the list of scenes, which tells images in memory apart; None for a single scene.

    Attributes:
        source: what drawings are made from.
    """

    def __init__(
        self, scene: object, spec: ModelSpec, scale: float, gps: bool = False, index: int | None = None
    ) -> None:
        self._place = "" if index is None else f"[{index}]"
        if not _is_one(scene):
            raise TypeError(f"scene{self._place}: expected {EXPECTED}, or a list of these, got {_described(scene)}")
        if isinstance(scene, PathLike):
            scene = to_path(cast(Path, scene))
        elif isinstance(scene, str) and (is_store(scene) or scene.lower().startswith("file:")):
            scene = path_of(scene)
        if isinstance(scene, str | Path):
            _check_one_image(scene)
        self.source = cast(SceneLike, scene)
        self._spec, self._scale, self._gps = spec, scale, gps
        self._unlike = ""
        self._name = str(scene) if isinstance(scene, str | Path) else ""
        self._size = (0, 0)
        self._georeference: Georeference | None = None
        self._camera: CameraMetadata | None = None

    def open(self) -> Scene:
        """Open the scene, and note its size and georeference.

        Raises:
            ValueError: it cannot be read. Names the image, or its place in the list.
        """
        try:
            scene = self._opened()
        except ValueError as error:
            if isinstance(self.source, str | Path) or not self._place:
                raise
            raise ValueError(f"scene{self._place}: {error}") from error
        if self._name in ("array", "bytes", "file", "image"):
            self._name += self._place
        self._size = scene.width, scene.height
        gsd = gsd_of(scene, self._camera)
        self._unlike = unlike_training(scene, self._spec, gsd=gsd, scale=self._scale)
        return scene

    def _opened(self) -> Scene:
        if not isinstance(self.source, Scene) and hasattr(self.source, "read"):
            file = cast(BinaryIO, self.source)
            self._name, self.source = name_of_file(file), read_all(file)  # kept for drawings: it can be read once
            scene = open_bytes(self.source, self._name, self._spec.stretch)
        else:
            scene = open_scene(self.source, stretch=self._spec.stretch)
            self._name = self._name or scene.name
            path = self.source if isinstance(self.source, Path) else to_path(self._name)
            is_raster = path.suffix.lower() in (".tif", ".tiff", ".jp2", ".vrt")
            if is_raster and isinstance(self.source, str | Path | Scene):
                self._georeference = georeference_of(path)
            if path.is_file() and (camera := read_camera(path)) is not None:
                self._camera = camera
                if self._gps and self._georeference is None:
                    try:
                        self._georeference = footprint_of(camera)
                    except GeoreferenceError as error:
                        logger.warning(f"{error}; its detections have no longitude and latitude")
        return scene

    def prediction(self, result: SceneResult, image_id: int) -> Prediction:
        return Prediction(
            self._name,
            image_id,
            *self._size,
            result.detections,
            self._georeference,
            None if self._camera is None else self._camera.lon_lat,
            spec=self._spec,
            result=result,
            source=self.source,
            warnings=(self._unlike,) if self._unlike else (),
        )


def load(
    model: Path | str | Backend | TileFunction | None = None,
    *,
    backend: str = "auto",
    tile: int | Literal["auto"] | None = None,
    threads: int | None = None,
    spec: ModelSpec | Mapping[str, Any] | None = None,
    classes: Sequence[str] | Mapping[int, str] | None = None,
    nms_iou: float | None = None,
    **options: Any,
) -> Model:
    """Open an exported model, or use a function or an object that finds the boxes of tiles.

    Args:
        model: `model.onnx` or `model.engine`, or the name of a bundled model; None for the first of `model.engine` and
            `model.onnx` in the current folder that runs here. Or a function from tiles (N, T, T, 3), uint8 RGB, to
            their boxes, scores and labels, in any form that `FunctionBackend` accepts. Or a backend.
        backend: what runs a model file; "auto" takes the fastest backend that works here. Or the address of a model on
            a server, `http://HOST:8000/v2/models/NAME` (KServe V2, such as Triton): `model` is then None, or the file
            that should be served, which is compared with the server's model.
        tile: side of the tiles in pixels, as the model sees them; None for the model's default. An exported ONNX file
            takes any multiple of 32 or 64 (`ModelSpec.tile_multiple`), an engine the tiles that it was built for; for
            both, "auto" chooses by the object size, the overlap and the free memory.
        threads: CPU threads of a model file; None for all that are usable. With a server, the number of requests that
            wait for it at a time; None for 4.
        spec: of a function: a ModelSpec, or a dict of some of its fields.
        classes: of a function: class names, indexed by its labels, or a dict from label to name.
        nms_iou: of a function: two boxes of one class on one tile with a larger IoU are the same object. None if the
            function has already suppressed such boxes.
        options: fields of `ScanOptions`: overlap, scale, score (default: 0.3; "auto": the thresholds of the model),
            batch, merge, agnostic, coarse, readers.

    Raises:
        ValueError, OSError, ModuleNotFoundError: as `open_model`; ValueError also for an argument that is out of range,
            or does not apply to this kind of model.
        TypeError: `model` is something else.
    """
    checked = ScanOptions(score=SCORE).changed(options)  # before the model: it takes seconds to open
    described = {"spec": spec, "classes": classes, "nms_iou": nms_iou}
    if model is None or isinstance(model, str | PathLike):
        _refuse_for("a model file carries its own description", described)
        chosen = AutoTile(checked.overlap, batch=checked.batch) if tile == "auto" else tile
        path = None if model is None else to_path(model)
        choice = choose_model(backend, path=path, tile=chosen, threads=threads)
        if choice.note:
            logger.info(choice.note)
        opened = choice.backend
        if tile == "auto" and checked.overlap is None:
            checked = checked.changed({"overlap": auto_overlap(opened.spec, opened.spec.tile)})
        return Model(opened, checked)
    _refuse_for("the code decides what it runs on", {"backend": None if backend == "auto" else backend})
    _refuse_for("the code chooses its threads", {"threads": threads})
    if _is_backend(model):
        _refuse_for("a backend carries its own `spec`", {**described, "tile": tile})
        return Model(model, checked)
    if isinstance(model, type):
        raise TypeError(f"model: expected an object, got the class {model.__name__}; create one: {model.__name__}(...)")
    if not callable(model):
        raise TypeError(
            "model: expected a path, a function from tiles to boxes, or a backend with a ModelSpec as `spec` and a "
            f"method `run`, got {quoted(model)}"
        )
    if tile == "auto":
        raise ValueError("tile='auto' is for a model file; give the side of the function's tiles: tile=640")
    function_spec = describe_function(model, spec, tile=tile, classes=classes, nms_iou=nms_iou)
    return Model(FunctionBackend(model, function_spec), checked)


def _refuse_for(reason: str, arguments: Mapping[str, object]) -> None:
    """Raise ValueError for the first argument that was given."""
    for name, value in arguments.items():
        if value is not None:
            raise ValueError(f"{name}={quoted(value)}: {reason}; leave this argument out")


def _is_backend(value: object) -> TypeGuard[Backend]:
    return (
        not isinstance(value, type)
        and isinstance(getattr(value, "spec", None), ModelSpec)
        and callable(getattr(value, "run", None))
        and isinstance(getattr(value, "name", None), str)
    )


@overload
def detect(model: Detector, scene: SceneLike, **options: Any) -> Prediction: ...


@overload
def detect(model: Detector, scene: list[Any] | tuple[Any, ...], **options: Any) -> list[Prediction]: ...


def detect(
    model: Detector, scene: SceneLike | list[Any] | tuple[Any, ...], **options: Any
) -> Prediction | list[Prediction]:
    """Detect the objects of one scene or a list of scenes in one call. For more calls, `load` the model once.

    Args:
        model: a loaded model, or anything that `load` takes.
        scene: as for `Model.detect`.
        options: as for `load`; none for a loaded model.
    """
    if isinstance(model, Model):
        if options:
            raise ValueError(f"a loaded model has its options: load(..., {', '.join(options)}=...)")
        return model.detect(scene)
    return load(model, **options).detect(scene)


def _is_one(value: object) -> bool:
    """Return whether a value is one scene of any kind."""
    known = (str, PathLike, bytes, bytearray, memoryview, np.ndarray, Scene)
    return isinstance(value, known) or hasattr(value, "read") or is_pillow(value)


def _is_foreign_array(value: object) -> bool:
    """Return whether a value is an array of another library, such as a torch tensor."""
    return hasattr(value, "__array__") and not isinstance(value, np.ndarray)


def _described(value: object) -> str:
    """Return what a value is that is no scene, and how to make one of it."""
    if _is_foreign_array(value):
        shape = getattr(value, "shape", None)
        size = f" of shape {tuple(shape)}" if shape is not None else ""
        name = f"{type(value).__module__.partition('.')[0]}.{type(value).__name__}"
        return f"a {name}{size}; convert it to an array (H, W, C) in 0..255, such as tensor.permute(1, 2, 0).numpy()"
    if isinstance(value, Iterable) and not isinstance(value, list | tuple):
        return f"{quoted(value)}; pass a list, or iterate over model.stream(...)"
    return quoted(value)


def _check_one_image(scene: str | Path) -> None:
    """Raise ValueError for a path or address that can name several images, and no file."""
    path = to_path(scene)
    what = None
    if not str(scene):
        raise ValueError("scene: the path is empty")
    if is_store(scene) and not glob.has_magic(str(path)):
        if path.suffix.lower() in IMAGES:
            return
        if not is_bucket(scene):
            what = "is an address"
        elif path.is_dir():
            what = "is a folder"
    elif path.is_dir():
        what = "is a folder"
    elif isinstance(scene, str) and is_stream(scene):
        what = "is an address"
    elif not path.exists() and glob.has_magic(str(scene)):
        what = "is a pattern"
    elif path.suffix.lower() in VIDEOS and path.is_file() and find_sources([path])[0].moving:
        what = "is a video"
    if what is not None:
        raise ValueError(
            f"{public_location(scene)} {what}, and detect takes one image; use: for found in "
            f"model.stream({public_location(scene)!r})"
        )
