"""The deployment side: scenes in, boxes out. numpy, OpenCV and a backend; never torch.

    from tinydet.runtime import load

    model = load("model.onnx")
    for found in model.stream("flight/**/*.tif"):
        print(found.scene, len(found), found.boxes, found.scores)

docs/api.md shows the rest. `detect` of `tinydet.runtime.scan` is the function below that takes a backend.
"""

from __future__ import annotations

from tinydet.geometry.tiles import Tile, TileGrid
from tinydet.runtime.backends import Backend, TileOutputs, choose_model, open_model
from tinydet.runtime.detections import Detections
from tinydet.runtime.model import Found, Model, detect, load
from tinydet.runtime.scan import SceneResult
from tinydet.runtime.scenes import Scene, open_scene, read_image

__all__ = [
    "Backend",
    "Detections",
    "Found",
    "Model",
    "Scene",
    "SceneResult",
    "Tile",
    "TileGrid",
    "TileOutputs",
    "choose_model",
    "detect",
    "load",
    "open_model",
    "open_scene",
    "read_image",
]
