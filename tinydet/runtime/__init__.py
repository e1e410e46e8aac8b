"""The deployment side: scenes in, boxes out. numpy, OpenCV and a backend; never torch."""

from __future__ import annotations

from tinydet.runtime.backends import Backend, TileOutputs, choose_model, open_model
from tinydet.runtime.detections import Detections
from tinydet.runtime.pipeline import SceneResult, detect
from tinydet.runtime.scene import Scene, open_scene, read_image
from tinydet.runtime.tiles import Tile, TileGrid

__all__ = [
    "Backend",
    "Detections",
    "Scene",
    "SceneResult",
    "Tile",
    "TileGrid",
    "TileOutputs",
    "choose_model",
    "detect",
    "open_model",
    "open_scene",
    "read_image",
]
