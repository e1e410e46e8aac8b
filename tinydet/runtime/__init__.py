"""The deployment library: scenes in, boxes out. It needs numpy, OpenCV and a backend, and never torch.

    from tinydet.runtime import load

    model = load("model.onnx")
    for found in model.stream("flight/**/*.tif"):
        print(found.scene, len(found), found.boxes, found.scores)

See docs/api.md for more. Below this interface, `tinydet.runtime.scan` has the functions that take a backend.
"""

from __future__ import annotations

from tinydet._internal import opencv  # noqa: F401 - before the modules that import OpenCV
from tinydet.geometry.tiles import Tile, TileGrid
from tinydet.runtime.backends import Backend, TileOutputs, choose_model, open_model
from tinydet.runtime.detections import Detections
from tinydet.runtime.model import Detection, Model, Prediction, detect, load
from tinydet.runtime.options import ScanOptions
from tinydet.runtime.scan import SceneResult
from tinydet.runtime.scenes import Scene, open_scene, read_image

__all__ = [
    "Backend",
    "Detection",
    "Detections",
    "Model",
    "Prediction",
    "ScanOptions",
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
