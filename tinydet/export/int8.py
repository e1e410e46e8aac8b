"""Quantize an exported graph to INT8 with Q/DQ nodes; calibrate the activation ranges that this needs."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from tinydet._internal.extras import needs_extra
from tinydet.export.layers import convertible_nodes, layers_around_attention
from tinydet.export.verify import middle_tile
from tinydet.runtime.backends.onnx_runtime import FATAL_ONLY
from tinydet.spec import ModelSpec

if TYPE_CHECKING:
    from onnx import ModelProto

Method = Literal["max", "entropy", "percentile"]

METHODS = {"max": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}  # ONNX Runtime's names
QUANTIZED_TYPES = ("Conv", "Gemm", "Add")  # Add: the sums between convolutions
# TensorRT accepts INT8 only with zero points of 0, and no INT32 biases behind a DequantizeLinear.
QDQ_OPTIONS = {
    "ActivationSymmetric": True,
    "WeightSymmetric": True,
    "QuantizeBias": False,
    "AddQDQPairToWeight": True,
}


def calibrate(source: Path, images: Iterable[Path], spec: ModelSpec, method: Method) -> Any:
    """Run the model at `source` on the middle tile of each image and return the range of every activation.

    Args:
        method: "max" takes the whole range; "entropy" and "percentile" clip large activations.

    Returns:
        ONNX Runtime's TensorsData. Only one image is in memory at a time.
    """
    with needs_extra("export"), _quiet_quantizer():
        from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator

    class SingleImage:
        def __init__(self, path: Path) -> None:
            self.inputs = [{"images": middle_tile(path, spec)[None]}]

        def get_next(self) -> dict[str, Any] | None:
            return self.inputs.pop() if self.inputs else None

    with TemporaryDirectory(prefix="tinydet-") as folder, _quiet_quantizer():
        calibrator = create_calibrator(
            source,
            list(QUANTIZED_TYPES),
            augmented_model_path=str(Path(folder) / "augmented.onnx"),
            calibrate_method=getattr(CalibrationMethod, METHODS[method]),
            providers=["CPUExecutionProvider"],
            extra_options={"symmetric": True},
        )
        for path in images:
            calibrator.collect_data(SingleImage(path))
        return calibrator.compute_data()


def to_int8(model: ModelProto, ranges: Any, kept: Collection[str] = ()) -> ModelProto:
    """Return a copy with Q/DQ nodes around its layers and the sums between convolutions.

    Quantization is symmetric, with one scale per channel for weights and one per tensor for activations. The layers
    before and after attention stay FP32, because an exponential follows: steps of its logits become factors.

    Args:
        ranges: activation ranges, see `calibrate`.
        kept: layers to leave in FP32, by the names of their weights.
    """
    with needs_extra("export"), _quiet_quantizer():
        import onnx
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    copy = onnx.shape_inference.infer_shapes(model, data_prop=True)
    chosen = convertible_nodes(copy.graph, {*kept, *layers_around_attention(copy.graph)})
    names = [node.name for node in copy.graph.node if node.name in chosen and node.op_type in QUANTIZED_TYPES]
    if not names:
        return copy
    types = list(QUANTIZED_TYPES)
    with _quiet_quantizer():
        quantizer = QDQQuantizer(
            copy, True, False, QuantType.QInt8, QuantType.QInt8, ranges, names, [], types, dict(QDQ_OPTIONS)
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
    quantized: ModelProto = quantizer.model.model
    del quantized.graph.value_info[:]
    return quantized


@contextmanager
def _quiet_quantizer() -> Iterator[None]:
    """Silence ONNX Runtime's quantizer, which logs advice to the root logger that does not apply here."""
    with needs_extra("export"):
        import onnxruntime

    onnxruntime.set_default_logger_severity(FATAL_ONLY)
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
