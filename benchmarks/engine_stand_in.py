"""An engine without a GPU, to rehearse what runs on one: our TensorRT backend over a stand-in of the driver.

The buffers, streams, graphs and calls are those of tests/support/cuda_stand_in.py, which also refuses what CUDA
forbids; the outputs are those of ONNX Runtime on the CPU. Its times say nothing about a GPU.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
from environment import ROOT

from tinydet.runtime.backends import OUTPUT_TYPES, Backend, open_model, output_shapes
from tinydet.runtime.backends.engine_runner import Execution
from tinydet.runtime.backends.tensorrt import TensorRTBackend

SOURCE = ROOT / "tests" / "support" / "cuda_stand_in.py"
TYPES = {"float32": "FLOAT", "int32": "INT32"}


def open_stand_in(onnx: Path, *, tile: int | None = None, cuda_graph: bool = True) -> TensorRTBackend:
    """Open an ONNX file as if an engine had been built from it."""
    spec = importlib.util.spec_from_file_location("cuda_stand_in", SOURCE)
    assert spec is not None and spec.loader is not None
    cuda = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(cuda)
    model = open_model(onnx, "onnx-cpu", tile=tile)
    driver = cuda.Driver()
    engine = _engine(cuda, driver, model)
    execution = engine.execution()
    if not cuda_graph:
        execution = Execution(execution.make_context, execution.scratch, False)
    return TensorRTBackend(engine, model.spec, driver, execution, name=f"stand-in of an engine, {model.name}")


def _engine(cuda: Any, driver: Any, model: Backend) -> Any:
    """Return an engine of the stand-in that computes with `model`."""
    spec = model.spec
    shapes = output_shapes(spec)
    types = {name: TYPES[np.dtype(kind).name] for name, kind in OUTPUT_TYPES.items()}

    class Context(cuda.Context):  # type: ignore[misc, name-defined]
        def _run(self) -> None:
            side = self.tiles[self.profile]
            outputs = model.run(self._view("images", np.uint8, (self.batches[-1], side, side, 3)))
            for name in shapes:
                values = getattr(outputs, name)
                self._view(name, values.dtype, values.shape)[:] = values

    class Engine(cuda.Engine):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__(driver, (spec.tile,))
            self.num_io_tensors = 1 + len(shapes)
            self.tensors = {
                "images": ("UINT8", (-1, spec.tile, spec.tile, 3)),
                **{name: (types[name], (-1, *shape)) for name, shape in shapes.items()},
            }

        def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
            return [(n, spec.tile, spec.tile, 3) for n in (1, min(8, spec.max_batch), spec.max_batch)]

        def create_execution_context(self, how: Any) -> Any:
            return Context(self.driver, how, self.tiles)

    return Engine()
