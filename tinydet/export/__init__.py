"""Export a trained detector to files that run without torch: ONNX, then a TensorRT engine.

`export_onnx` and `build_engine` do what the commands do, with the same defaults.
"""

from __future__ import annotations

from tinydet.export.run import Exported, build_engine, export_onnx

__all__ = ["Exported", "build_engine", "export_onnx"]
