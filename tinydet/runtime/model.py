"""The runtime from Python: load a model once, give it scenes, take numpy arrays or what another tool wants."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tinydet._internal.extras import needs_extra
from tinydet.runtime.backends import Backend, open_model
from tinydet.runtime.coarse import Coarse
from tinydet.runtime.scan import OVERLAP, SceneResult
from tinydet.runtime.scan import detect as detect_in
from tinydet.runtime.scenes import Scene, open_scene
from tinydet.runtime.scenes.georeference import georeference_of
from tinydet.runtime.scenes.pixels import Pixels
from tinydet.runtime.scenes.sources import find_sources
from tinydet.runtime.scenes.video import Video
from tinydet.runtime.stitch import Merge
from tinydet.runtime.writers import SceneDetections, open_writer
from tinydet.runtime.writers.table import columns
from tinydet.spec import ModelSpec

SceneLike = Path | str | Pixels | Scene


@dataclass(frozen=True)
class Found(SceneDetections):
    """What a model found in one scene, best first.

    Beside the attributes of `SceneDetections`:

    Attributes:
        spec: of the model that found it: the names and ids of its classes.
        result: tiles, saturated tiles, seconds.
        seconds: of a frame of a video, its time since the first one.
    """

    spec: ModelSpec = None  # type: ignore[assignment]  # always given; a field after defaults must have one
    result: SceneResult = None  # type: ignore[assignment]
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
        """(N,)"""
        return [self.spec.classes[label] for label in self.labels.tolist()]

    def to_coco(self) -> list[dict[str, Any]]:
        """COCO results, with the category ids of the training annotations."""
        return self.detections.to_coco(self.image_id, self.spec.category_ids)

    def to_pandas(self) -> Any:
        """A `pandas.DataFrame` with a row for each box: the columns of the CSV file.

        Raises:
            ModuleNotFoundError: pandas is not installed.
        """
        with needs_extra("tables"):
            import pandas
        return pandas.DataFrame(columns(self, self.spec))

    def to_supervision(self) -> Any:
        """`supervision.Detections`; class names, tiles, passes and distances to the seam are in its `data`.

        Raises:
            ModuleNotFoundError: supervision is not installed.
        """
        with needs_extra("supervision"):
            import supervision
        of = self.detections
        return supervision.Detections(
            xyxy=of.boxes.copy(),
            confidence=of.scores.copy(),
            class_id=of.labels.astype(int),
            data={
                "class_name": np.asarray(self.class_names, str),
                "tile": of.tiles.copy(),
                "pass": of.passes.copy(),
                "seam_distance": of.seam_distance.copy(),
            },
        )

    def to_fiftyone(self) -> Any:
        """`fiftyone.Detections`, to be a field of a sample.

        Raises:
            ModuleNotFoundError: FiftyOne is not installed.
        """
        with needs_extra("fiftyone"):
            import fiftyone
        of = self.detections
        corners = of.boxes.astype(np.float64) / ((self.width, self.height) * 2)
        corners[:, 2:] -= corners[:, :2]  # FiftyOne: left, top, width, height, in shares of the picture
        rows = zip(self.class_names, corners.tolist(), of.scores.tolist(), of.tiles.tolist(), strict=True)
        return fiftyone.Detections(
            detections=[
                fiftyone.Detection(label=name, bounding_box=box, confidence=score, tile=tile)
                for name, box, score, tile in rows
            ]
        )

    def save(self, path: Path | str) -> None:
        """Write a file; its suffix says which format: see `FORMATS` of the writers.

        Raises:
            ValueError: an unknown suffix, or a map of a scene that lies nowhere.
            OSError: the file cannot be written.
        """
        with open_writer(Path(path), self.spec) as write:
            write(self)


@dataclass(frozen=True)
class Model:
    """An exported model and how it looks at scenes. The options mean what those of `tinydet infer` mean.

    Attributes:
        backend: what runs it.
        overlap: pixels, in the rescaled scene, that neighbouring tiles share at least.
        scale: resize factor of the scene, 0.5 = half.
        score: detections below it are left out.
        batch: tiles for each run of the backend, as far as it takes them.
        merge: what becomes of boxes where tiles meet.
        agnostic: boxes of different classes may be one object.
        coarse: a pass before, for objects larger than the overlap; None for none.
    """

    backend: Backend
    overlap: int = OVERLAP
    scale: float = 1.0
    score: float = 0.3
    batch: int = 4
    merge: Merge = "seam"
    agnostic: bool = False
    coarse: Coarse | Literal["auto"] | None = "auto"

    @property
    def spec(self) -> ModelSpec:
        """What the model says about itself."""
        return self.backend.spec

    def detect(self, scene: SceneLike, *, image_id: int = 1, progress: Callable[[int], object] | None = None) -> Found:
        """Find the objects of one scene.

        Args:
            scene: an image file or raster of any size, an array (H, W) or (H, W, C) in RGB, or an open scene.
            image_id: for COCO results.
            progress: called with the number of tiles that were just finished (`tqdm.update` fits).

        Raises:
            ValueError: a damaged scene, or options out of range.
            OSError: the file is missing.
        """
        if isinstance(scene, Scene):
            return self._found(scene, scene.name, image_id, progress)
        with open_scene(scene, stretch=self.spec.stretch) as opened:
            name = str(scene) if isinstance(scene, str | Path) else opened.name
            return self._found(opened, name, image_id, progress)

    def stream(self, scenes: SceneLike | Iterable[SceneLike]) -> Iterator[Found]:
        """Find the objects of one scene after the other; nothing is read before it is asked for.

        Args:
            scenes: each as for `detect`, or a folder, a pattern (`flight/**/*.tif`), a video file, a stream
                (`rtsp://...`) or a webcam (`"0"`), of which every frame is a scene.

        Raises:
            ValueError, OSError: as `detect`; for a pattern that fits nothing, and a stream that breaks.
        """
        some: Iterable[SceneLike] = [scenes] if isinstance(scenes, str | Path | np.ndarray | Scene) else scenes
        image_id = 1
        for scene in some:
            if not isinstance(scene, str | Path):
                yield self.detect(scene, image_id=image_id)
                image_id += 1
                continue
            for source in find_sources([scene]):
                if source.moving:
                    with Video(source.location) as video:
                        for frame in video:
                            found = self._found(frame.scene, frame.scene.name, image_id, None, frame.seconds)
                            yield found
                            image_id += 1
                else:
                    yield self.detect(source.path, image_id=image_id)
                    image_id += 1

    def _found(
        self,
        scene: Scene,
        name: str,
        image_id: int,
        progress: Callable[[int], object] | None,
        seconds: float | None = None,
    ) -> Found:
        result = detect_in(
            self.backend,
            scene,
            overlap=self.overlap,
            scale=self.scale,
            score=self.score,
            batch=self.batch,
            merge=self.merge,
            agnostic=self.agnostic,
            coarse=self.coarse,
            progress=progress,
        )
        place = georeference_of(Path(name)) if Path(name).suffix.lower() in (".tif", ".tiff", ".jp2", ".vrt") else None
        return Found(name, image_id, scene.width, scene.height, result.detections, place, self.spec, result, seconds)


def load(
    path: Path | str | None = None,
    *,
    backend: str = "auto",
    threads: int | None = None,
    overlap: int = OVERLAP,
    scale: float = 1.0,
    score: float = 0.3,
    batch: int = 4,
    merge: Merge = "seam",
    agnostic: bool = False,
    coarse: Coarse | Literal["auto"] | None = "auto",
) -> Model:
    """Open an exported model.

    Args:
        path: `model.onnx` or `model.engine`, or the name of a bundled model; None for the best one in the current
            folder.
        backend: what runs it; "auto" by the kind of file.
        threads: CPU threads; None for all that are usable.
        overlap, scale, score, batch, merge, agnostic, coarse: see `Model`.

    Raises:
        ValueError, OSError, ModuleNotFoundError: as `open_model`.
    """
    opened = open_model(None if path is None else Path(path), backend, threads=threads)
    return Model(opened, overlap, scale, score, batch, merge, agnostic, coarse)


def detect(model: Model | Path | str, scene: SceneLike, **options: Any) -> Found:
    """Find the objects of one scene, in one call. To look at several, `load` the model once.

    Args:
        model: a model, or the path of one.
        scene: as for `Model.detect`.
        options: as for `load`, where `model` is a path.
    """
    if isinstance(model, Model):
        if options:
            raise ValueError(f"a loaded model has its options: load(..., {', '.join(options)}=...)")
        return model.detect(scene)
    return load(model, **options).detect(scene)
