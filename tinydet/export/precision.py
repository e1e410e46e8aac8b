"""Precision in the graph itself: FP16 convolutions, or INT8 by Q/DQ, as far as accuracy allows. No torch.

No flag can be forgotten then. What decides is measured: a conversion that loses more than it may gets its sensitive
layers back, block by block and then layer by layer. ONNX Runtime on a CPU, which is the judge, rounds Q/DQ as it stands
in the graph, but of FP16 the constants alone: it computes in FP32. So activations that FP16 could not hold are looked
for by themselves.
"""

from __future__ import annotations

import functools
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tinydet._internal.atomic import atomic_path, write_text
from tinydet._internal.extras import needs_extra
from tinydet.data.coco import Dataset
from tinydet.export.engine import LAYERS, description_of, graph_precision, read_onnx
from tinydet.export.parity import TOLERANCES, disagreement
from tinydet.export.verify import (
    JUDGE,
    MAX_DROP,
    Verification,
    middle_tile,
    precision_by_size,
    run_in_batches,
    verify,
    write_report,
)
from tinydet.runtime.backends import Backend, open_model
from tinydet.spec import METADATA_KEY, ModelSpec

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

Precision = Literal["fp16", "int8"]
Method = Literal["max", "entropy", "percentile"]

METHODS = {"max": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}  # ONNX Runtime's names
SEARCH_IMAGES = 30  # that a search looks at, at most
HALF_MAX = 65504.0
HEADROOM = 8  # how far below it the largest activation of the pictures must stay: other pictures may have larger ones
QUANTISED = ("Conv", "Gemm", "Add")  # what INT8 takes of them, and the sums between convolutions
# TensorRT takes INT8 with zero points of 0 only, and no INT32 biases behind a DequantizeLinear.
QDQ_OPTIONS = {
    "ActivationSymmetric": True,
    "WeightSymmetric": True,
    "QuantizeBias": False,
    "AddQDQPairToWeight": True,
}


@dataclass(frozen=True)
class Conversion:
    """What came of it.

    Attributes:
        kept: layers that stayed in float32, by the names of their weights; with FP16 those too whose numbers it could
            not hold.
        shares: what each block or layer that was measured does to the detections when it alone is converted.
        weights: constants by type, how many numbers.
    """

    path: Path
    spec: ModelSpec
    bytes: int
    kept: tuple[str, ...]
    layers: int
    shares: dict[str, float]
    weights: dict[str, int]
    verification: Verification
    seconds: float


def convert(
    source: Path,
    output: Path,
    precision: Precision,
    images: Sequence[Path],
    dataset: Dataset | None = None,
    *,
    calibration: Sequence[Path] = (),
    method: Method = "max",
    limit: int | None = SEARCH_IMAGES,
    max_drop: float = MAX_DROP,
    progress: Callable[[str], None] | None = None,
) -> Conversion:
    """Write `output`, its `.json` and its report from an exported FP32 model.

    Args:
        images, dataset, limit, max_drop: of the gate, see `tinydet.export.verify.verify`; a search measures AP on the
            first 30 images at most, and what it chose passes the whole gate.
        calibration: pictures that INT8 ranges are taken from; none: `images`. One at a time is in memory.
        method: how. "max" cuts nothing off: the strongest answers are what tiny objects stand out by.

    Raises:
        ValueError: a source that is not FP32, or no way to stay within `max_drop`.
        OSError: a file that cannot be written; an older one stays as it was.
    """
    with needs_extra("export"):
        import onnx
    say = progress or (lambda _: None)
    started = time.monotonic()
    read = read_onnx(source)
    if read.precision != "fp32":
        raise ValueError(f"{source} is {read.precision} already; convert the FP32 file that it was made from")
    model = onnx.load(str(source))
    layers = layers_of(model.graph)
    sidecar = description_of(output, ".onnx")
    reference = open_model(source, JUDGE)
    make = _Maker(model, read.spec, precision)
    chosen = images[:: -(-len(images) // SEARCH_IMAGES)]
    forced: set[str] = set()
    if precision == "int8":
        say(f"calibrating on {len(calibration or images)} images")
        make.ranges = calibrate(source, calibration or images, read.spec, method)
    else:
        say(f"looking for what FP16 cannot hold on {len(chosen)} images")
        forced = beyond_half(model.graph, calibrate(source, chosen, read.spec, "max"))
    few = dataset is None or len(dataset.images[:limit]) <= SEARCH_IMAGES
    searched = limit if few else SEARCH_IMAGES

    @functools.cache
    def before(images: int | None) -> dict[str, float] | None:
        if dataset is None:
            return None
        say("average precision of the FP32 model")
        return precision_by_size(reference, dataset, images)

    with atomic_path(output) as temporary:

        def gate(kept: Collection[str], limit: int | None = limit) -> Verification:
            make.write(temporary, {*kept, *forced})
            candidate, known, tolerance = open_model(temporary, JUDGE), before(limit), TOLERANCES[precision]
            return verify(
                reference,
                candidate,
                images,
                dataset,
                limit=limit,
                max_drop=max_drop,
                before=known,
                tolerance=tolerance,
                progress=say,
            )

        say(f"converting {len(layers)} layers")
        kept: tuple[str, ...] = ()
        shares: dict[str, float] = {}
        verification = gate(kept)
        if not verification.passed:
            first = "; ".join(verification.faults)

            def share(alone: Collection[str]) -> float:
                make.write(temporary, (layers.keys() - set(alone)) | forced)
                return _disagreement(reference, open_model(temporary, JUDGE), chosen)

            found = search(list(layers), share, lambda kept: gate(kept, searched).passed, progress=say)
            if found is None or len(found.kept) == len(layers):
                raise ValueError(
                    f"{output} was not written: no layer can be {precision} within the allowed drop of {max_drop} "
                    f"({first}); allow more with --max-drop, calibrate on other images, or export --precision fp32"
                )
            kept, shares = found.kept, found.shares
            verification = gate(kept)
            if not verification.passed:
                raise ValueError(
                    f"{output} was not written: what the search chose is not good enough on all "
                    f"images ({'; '.join(verification.faults)}); allow more with --max-drop, calibrate "
                    "on other images, or export --precision fp32"
                )
        kept = tuple(name for name in layers if name in forced or name in kept)
        spec = make.write(temporary, kept)
        if spec.precision != precision:
            raise ValueError(
                f"{output} was not written: {len(kept)} of {len(layers)} layers have to stay in FP32, and most weights "
                "with them; train with more weight decay or clipped gradients, or export --precision fp32"
            )
        spec = replace(spec, onnx_sha256=read_onnx(temporary).sha256)
    write_text(sidecar, spec.to_json() + "\n")
    write_report(verification, output, {"kept_in_fp32": list(kept), "shares": shares})
    weights, _ = graph_precision(onnx.load(str(output)).graph)
    return Conversion(
        path=output,
        spec=spec,
        bytes=output.stat().st_size,
        kept=kept,
        layers=len(layers),
        shares=shares,
        weights=weights,
        verification=verification,
        seconds=time.monotonic() - started,
    )


@dataclass(frozen=True)
class Search:
    """The layers that a search keeps, and the shares that it went by."""

    kept: tuple[str, ...]
    shares: dict[str, float]


def search(
    layers: Sequence[str],
    share: Callable[[Collection[str]], float],
    passes: Callable[[Collection[str]], bool],
    *,
    progress: Callable[[str], None] | None = None,
) -> Search | None:
    """The layers to keep in high precision: whole blocks first, then all layers of them that need not be.

    Args:
        layers: names of weights, with dots.
        share: the damage where only these layers are converted.
        passes: whether the model is good enough when these are kept.

    Returns:
        None where even all of them kept are not enough.
    """
    say = progress or (lambda _: None)
    blocks: dict[str, list[str]] = {}
    for name in layers:
        blocks.setdefault(block_of(name), []).append(name)
    shares: dict[str, float] = {}
    for i, (block, members) in enumerate(blocks.items(), 1):
        say(f"what does {block} lose? ({i} of {len(blocks)} blocks)")
        shares[block] = share(members)
    worst = sorted(blocks, key=lambda block: -shares[block])
    count = _fewest(len(worst), lambda n: passes(_members(blocks, worst[:n])), lambda n: say(f"keeping {n} blocks"))
    if count is None:
        return None
    # All blocks but the last were not enough, so the layers that may be given back are looked for in all of them.
    kept = _members(blocks, worst[:count])
    for i, name in enumerate(kept, 1):
        say(f"what does {name} lose? ({i} of {len(kept)} layers)")
        shares[name] = share([name])
    worst = sorted(kept, key=lambda name: -shares[name])
    few = _fewest(len(kept) - 1, lambda n: passes(worst[:n]), lambda n: say(f"keeping {n} layers")) or len(kept)
    return Search(tuple(name for name in layers if name in worst[:few]), shares)


def _fewest(most: int, enough: Callable[[int], bool], trying: Callable[[int], None]) -> int | None:
    """The smallest number from 1 to `most` that is enough, where more is never worse; None where `most` is not.

    The answer is small as a rule and a trial takes minutes: 1, 2, 4 … until one is enough, then halves.
    """

    def tried(number: int) -> bool:
        trying(number)
        return enough(number)

    low, high = 0, min(1, most)
    while high > low and not tried(high):
        low, high = high, min(2 * high, most)
    if high == low:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if tried(middle) else (middle, high)
    return high


def block_of(layer: str) -> str:
    """The block that a layer belongs to, from the name of its weights.

    >>> block_of("detector.backbone.body.3.conv.1.weight"), block_of("detector.head.regression_head.conv.0.0.weight")
    ('backbone.body.3', 'head.regression_head')
    """
    parts = layer.removeprefix("detector.").split(".")
    return ".".join(parts[: 3 if parts[0] == "backbone" else 2])


def layers_of(graph: GraphProto) -> dict[str, list[str]]:
    """Weights and the names of the nodes that use them: a head has the same on every level."""
    constants = {tensor.name for tensor in graph.initializer}
    layers: dict[str, list[str]] = {}
    for node in graph.node:
        if node.op_type in LAYERS and node.input[1] in constants:
            layers.setdefault(node.input[1], []).append(node.name)
    return layers


def to_fp16(model: ModelProto, kept: Collection[str] = ()) -> ModelProto:
    """A copy whose layers, and what lies between convolutions, compute in FP16; everything else stays FP32.

    Weights beyond FP16's range stay FP32 too.
    """
    with needs_extra("export"):
        import onnx
        from onnx import TensorProto, helper, numpy_helper

    converted = onnx.shape_inference.infer_shapes(model, data_prop=True)
    graph = converted.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    known = (*graph.value_info, *graph.input, *graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in known}
    types |= {name: tensor.data_type for name, tensor in constants.items()}
    beyond = {
        name for name in layers_of(graph) if np.abs(numpy_helper.to_array(constants[name])).max(initial=0.0) > HALF_MAX
    }
    half = _convertible(graph, {*kept, *beyond})

    users = Counter(name for node in graph.node for name in node.input)
    inside = Counter(name for node in graph.node if node.name in half for name in _floats(node))
    nodes: list[NodeProto] = []
    seen: dict[tuple[str, int], str] = {}  # a value in the other type
    wide: set[str] = set()  # values that are FP16 now

    def cast(name: str, to: int) -> str:
        if (name, to) not in seen:
            other = f"{name}_{'fp16' if to == TensorProto.FLOAT16 else 'fp32'}"
            nodes.append(helper.make_node("Cast", [name], [other], name=f"cast_{other}", to=to))
            seen[name, to] = other
        return seen[name, to]

    for node in graph.node:
        if node.name in half:
            for i, name in enumerate(node.input):
                if name not in _floats(node)[i : i + 1] or types.get(name) != TensorProto.FLOAT or name in wide:
                    continue
                if name not in constants:
                    node.input[i] = cast(name, TensorProto.FLOAT16)
                elif inside[name] == users[name]:  # nobody else reads it
                    values = numpy_helper.to_array(constants[name]).astype(np.float16)
                    constants[name].CopyFrom(numpy_helper.from_array(values, name))
                    types[name] = TensorProto.FLOAT16
                else:
                    node.input[i] = _half_copy(graph, constants[name], seen)
            nodes.append(node)
            wide.update(name for name in node.output if types.get(name) == TensorProto.FLOAT)
        else:
            for i, name in enumerate(node.input):
                if name in wide:
                    node.input[i] = cast(name, TensorProto.FLOAT)
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]  # of the old types
    return converted


def beyond_half(graph: GraphProto, ranges: Any) -> set[str]:
    """The layers whose input or output comes near to what FP16 cannot hold, by the names of their weights.

    Args:
        ranges: of activations, see `calibrate`.
    """
    hot = {name for name, found in ranges.items() if np.abs(found.range_value).max() > HALF_MAX / HEADROOM}
    after, half = _layer_before(graph), _convertible(graph, ())
    met = [node for node in graph.node if node.name in half and hot & {*node.input, *node.output}]
    return {after[name] for node in met for name in node.output}


def calibrate(source: Path, images: Iterable[Path], spec: ModelSpec, method: Method) -> Any:
    """Ranges of all activations (ONNX Runtime's TensorsData), from one picture at a time."""
    with needs_extra("export"), _quiet():
        from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator

    class One:
        def __init__(self, path: Path) -> None:
            self.waiting = [{"images": middle_tile(path, spec)[None]}]

        def get_next(self) -> dict[str, Any] | None:
            return self.waiting.pop() if self.waiting else None

    with TemporaryDirectory(prefix="tinydet-") as folder, _quiet():
        calibrator = create_calibrator(
            source,
            list(QUANTISED),
            augmented_model_path=str(Path(folder) / "augmented.onnx"),
            calibrate_method=getattr(CalibrationMethod, METHODS[method]),
            providers=["CPUExecutionProvider"],
            extra_options={"symmetric": True},
        )
        for path in images:
            calibrator.collect_data(One(path))
        return calibrator.compute_data()


def to_int8(model: ModelProto, ranges: Any, kept: Collection[str] = ()) -> ModelProto:
    """A copy with Q/DQ around its layers and the sums between convolutions: symmetric, weights per channel."""
    with needs_extra("export"), _quiet():
        import onnx
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    copy = onnx.shape_inference.infer_shapes(model, data_prop=True)
    chosen = _convertible(copy.graph, kept)
    wanted = [node.name for node in copy.graph.node if node.name in chosen and node.op_type in QUANTISED]
    if not wanted:
        return copy
    with _quiet():
        quantizer = QDQQuantizer(
            copy, True, False, QuantType.QInt8, QuantType.QInt8, ranges, wanted, [], list(QUANTISED), dict(QDQ_OPTIONS)
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
    quantised: ModelProto = quantizer.model.model
    del quantised.graph.value_info[:]
    return quantised


class _Maker:
    """Writes the model with some layers kept."""

    def __init__(self, model: ModelProto, spec: ModelSpec, precision: Precision) -> None:
        self.model, self.spec, self.precision = model, spec, precision
        self.ranges: Any = None

    def write(self, path: Path, kept: Collection[str]) -> ModelSpec:
        """The precision in the description is what the written graph proves, never what was asked for."""
        made = to_fp16(self.model, kept) if self.precision == "fp16" else to_int8(self.model, self.ranges, kept)
        _, proved = graph_precision(made.graph)
        spec = replace(self.spec, precision=proved, onnx_sha256=None)
        del made.metadata_props[:]
        made.metadata_props.add(key=METADATA_KEY, value=spec.to_json())
        path.write_bytes(made.SerializeToString())
        return spec


def _convertible(graph: GraphProto, kept: Collection[str]) -> set[str]:
    """Nodes that may lose precision: layers, and what lies between convolutions. Boxes come after the last of them."""
    chosen = {name for layer, names in layers_of(graph).items() if layer not in kept for name in names}
    after = _layer_before(graph)
    before: set[str] = set()  # values that a convolution needs
    for node in reversed(graph.node):
        if node.op_type == "Conv" or before & set(node.output):
            before.update(node.input)
    for node in graph.node:
        if node.op_type in (*LAYERS, "Shape", "Cast", "Constant") or not before & set(node.output):
            continue
        layer = next((after[name] for name in node.input if name in after), None)
        if layer is not None and layer not in kept:
            chosen.add(node.name)
    return chosen


def _layer_before(graph: GraphProto) -> dict[str, str]:
    """Values and the layer that each comes from, where a layer lies before it."""
    constants = {tensor.name for tensor in graph.initializer}
    after: dict[str, str] = {}
    for node in graph.node:
        layer = node.input[1] if node.op_type in LAYERS and node.input[1] in constants else None
        layer = layer or next((after[name] for name in node.input if name in after), None)
        if layer is not None:
            after.update(dict.fromkeys(node.output, layer))
    return after


def _floats(node: NodeProto) -> list[str]:
    """The inputs that have the type of the output; Resize's scales are FP32 always."""
    return list(node.input[:1] if node.op_type == "Resize" else node.input)


def _half_copy(graph: GraphProto, tensor: Any, seen: dict[tuple[str, int], str]) -> str:
    with needs_extra("export"):
        from onnx import TensorProto, numpy_helper
    key = tensor.name, TensorProto.FLOAT16
    if key not in seen:
        seen[key] = f"{tensor.name}_fp16"
        values = numpy_helper.to_array(tensor).astype(np.float16)
        graph.initializer.append(numpy_helper.from_array(values, seen[key]))
    return seen[key]


def _disagreement(reference: Backend, candidate: Backend, images: Sequence[Path]) -> float:
    tiles = np.stack([middle_tile(path, reference.spec) for path in images])
    return disagreement(run_in_batches(reference, tiles, 1), run_in_batches(candidate, tiles, 1))


def _members(blocks: Mapping[str, Sequence[str]], chosen: Iterable[str]) -> list[str]:
    return [name for block in chosen for name in blocks[block]]


@contextmanager
def _quiet() -> Iterator[None]:
    """ONNX Runtime's quantiser advises on the root logger to do what the exporter has done already."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(before)
