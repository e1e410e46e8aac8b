"""The Python API: load a model once, give it scenes, and get arrays or the types of other tools."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinydet._internal.arguments import quoted
from tinydet._internal.extras import needs_extra
from tinydet._internal.progress import Progress
from tinydet.runtime.backends import Backend, open_model
from tinydet.runtime.options import ScanOptions
from tinydet.runtime.scan import SceneResult, detect_scene
from tinydet.runtime.scenes import Scene, open_scene
from tinydet.runtime.scenes.camera_metadata import read_camera
from tinydet.runtime.scenes.georeference import georeference_of
from tinydet.runtime.scenes.pixels import Pixels
from tinydet.runtime.scenes.sources import find_sources
from tinydet.runtime.scenes.video import Video
from tinydet.runtime.writers import SceneDetections, open_writer
from tinydet.runtime.writers.table import columns
from tinydet.spec import ModelSpec

SceneLike = Path | str | Pixels | Scene
SCORE = 0.3  # default minimum score of a `Model`; the low default of `ScanOptions` is for measuring average precision


@dataclass(frozen=True, kw_only=True)
class Prediction(SceneDetections):
    """What a model found in one scene, by descending score. Extends `SceneDetections`.

    Attributes:
        spec: of the model; names and COCO ids of its classes.
        result: number of tiles, of saturated tiles, seconds; see `SceneResult`.
        seconds: for a frame of a video, the time since its first frame; else None.
    """

    spec: ModelSpec
    result: SceneResult
    seconds: float | None = None

    def __len__(self) -> int:
        return len(self.detections)

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
    def class_names(self) -> list[str]:
        """Name of each box's class, (N,)."""
        return [self.spec.classes[label] for label in self.labels.tolist()]

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
        return supervision.Detections(
            xyxy=found.boxes.copy(),
            confidence=found.scores.copy(),
            class_id=found.labels.astype(int),
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
        rows = zip(self.class_names, corners.tolist(), found.scores.tolist(), found.tiles.tolist(), strict=True)
        return fiftyone.Detections(
            detections=[
                fiftyone.Detection(label=name, bounding_box=box, confidence=score, tile=tile)
                for name, box, score, tile in rows
            ]
        )

    def save(self, path: Path | str) -> None:
        """Write a file; its suffix determines the format, see `tinydet.runtime.writers.FORMATS`.

        Raises:
            ValueError: an unknown suffix, or a map format for a scene without georeference.
            OSError: the file cannot be written.
        """
        with open_writer(Path(path), self.spec) as write:
            write(self)


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
            ValueError: an option is out of range.
        """
        self.backend = backend
        self.options = dataclasses.replace(ScanOptions(score=SCORE) if options is None else options, **changes)

    @property
    def spec(self) -> ModelSpec:
        """The description that the model carries."""
        return self.backend.spec

    def detect(self, scene: SceneLike, *, image_id: int = 1, progress: Progress | None = None) -> Prediction:
        """Detect the objects of one scene.

        Args:
            scene: an image file or raster of any size, an array (H, W) or (H, W, C) in RGB, or an open scene.
            image_id: for COCO results.
            progress: called with the number of tiles that were just finished; `tqdm.update` fits.

        Raises:
            ValueError: the scene is damaged, an option does not fit the model, or the model returns invalid outputs.
            OSError: the file is missing.
            TypeError: `scene` is something else.
        """
        if not isinstance(scene, str | Path | np.ndarray | Scene):
            raise TypeError(f"scene: expected a path, an array or an open scene, got {quoted(scene)}")
        if isinstance(scene, Scene):
            return self._predict(scene, scene.name, image_id, progress)
        with open_scene(scene, stretch=self.spec.stretch) as opened:
            name = str(scene) if isinstance(scene, str | Path) else opened.name
            return self._predict(opened, name, image_id, progress)

    def stream(self, scenes: SceneLike | Iterable[SceneLike]) -> Iterator[Prediction]:
        """Detect the objects of one scene after the other. A scene is read when its prediction is requested.

        Args:
            scenes: each as for `detect`, or a folder, a pattern (`flight/**/*.tif`), a video file, a stream
                (`rtsp://...`) or a webcam (`"0"`). Each frame of a video is a scene.

        Raises:
            ValueError, OSError: as `detect`; also if a pattern matches nothing, or a stream breaks.
        """
        several: Iterable[SceneLike] = [scenes] if isinstance(scenes, str | Path | np.ndarray | Scene) else scenes
        image_id = 1
        for scene in several:
            if not isinstance(scene, str | Path):
                yield self.detect(scene, image_id=image_id)
                image_id += 1
                continue
            for source in find_sources([scene]):
                if source.moving:
                    with Video(source.location) as video:
                        for frame in video:
                            prediction = self._predict(frame.scene, frame.scene.name, image_id)
                            yield dataclasses.replace(prediction, seconds=frame.seconds)
                            image_id += 1
                else:
                    yield self.detect(source.path, image_id=image_id)
                    image_id += 1

    def _predict(self, scene: Scene, name: str, image_id: int, progress: Progress | None = None) -> Prediction:
        result = detect_scene(self.backend, scene, self.options, progress=progress)
        is_raster = Path(name).suffix.lower() in (".tif", ".tiff", ".jp2", ".vrt")
        camera = read_camera(Path(name)) if Path(name).is_file() else None
        return Prediction(
            name,
            image_id,
            scene.width,
            scene.height,
            result.detections,
            georeference_of(Path(name)) if is_raster else None,
            None if camera is None else camera.lon_lat,
            spec=self.spec,
            result=result,
        )


def load(path: Path | str | None = None, *, backend: str = "auto", threads: int | None = None, **options: Any) -> Model:
    """Open an exported model.

    Args:
        path: `model.onnx` or `model.engine`, or the name of a bundled model; None for the first
            of `model.engine` and `model.onnx` in the current folder that runs here.
        backend: what runs the model; "auto" takes the fastest backend that works here.
        threads: CPU threads; None for all that are usable.
        options: fields of `ScanOptions`: overlap, scale, score (default: 0.3), batch, merge, agnostic, coarse, readers.

    Raises:
        ValueError, OSError, ModuleNotFoundError: as `open_model`; ValueError also for an option that is out of range.
    """
    checked = dataclasses.replace(ScanOptions(score=SCORE), **options)  # before the model: it takes seconds to open
    return Model(open_model(None if path is None else Path(path), backend, threads=threads), checked)


def detect(model: Model | Path | str, scene: SceneLike, **options: Any) -> Prediction:
    """Detect the objects of one scene in one call. For several scenes, `load` the model once.

    Args:
        model: a model, or the path of one.
        scene: as for `Model.detect`.
        options: as for `load`; only if `model` is a path.
    """
    if isinstance(model, Model):
        if options:
            raise ValueError(f"a loaded model has its options: load(..., {', '.join(options)}=...)")
        return model.detect(scene)
    return load(model, **options).detect(scene)
