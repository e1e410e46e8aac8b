"""Export a trained detector to an ONNX file and check it: inputs, outputs, operators, and detections against torch.

The file is written under a temporary name and renamed after it has passed all checks.
"""

from __future__ import annotations

import copy
import inspect
import logging
import math
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tinydet._internal.atomic import atomic_path, claim, write_text
from tinydet._internal.extras import needs_extra
from tinydet.data.synthetic import render_scene
from tinydet.export.onnx_model import description_path, graph_precision, read_onnx
from tinydet.export.parity import Parity, compare, tolerance_of
from tinydet.export.steps import step
from tinydet.export.verify import REFERENCE_BACKEND, Verification, other_tile, write_report
from tinydet.models.detector import Detector
from tinydet.models.folding import FoldedFPN
from tinydet.models.fpn import PlainFPN, first_convolution
from tinydet.models.graphs.inference import InferenceGraph
from tinydet.models.graphs.one_stage import MAX_TOPK
from tinydet.models.registry import BUILT_IN, detector_info
from tinydet.models.tile_filter import FilterGraph, TileFilterNetwork
from tinydet.runtime.backends import OUTPUT_TYPES, Backend, TileOutputs, open_model, output_shapes
from tinydet.runtime.backends.contract import INPUT
from tinydet.runtime.scan import nms_not_converged
from tinydet.runtime.tile_filter import CELL
from tinydet.spec import LARGEST_TILE, METADATA_KEY, ModelSpec

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto

TILE_AXES = ("height", "width")  # names of the free axes of the input

OPSET = 18  # supported since ONNX Runtime 1.14 and TensorRT 10.0

logger = logging.getLogger(__name__)

# Data-dependent shapes, control flow, or a plugin in some runtime: TensorRT, TensorRT-RTX and OpenVINO do not support
# all of them.
FORBIDDEN = frozenset(
    {"NonMaxSuppression", "NonZero", "If", "Loop", "Scan", "RoiAlign", "GridSample", "Unique", "Compress"}
)


class NotConvergedError(ValueError):
    """The rounds of suppression among the proposals were not enough on the tiles that were compared."""


@dataclass(frozen=True)
class ExportReport:
    """A written ONNX file and the results of its checks.

    Attributes:
        nodes: number of nodes in the graph.
        operators_added: number of operators that alpha adds to those of a conventional pyramid.
        deleted_edges: fused edges with alpha = 0, which are not in the graph.
        kept_edges: fused edges that keep a factor, because folding it would exceed the range of FP16.
        parity: comparison of ONNX Runtime with torch without folding.
        verification: result of `verify`; None without it.
        seconds: wall time of the export with all checks.
    """

    path: Path
    spec: ModelSpec
    bytes: int
    nodes: int
    operators_added: int
    deleted_edges: tuple[str, ...]
    kept_edges: tuple[str, ...]
    parity: Parity
    verification: Verification | None
    seconds: float


def write_onnx(
    detector: Detector,
    spec: ModelSpec,
    output: Path,
    *,
    verify: Callable[[Backend], Verification] | None = None,
) -> ExportReport:
    """Export a detector to `output`, and its description to the `.json` next to it; with `verify` also a report.

    Args:
        verify: called with the finished model before it is renamed to `output`. If it does not pass, nothing is
            written.

    Raises:
        ValueError: the spec does not suit the detector, or the exported file failed a check; NotConvergedError if more
            rounds of suppression may help.
        OSError: the file cannot be written. An existing file is kept.
    """
    if spec.max_detections > MAX_TOPK:
        raise ValueError(f"max_detections must be 1..{MAX_TOPK} (TensorRT's TopK), got {spec.max_detections}")
    started = time.monotonic()
    sidecar = description_path(output, ".onnx")
    with claim(output), atomic_path(output) as temporary:
        step("tracing the detector")
        graph = InferenceGraph(detector, spec)
        model, spec = trace_for_any_tile(graph, spec)
        scope, fpn = pyramid_of(graph)
        edges = detector.design.edges
        deleted = tuple(name for name, exists in zip(edges, fpn.edges, strict=True) if not exists)
        kept = tuple(edges[i] for i in fpn.kept) if isinstance(fpn, FoldedFPN) else edges
        pyramid, conventional = pyramid_operators(model.graph, scope), conventional_operators(detector.fpn)
        if isinstance(fpn, FoldedFPN):
            added = operators_added(pyramid, conventional, len(deleted), len(kept))
        else:
            added = (pyramid - conventional).total()  # attention, whose factors depend on the image
        written = _write_checked(
            model, spec, temporary, output, lambda spec: InferenceGraph(detector, spec, fold=False), verify
        )
    report = ExportReport(
        path=output,
        spec=written.spec,
        bytes=output.stat().st_size,
        nodes=len(model.graph.node),
        operators_added=added,
        deleted_edges=deleted,
        kept_edges=kept,
        parity=written.parity,
        verification=written.verification,
        seconds=time.monotonic() - started,
    )
    _write_descriptions(report, sidecar)
    return report


def write_filter_onnx(
    network: TileFilterNetwork,
    spec: ModelSpec,
    output: Path,
    *,
    verify: Callable[[Backend], Verification] | None = None,
) -> ExportReport:
    """Export a tile filter as `write_onnx` exports a detector, with the same checks.

    Raises:
        ValueError, OSError: as `write_onnx`.
    """
    started = time.monotonic()
    sidecar = description_path(output, ".onnx")
    with claim(output), atomic_path(output) as temporary:
        step("tracing the tile filter")
        model, spec = trace_for_any_tile(FilterGraph(network, spec), spec)
        written = _write_checked(model, spec, temporary, output, lambda spec: FilterGraph(network, spec), verify)
    report = ExportReport(
        path=output,
        spec=written.spec,
        bytes=output.stat().st_size,
        nodes=len(model.graph.node),
        operators_added=0,
        deleted_edges=(),
        kept_edges=(),
        parity=written.parity,
        verification=written.verification,
        seconds=time.monotonic() - started,
    )
    _write_descriptions(report, sidecar)
    return report


class _Written(NamedTuple):
    """A graph that passed all checks."""

    spec: ModelSpec
    parity: Parity
    verification: Verification | None


def _write_checked(
    model: ModelProto,
    spec: ModelSpec,
    temporary: Path,
    output: Path,
    reference: Callable[[ModelSpec], torch.nn.Module],
    verify: Callable[[Backend], Verification] | None,
) -> _Written:
    """Write a traced graph to a temporary file, and check it.

    Args:
        output: where it goes, for messages.
        reference: builds the graph in torch that the file is compared with.
        verify: as for `write_onnx`.

    Raises:
        ValueError: it failed a check.
    """
    with needs_extra("export"):
        import onnx
    strip_debug_info(model.graph)
    _, precision = graph_precision(model.graph)
    spec = replace(spec, precision=precision, versions={**spec.versions, "onnx": onnx.__version__})
    faults = lint(model, spec)
    if faults:
        raise ValueError(f"{output} was not written: {'; '.join(faults)}")
    model.metadata_props.add(key=METADATA_KEY, value=spec.to_json())
    temporary.write_bytes(model.SerializeToString())
    onnx.checker.check_model(str(temporary), full_check=True)

    step("comparing ONNX Runtime with torch")
    parity = _parity_of(temporary, reference(spec), spec)
    tolerance = tolerance_of(spec)
    if parity.unconverged:
        raise NotConvergedError(f"{output} was not written: {nms_not_converged(parity.unconverged, spec)}")
    if parity.unmatched > tolerance.unmatched * parity.judged:
        raise ValueError(
            f"{output} was not written: {parity.unmatched} of {parity.detections} detections differ between "
            f"ONNX Runtime and torch (IoU {tolerance.iou}, score {tolerance.score}); try another version of torch"
        )
    verification = verify(open_model(temporary, REFERENCE_BACKEND)) if verify else None
    if verification is not None and not verification.passed:
        kind = NotConvergedError if verification.unconverged else ValueError
        raise kind(f"{output} was not written: {'; '.join(verification.faults)}")
    return _Written(replace(spec, onnx_sha256=read_onnx(temporary).sha256), parity, verification)


def _write_descriptions(report: ExportReport, sidecar: Path) -> None:
    """Write the description of an exported file, and the report of its verification."""
    write_text(sidecar, report.spec.to_json() + "\n")
    if report.verification is not None:
        write_report(report.verification, report.path)


def trace_for_any_tile(graph: InferenceGraph | FilterGraph, spec: ModelSpec) -> tuple[ModelProto, ModelSpec]:
    """Convert an inference graph to ONNX; return it and its spec.

    Height and width are free. They are fixed to `spec.tile` for a detector of a plugin that depends on it.
    """
    multiple = CELL if isinstance(graph, FilterGraph) else detector_info(spec.detector).tile_multiple
    # Sides that differ, a batch of two, and more than one cell on each level: equal sizes and 1 would become constants.
    coarsest = graph.strides[-1]
    sides = [-(-cells * coarsest // (2 * multiple)) * multiple for cells in (5, 7)]
    names = ("images",), tuple(output_shapes(spec))
    free = {i: multiple * torch.export.Dim(name, min=2, max=LARGEST_TILE // multiple)
            for i, name in enumerate(TILE_AXES, 1)}  # fmt: skip
    try:
        model = trace(graph, (torch.zeros((2, *sides, 3), dtype=torch.uint8),), *names, free)
    except torch.onnx.errors.OnnxExporterError as error:
        if isinstance(graph, FilterGraph) or spec.detector in BUILT_IN:
            raise
        logger.warning(
            f"{spec.detector}: its graph depends on spec.tile, so the file takes tiles of {spec.tile} only; compute "
            "what depends on the tile from the shape of the images in inference(spec): docs/extending.md"
        )
        logger.debug("not exported for any tile: %s", error)
        images = torch.zeros((2, spec.tile, spec.tile, 3), dtype=torch.uint8)
        return trace(graph, (images,), *names), spec
    for axis, name in zip(model.graph.input[0].type.tensor_type.shape.dim[1:3], TILE_AXES, strict=True):
        axis.dim_param = name
    del model.graph.value_info[:]  # in terms of other names
    free_sizes_of_batch(model.graph)
    return model, replace(spec, tile_multiple=multiple)


def free_sizes_of_batch(graph: GraphProto) -> None:
    """Make the sizes that a graph reads from its values independent of the batch, except the batch itself.

    ONNX Runtime computes a size when it loads a model, and all that follows from it, only if no other size of the
    value is unknown, and the batch is. So sizes are read from the first item of a batch; those of the input after its
    cast, because TensorRT gathers no uint8.
    """
    with needs_extra("export"):
        from onnx import TensorProto, helper
    cast = next(node for node in graph.node if node.op_type == "Cast" and node.input[0] == INPUT)
    nodes = [cast]
    firsts: dict[str, str] = {}
    for node in graph.node:
        bounds = {attribute.name: attribute for attribute in node.attribute}
        if node.op_type == "Shape" and "start" in bounds and bounds["start"].i >= 1:
            value = cast.output[0] if node.input[0] == INPUT else node.input[0]
            if value not in firsts:
                firsts[value] = f"{value}_first"
                nodes.append(helper.make_node("Gather", [value, "first"], [firsts[value]], f"{value}_item", axis=0))
            node.input[0] = firsts[value]
            for bound in bounds.values():
                bound.i -= 1
        if node is not cast:
            nodes.append(node)
    if firsts:
        graph.initializer.append(helper.make_tensor("first", TensorProto.INT64, [], [0]))
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def trace(
    module: torch.nn.Module,
    inputs: tuple[Tensor, ...],
    input_names: Sequence[str],
    output_names: Sequence[str],
    free: Mapping[int, Any] | None = None,
) -> ModelProto:
    """Convert a module to ONNX with a dynamic batch axis for each input.

    Args:
        free: further dynamic axes, as dimensions of `torch.export`.
    """
    with needs_extra("export"):
        import onnxscript  # noqa: F401 - torch needs it; imported here for a clear error message
    shapes = tuple({0: torch.export.Dim("batch"), **(free or {})} for _ in inputs)
    variadic = any(p.kind is p.VAR_POSITIONAL for p in inspect.signature(module.forward).parameters.values())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations within torch itself
        program = torch.onnx.export(
            module,
            inputs,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(input_names),
            output_names=list(output_names),
            dynamic_shapes=(shapes,) if variadic else shapes,
            verbose=False,
        )
    assert program is not None
    model: ModelProto = program.model_proto
    return model


def pyramid_of(graph: torch.nn.Module) -> tuple[str, PlainFPN]:
    """Return the pyramid inside an inference graph and its name there."""
    (found,) = [(name, module) for name, module in graph.named_modules() if isinstance(module, PlainFPN)]
    return found


def pyramid_operators(graph: GraphProto, scope: str) -> Counter[str]:
    """Count the operators of a freshly traced graph that come from the module named `scope`, by type."""
    return Counter(
        node.op_type
        for node in graph.node
        if any(e.key == "pkg.torch.onnx.name_scopes" and f"'{scope}'" in e.value for e in node.metadata_props)
    )


def conventional_operators(fpn: PlainFPN) -> Counter[str]:
    """Count the operators of a conventional pyramid with the levels of `fpn`, by type."""
    channels = [first_convolution(block).in_channels for block in fpn.inner]
    conventional = PlainFPN(channels, first_convolution(fpn.layer[0]).out_channels, top=copy.deepcopy(fpn.top))
    layers = str(conventional)
    if layers in _OPERATORS_OF_PYRAMIDS:
        return _OPERATORS_OF_PYRAMIDS[layers]
    sides = [32 >> i for i in range(len(channels))]
    levels = tuple(torch.zeros((2, c, side, side)) for c, side in zip(channels, sides, strict=True))
    outputs = [f"P{i}" for i in range(len(conventional(levels)))]
    graph = trace(_Pyramid(conventional.eval()), levels, [f"C{i}" for i in range(len(levels))], outputs)
    _OPERATORS_OF_PYRAMIDS[layers] = Counter(node.op_type for node in graph.graph.node)
    return _OPERATORS_OF_PYRAMIDS[layers]


_OPERATORS_OF_PYRAMIDS: dict[str, Counter[str]] = {}  # by their layers, because tracing takes a second


def operators_added(pyramid: Counter[str], conventional: Counter[str], deleted_edges: int, kept_edges: int = 0) -> int:
    """Return the number of operators that alpha adds: one per edge that keeps its factor, hence 0 except for extreme
    factors.

    Raises:
        ValueError: the pyramid is not the conventional one, less a resize and a sum per deleted edge, plus a product
            per kept edge.
    """
    expected = conventional - Counter(Resize=deleted_edges, Add=deleted_edges) + Counter(Mul=kept_edges)
    if pyramid != expected:
        raise ValueError(
            f"the exported pyramid has {dict(pyramid)}, a conventional one {dict(expected)}: alpha is not folded"
        )
    return (pyramid - conventional).total()


def strip_debug_info(graph: GraphProto) -> None:
    """Remove the source location of each node, which names local folders and takes a fifth of a small file."""
    for part in (*graph.node, *graph.value_info, *graph.initializer, *graph.input, *graph.output):
        del part.metadata_props[:]
        part.doc_string = ""


def lint(model: ModelProto, spec: ModelSpec) -> list[str]:
    """Return what breaks the contract of an exported model or would fail in a runtime; empty for a valid graph."""
    with needs_extra("export"):
        from onnx import numpy_helper
    graph = model.graph
    producers = {name: node for node in graph.node for name in node.output}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    faults = _contract_faults(graph, spec)
    for node in graph.node:
        if node.op_type in FORBIDDEN:
            faults.append(f"node {node.name!r} is a {node.op_type}, which not every runtime supports")
        if node.domain not in ("", "ai.onnx"):
            faults.append(f"node {node.name!r} is in the domain {node.domain!r}, which needs a plugin")
        if node.op_type == "TopK":
            k = constants.get(node.input[1])
            kept = math.inf if k is None else int(numpy_helper.to_array(k).item())
            if kept > MAX_TOPK:
                faults.append(f"node {node.name!r} keeps {kept} values; TopK in TensorRT keeps at most {MAX_TOPK}")
        if node.op_type == "Transpose" and node.input[0] == graph.input[0].name:
            faults.append(f"node {node.name!r} transposes uint8, which TensorRT's parser refuses; cast first")
        if node.op_type in ("Gather", "GatherElements", "GatherND") and _comes_from_division(node.input[1], producers):
            faults.append(
                f"node {node.name!r} gathers at indices that come from a division, which is inexact above 2048 in FP16"
            )
    return faults


def _parity_of(path: Path, graph: torch.nn.Module, spec: ModelSpec) -> Parity:
    """Compare ONNX Runtime with torch on one synthetic scene, and on a batch of noise, a scene and an empty tile.

    A model for any tile is compared on tiles of another size, too.
    """
    nms_iou = spec.nms_iou if spec.nms_rounds else None

    @torch.inference_mode()
    def run_torch(tiles: NDArray[np.uint8]) -> TileOutputs:
        return TileOutputs(*(output.numpy() for output in graph(torch.from_numpy(tiles))))

    found: list[tuple[TileOutputs, TileOutputs]] = []
    for tile in (spec.tile, other_tile(spec)) if spec.tile_multiple else (spec.tile,):
        batches = _tiles_to_compare(replace(spec, tile=tile))
        run_onnx = open_model(path, REFERENCE_BACKEND, tile=tile).run
        found += [(run_torch(batch), run_onnx(batch)) for batch in batches]
    ours, theirs = (TileOutputs(*map(np.concatenate, zip(*each, strict=True))) for each in zip(*found, strict=True))
    return compare(ours, theirs, spec.score_floor, nms_iou=nms_iou)


def _tiles_to_compare(spec: ModelSpec) -> list[NDArray[np.uint8]]:
    """Return batches of synthetic tiles."""
    tile = spec.tile
    scenes = [render_scene(tile, tile, seed=seed)[0] for seed in (7, 8)]
    noise = np.random.default_rng(0).integers(0, 256, (tile, tile, 3), dtype=np.uint8)
    empty = np.full((tile, tile, 3), spec.pad, np.uint8)
    images = np.stack([scenes[0], noise, scenes[1], empty])
    return [images[:1], images[1:]] if spec.max_batch >= 3 else [image[None] for image in images]


class _Pyramid(torch.nn.Module):
    """A pyramid that takes its levels as separate arguments, as `torch.onnx.export` requires."""

    def __init__(self, fpn: PlainFPN) -> None:
        super().__init__()
        self.fpn = fpn

    def forward(self, *levels: Tensor) -> list[Tensor]:
        return list(self.fpn(levels))


def _contract_faults(graph: GraphProto, spec: ModelSpec) -> list[str]:
    """Return what differs from the inputs and outputs of an exported model."""
    kinds = {np.float32: "FLOAT", np.int32: "INT32"}
    height, width = TILE_AXES if spec.tile_multiple else (spec.tile, spec.tile)
    expected = {"images": f"UINT8 (N, {height}, {width}, 3)"} | {
        name: f"{kinds[OUTPUT_TYPES[name]]} ({', '.join(['N', *map(str, shape)])})"
        for name, shape in output_shapes(spec).items()
    }
    found = {value.name: _type_and_shape(value) for value in (*graph.input, *graph.output)}
    return (
        []
        if list(found.items()) == list(expected.items())
        else [f"inputs and outputs are {found}, expected {expected}"]
    )


def _type_and_shape(value: ValueInfoProto) -> str:
    with needs_extra("export"):
        from onnx import TensorProto
    kind = value.type.tensor_type
    names = {"batch": "N"}
    sizes = [
        str(d.dim_value) if d.HasField("dim_value") else names.get(d.dim_param, d.dim_param) for d in kind.shape.dim
    ]
    return f"{TensorProto.DataType.Name(kind.elem_type)} ({', '.join(sizes)})"


def _comes_from_division(name: str, producers: dict[str, NodeProto]) -> bool:
    """Return whether a division lies between the value `name` and the outputs of the network that it comes from.

    The search ends at convolutions and at operators that produce exact indices. Divisions of sizes are of integers.
    """
    pending, visited = [name], set()
    while pending:
        node = producers.get(pending.pop())
        if node is None or id(node) in visited or node.op_type in ("TopK", "ArgMax", "Shape", "Conv"):
            continue
        visited.add(id(node))
        if node.op_type == "Div":
            if not all(_is_size(value, producers) for value in node.input):
                return True
            continue
        pending.extend(node.input)
    return False


def _is_size(name: str, producers: dict[str, NodeProto]) -> bool:
    """Return whether a value depends on nothing but constants and the sizes of other values."""
    pending = [name]
    while pending:
        value = pending.pop()
        node = producers.get(value)
        if node is None and value == INPUT:
            return False
        if node is not None and node.op_type != "Shape":
            pending.extend(node.input)
    return True
