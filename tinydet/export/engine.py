"""One builder for TensorRT 10.3 to 11 and TensorRT-RTX 1: an ONNX file in, a pure plan and its description out.

No torch: an engine is built on the machine that will run it. TensorRT-RTX builds without a GPU too.

Precision is in the graph, never a flag: TensorRT 11 has no precision flags, and asking for one that is missing is how
others build FP32 engines under an FP16 name. Enums are used by name: their numbers moved between 10 and 11. The plan
carries no header of ours (trtexec and Triton load it); what it is stands in the `.json` beside it.
"""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tinydet._internal.atomic import atomic_path, write_text
from tinydet._internal.extras import needs_extra
from tinydet.runtime.backends import tensorrt as backend
from tinydet.runtime.backends.contract import INPUT
from tinydet.runtime.backends.tensorrt import PRODUCTS, Flavour
from tinydet.spec import METADATA_KEY, ModelSpec

Target = Literal["auto", "tensorrt", "rtx"]

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")  # what has weights to convert
RTX_CAPABILITIES = ("8.0", "8.6", "8.9", "12.0")  # what TensorRT-RTX builds for when not told; and newer GPUs


@dataclass(frozen=True)
class OnnxModel:
    """What an exported ONNX file says about itself.

    Attributes:
        weights: how many constants of each type it holds: {"FLOAT": 4_000_000, "INT64": 12}.
        precision: fp32, fp16 or int8, as the graph proves it.
    """

    path: Path
    spec: ModelSpec
    sha256: str
    weights: dict[str, int]
    precision: str


@dataclass(frozen=True)
class ParsedGraph:
    """What the parser made of the graph: nothing is built yet."""

    flavour: Flavour
    version: str
    layers: int


def build_engine(
    onnx_path: Path,
    output: Path,
    *,
    target: Target = "auto",
    batch: tuple[int, int, int] | None = None,
    workspace: int | None = None,
    version_compatible: bool = False,
    hardware_compatible: bool = False,
    compute_capabilities: Sequence[str] = (),
    timing_cache: Path | None = None,
    gate: Callable[[Path, ModelSpec], None] | None = None,
    progress: Callable[[str], None] | None = None,
    log: Callable[[str], None] | None = None,
) -> ModelSpec:
    """Build `output` and the `.json` beside it from an exported ONNX file.

    Args:
        target: auto is TensorRT where it finds a GPU, else TensorRT-RTX.
        batch: smallest, most usual and largest batch; None: 1, 8 and the largest that the ONNX was exported for.
        workspace: bytes of GPU memory that layers may use while they run; None: all of it.
        version_compatible: the plan also runs under newer TensorRT versions (slower).
        hardware_compatible: the plan runs on every GPU from Ampere on (slower).
        compute_capabilities: for TensorRT-RTX, such as "7.5"; none: Ampere and newer.
        timing_cache: a file that makes the next build with TensorRT faster.
        gate: is given the plan under a name for the time being, and its description; what it raises leaves an older
            engine as it was.
        progress: is told the phase of the build, from another thread.
        log: is told every line that TensorRT says.

    Returns:
        The description, as written beside the engine.

    Raises:
        ValueError: a file that is not an exported model, a graph that TensorRT refuses, or options that do not fit.
        ModuleNotFoundError: no TensorRT of the wanted target is installed.
        OSError: no GPU where one is needed, or a file that cannot be written.
    """
    model = read_onnx(onnx_path)
    sizes = batch or _default_batch(model.spec.max_batch)
    if not 1 <= sizes[0] <= sizes[1] <= sizes[2]:
        raise ValueError(f"the batch sizes must rise from 1: smallest, usual, largest; got {sizes}")
    sidecar = description_of(output, ".engine")
    with atomic_path(output) as temporary:  # around the build, so that a folder that cannot be written shows at once
        build = _Build(target, log)
        build.refuse_options(version_compatible, hardware_compatible, compute_capabilities, timing_cache)
        gpu = build.gpu(compute_capabilities)
        build.parse(model)
        config = build.configure(workspace, version_compatible, hardware_compatible, compute_capabilities)
        build.set_batch(config, model.spec.tile, sizes)
        if timing_cache is not None:
            build.use_timing_cache(config, timing_cache)
        started = time.monotonic()
        plan = build.run(config, progress)
        seconds = time.monotonic() - started
        temporary.write_bytes(plan)
        spec = replace(
            model.spec,
            max_batch=sizes[2],
            onnx_sha256=model.sha256,
            engine={
                "flavour": build.flavour,
                "version": build.version,
                "gpu": gpu,
                "platform": backend.platform_name(),
                "batch": list(sizes),
                "version_compatible": version_compatible,
                "hardware_compatible": hardware_compatible,
                "onnx": onnx_path.name,
                "weights": model.weights,
                "tensors": build.tensors(),
                "bytes": len(plan),
                "sha256": hashlib.sha256(plan).hexdigest(),
                "seconds": round(seconds, 2),
            },
        )
        if gate is not None:
            gate(temporary, spec)
    write_text(sidecar, spec.to_json() + "\n")
    if timing_cache is not None:
        build.save_timing_cache(config, timing_cache)
    return spec


def parse_only(onnx_path: Path, *, target: Target = "auto", log: Callable[[str], None] | None = None) -> ParsedGraph:
    """Whether the parser of `target` takes the graph; nothing is built or written. Raises as `build_engine`."""
    model = read_onnx(onnx_path)
    build = _Build(target, log)
    return ParsedGraph(build.flavour, build.version, build.parse(model))


def read_onnx(path: Path) -> OnnxModel:
    """Read an ONNX file that tinydet exported, and prove its precision.

    Raises:
        ValueError: not an ONNX file, not one of ours, or one whose weights are not of the precision it claims.
    """
    with needs_extra("export"):
        import onnx
    content = path.read_bytes()
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf's DecodeError is not a public name
        raise ValueError(
            f"{path} is not an ONNX file ({error}); export it with: tinydet export onnx model.pth"
        ) from error
    described = {entry.key: entry.value for entry in model.metadata_props}
    if METADATA_KEY not in described:
        raise ValueError(
            f"{path} does not describe its classes and tile; export it with: tinydet export onnx model.pth"
        )
    spec = ModelSpec.from_json(described[METADATA_KEY], source=path)
    weights, precision = graph_precision(model.graph)
    if precision != spec.precision:
        raise ValueError(f"{path} calls itself {spec.precision}, but its weights are {weights}: export it again")
    return OnnxModel(path, spec, hashlib.sha256(content).hexdigest(), weights, precision)


def graph_precision(graph: Any) -> tuple[dict[str, int], str]:
    """Constants of a graph by type (how many numbers), and the precision that it proves by itself.

    int8 where it quantises, else that of most weights of its layers; what the file is called counts for nothing.
    """
    with needs_extra("export"):
        import onnx
    layers = {node.input[1] for node in graph.node if node.op_type in LAYERS}
    weights: Counter[str] = Counter()
    of_layers: Counter[str] = Counter()
    for constant in graph.initializer:
        kind = onnx.TensorProto.DataType.Name(constant.data_type)
        weights[kind] += math.prod(constant.dims)
        if constant.name in layers:
            of_layers[kind] += math.prod(constant.dims)
    if any(node.op_type == "QuantizeLinear" for node in graph.node):
        return dict(weights), "int8"
    return dict(weights), "fp16" if of_layers["FLOAT16"] > of_layers["FLOAT"] else "fp32"


def description_of(output: Path, suffix: str) -> Path:
    """The `.json` beside an output.

    Raises:
        ValueError: where the output has another suffix, by which the runtime tells files apart, or a file is in the
            way that is not a model's description: annotations, say.
    """
    if output.suffix != suffix:
        raise ValueError(f"{output}: the name must end in {suffix}")
    sidecar = output.with_suffix(".json")
    if sidecar.exists():
        try:
            ModelSpec.from_json(sidecar.read_text(encoding="utf-8"), source=sidecar)
        except ValueError as error:
            raise ValueError(f"{sidecar} would be overwritten and describes no model; name another output") from error
    return sidecar


class _Build:
    """The objects of one build. TensorRT frees children with their parents, so they live and go together."""

    def __init__(self, target: Target, log: Callable[[str], None] | None) -> None:
        self.flavour, trt, builder, logger = _open_builder(target, log)
        self.version: str = trt.__version__
        self._trt, self._builder, self._logger = trt, builder, logger
        flag = trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
        self._network = builder.create_network(1 << int(flag))
        self._parser = trt.OnnxParser(self._network, logger)

    def refuse_options(
        self,
        version_compatible: bool,
        hardware_compatible: bool,
        compute_capabilities: Sequence[str],
        timing_cache: Path | None,
    ) -> None:
        """Raise ValueError for an option that this flavour would ignore."""
        if self.flavour == "tensorrt":
            if compute_capabilities:
                raise ValueError("compute capabilities are TensorRT-RTX's; TensorRT builds for the GPU it finds")
            if timing_cache is not None and not timing_cache.parent.is_dir():
                raise ValueError(f"{timing_cache}: its folder does not exist; create it or name another timing cache")
            return
        if version_compatible:
            raise ValueError("a TensorRT-RTX engine cannot be made version compatible; build one for each version")
        if hardware_compatible:
            raise ValueError(
                "a TensorRT-RTX engine runs on every GPU from Ampere on as it is; name older ones by compute capability"
            )
        if timing_cache is not None:
            raise ValueError("TensorRT-RTX times nothing while it builds, so it has no timing cache")

    def parse(self, model: OnnxModel) -> int:
        """Read the graph; the number of layers."""
        network, parser = self._network, self._parser
        if not parser.parse_from_file(str(model.path)):
            errors = [_parser_error(parser.get_error(i)) for i in range(parser.num_errors)]
            raise ValueError(
                f"{PRODUCTS[self.flavour]} {self.version} does not take {model.path}: {'; '.join(errors)}. "
                "Export the checkpoint again with this tinydet, or build with another --target"
            )
        return int(network.num_layers)

    def configure(
        self,
        workspace: int | None,
        version_compatible: bool,
        hardware_compatible: bool,
        compute_capabilities: Sequence[str],
    ) -> Any:
        trt, builder = self._trt, self._builder
        config = builder.create_builder_config()
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # the inspector can then name each layer's format
        config.clear_flag(trt.BuilderFlag.TF32)  # on by default; what the graph has in FP32 is to be computed in FP32
        if workspace is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace)
        if version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if hardware_compatible:
            config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        if compute_capabilities:
            _target_rtx(trt, config, compute_capabilities)
        return config

    def set_batch(self, config: Any, tile: int, batch: tuple[int, int, int]) -> None:
        builder = self._builder
        profile = builder.create_optimization_profile()
        profile.set_shape(INPUT, *((n, tile, tile, 3) for n in batch))
        if config.add_optimization_profile(profile) < 0:
            raise ValueError(f"{PRODUCTS[self.flavour]} refuses the batch sizes {batch}: {self._said()}")

    def use_timing_cache(self, config: Any, path: Path) -> None:
        cache = config.create_timing_cache(path.read_bytes() if path.exists() else b"")
        if cache is None or not config.set_timing_cache(cache, False):
            raise ValueError(f"{path} is not a timing cache of this GPU and TensorRT {self.version}; name another file")

    def save_timing_cache(self, config: Any, path: Path) -> None:
        cache = config.get_timing_cache()
        with atomic_path(path) as temporary:
            temporary.write_bytes(memoryview(cache.serialize()))

    def run(self, config: Any, progress: Callable[[str], None] | None) -> memoryview:
        """The plan. Runs in a thread of its own, so that Ctrl-C reaches this one and stops the build cleanly."""
        builder, network = self._builder, self._network
        cancelled = threading.Event()
        monitor = _make_monitor(self._trt, progress, cancelled)
        config.progress_monitor = monitor
        with ThreadPoolExecutor(1) as pool:
            pending: Future[Any] = pool.submit(builder.build_serialized_network, network, config)
            try:
                wait([pending])
            except KeyboardInterrupt:
                cancelled.set()
                raise
        plan = pending.result()
        if plan is None:
            raise ValueError(f"{PRODUCTS[self.flavour]} {self.version} built no engine: {self._said()}")
        return memoryview(plan)

    def tensors(self) -> dict[str, str]:
        """Inputs and outputs as the plan has them: {"images": "UINT8 (-1, 640, 640, 3)"}."""
        network = self._network
        found = {}
        for i in range(network.num_inputs):
            tensor = network.get_input(i)
            found[str(tensor.name)] = f"{tensor.dtype.name} {tuple(tensor.shape)}"
        for i in range(network.num_outputs):
            tensor = network.get_output(i)
            found[str(tensor.name)] = f"{tensor.dtype.name} {tuple(tensor.shape)}"
        return found

    def gpu(self, compute_capabilities: Sequence[str]) -> str | None:
        """For which GPUs the plan is, in words; None: for this machine's, whose name needs cuda-python."""
        if self.flavour == "rtx":
            named = ", ".join(compute_capabilities)
            return f"compute capability {named or ', '.join(RTX_CAPABILITIES) + ' and newer'}"
        try:
            return backend.gpu_description(backend.import_cudart(self.flavour))
        except (ImportError, OSError, RuntimeError):  # RuntimeError: a driver that lacks what cuda-python looks for
            return None

    def _said(self) -> str:
        return " | ".join(self._logger.errors) or "it does not say why; look at --verbose"


def _open_builder(target: Target, log: Callable[[str], None] | None) -> tuple[Flavour, Any, Any, Any]:
    """The first flavour of `target` that is installed and can build here: its name, module, builder and logger."""
    flavours: dict[Target, tuple[Flavour, ...]] = {
        "auto": ("tensorrt", "rtx"),
        "tensorrt": ("tensorrt",),
        "rtx": ("rtx",),
    }
    reasons: list[str] = []
    installed = False
    for flavour in flavours[target]:
        try:
            trt = backend.import_tensorrt(flavour)
        except ModuleNotFoundError as error:
            reasons.append(str(error))
            continue
        except (ImportError, OSError) as error:  # the bindings are there, the library or the driver behind them is not
            reasons.append(f"{PRODUCTS[flavour]} is installed but cannot be loaded ({error})")
            installed = True
            continue
        installed = True
        logger = backend.make_logger(trt)
        logger.listener = log
        try:
            return flavour, trt, trt.Builder(logger), logger
        except TypeError:  # how pybind11 says that the library made no builder
            said = " | ".join(logger.errors) or "no CUDA driver"
            reasons.append(
                f"{PRODUCTS[flavour]} {trt.__version__} is installed but builds only where it finds an NVIDIA GPU; "
                f"TensorRT-RTX builds without one (it said: {said})"
            )
    text = f"no engine was built. {'. '.join(reasons)}"
    raise OSError(text) if installed else ModuleNotFoundError(text)


def _target_rtx(trt: Any, config: Any, compute_capabilities: Sequence[str]) -> None:
    """TensorRT-RTX only: for which GPUs the plan is built."""
    known = {f"{name[2:-1]}.{name[-1]}": name for name in trt.ComputeCapability.__members__ if name.startswith("SM")}
    unknown = [c for c in compute_capabilities if c not in known]
    if unknown:
        raise ValueError(
            f"TensorRT-RTX {trt.__version__} does not build for compute capability {', '.join(unknown)}; "
            f"one of: {', '.join(known)}"
        )
    config.num_compute_capabilities = len(compute_capabilities)
    for i, capability in enumerate(compute_capabilities):
        config.set_compute_capability(trt.ComputeCapability.__members__[known[capability]], i)


def _make_monitor(trt: Any, progress: Callable[[str], None] | None, cancelled: threading.Event) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)  # pybind11 asks for this form

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if progress is not None:
                progress(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return not cancelled.is_set()

        def phase_finish(self, phase_name: str) -> None:
            pass

    return Monitor()


def _parser_error(parser_error: Any) -> str:
    said = [line for line in parser_error.desc().splitlines() if "catchCudaError" not in line]  # no GPU: not the fault
    return f"node {parser_error.node_name()!r} ({parser_error.node_operator()}): {' '.join(' '.join(said).split())}"


def _default_batch(largest: int) -> tuple[int, int, int]:
    return 1, min(8, largest), largest
