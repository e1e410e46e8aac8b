"""Build engines with TensorRT 10.3 to 11 and TensorRT-RTX 1 from an exported ONNX file.

Needs no torch, as an engine is built on the machine that will run it. TensorRT-RTX also builds without a GPU.

The types in the graph decide the precision (the network is strongly typed), because TensorRT 11 has no precision flags.
Enums are used by name, because their numbers differ between 10 and 11. The output is a plain plan, which trtexec and
Triton can load; the description of the model is in the `.json` next to it.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tinydet._internal.atomic import atomic_path, claim, write_text
from tinydet._internal.outputs import check_folder
from tinydet.export.onnx_model import OnnxModel, description_path, fixed_size, read_onnx
from tinydet.export.steps import step
from tinydet.runtime.backends import tensorrt as backend
from tinydet.runtime.backends.contract import INPUT, spec_for_tile
from tinydet.runtime.backends.tensorrt import PRODUCTS, Flavour
from tinydet.spec import ModelSpec

Target = Literal["auto", "tensorrt", "rtx"]

RTX_CAPABILITIES = ("8.0", "8.6", "8.9", "12.0")  # default of TensorRT-RTX, which then also supports newer GPUs


@dataclass(frozen=True)
class ParsedGraph:
    """Result of parsing a graph without building it."""

    flavour: Flavour
    version: str
    layers: int


def write_engine(
    onnx_path: Path,
    output: Path,
    *,
    target: Target = "auto",
    batch: tuple[int, int, int] | None = None,
    tiles: Sequence[int] = (),
    workspace: int | None = None,
    version_compatible: bool = False,
    hardware_compatible: bool = False,
    compute_capabilities: Sequence[str] = (),
    timing_cache: Path | None = None,
    verify: Callable[[Path, ModelSpec], None] | None = None,
) -> ModelSpec:
    """Build an engine from an exported ONNX file; write it to `output`, and its description to the `.json` next to it.

    Args:
        target: "auto" uses TensorRT if it finds a GPU, else TensorRT-RTX.
        batch: smallest, typical and largest batch; None for 1, 8 and the largest that the ONNX was exported for.
        tiles: sides of the tiles that the engine takes, the default one first: one optimization profile each. None: the
            default tile of the ONNX file. An engine for one tile is built from a graph of fixed size.
        workspace: limit of the scratch memory of layers on the GPU, in bytes; None for no limit.
        version_compatible: the engine also runs with newer TensorRT versions (slower).
        hardware_compatible: the engine runs on every GPU from Ampere on (slower).
        compute_capabilities: target GPUs of TensorRT-RTX, such as "7.5", or "current" for that of this machine; none
            for Ampere and newer.
        timing_cache: a file with kernel timings, which makes the next build with TensorRT faster.
        verify: called with the path of the engine before it is renamed to `output`, and its description. If it raises,
            an existing engine is kept.

    Returns:
        The description.

    Raises:
        ValueError: the file is not an exported model, TensorRT refuses the graph, or the options are invalid.
        ModuleNotFoundError: no TensorRT of this target is installed.
        OSError: there is no GPU and the target needs one, or a file cannot be written.
    """
    model = read_onnx(onnx_path)
    sizes = batch or _default_batch(model.spec.max_batch)
    if not 1 <= sizes[0] <= sizes[1] <= sizes[2]:
        raise ValueError(f"batch sizes must be in ascending order from 1: smallest, typical, largest; got {sizes}")
    sides = _checked_tiles(model, tiles)
    sidecar = description_path(output, ".engine")
    with (
        claim(output),
        atomic_path(output) as temporary,
    ):  # before the build, so that an unwritable folder is an error at once
        build = _Build(target)
        build.refuse_options(version_compatible, hardware_compatible, compute_capabilities, timing_cache)
        gpu = build.gpu(compute_capabilities)
        build.parse(model, sides)
        config = build.configure(workspace, version_compatible, hardware_compatible, compute_capabilities)
        for side in sides:
            build.add_profile(config, side, sizes)
        if timing_cache is not None:
            build.use_timing_cache(config, timing_cache)
        started = time.monotonic()
        plan = build.run(config)
        seconds = time.monotonic() - started
        temporary.write_bytes(plan)
        spec = replace(
            model.spec,
            tile=sides[0],
            tile_multiple=0,
            max_batch=sizes[2],
            onnx_sha256=model.sha256,
            engine={
                "flavour": build.flavour,
                "version": build.version,
                "gpu": gpu,
                "platform": backend.platform_name(),
                "batch": list(sizes),
                "tiles": list(sides),
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
        if verify is not None:
            verify(temporary, spec)
    write_text(sidecar, spec.to_json() + "\n")
    if timing_cache is not None:
        build.save_timing_cache(config, timing_cache)
    return spec


def parse_only(onnx_path: Path, *, target: Target = "auto", tiles: Sequence[int] = ()) -> ParsedGraph:
    """Parse the graph with the parser of `target` without building an engine. Raises the errors of `write_engine`."""
    model = read_onnx(onnx_path)
    sides = _checked_tiles(model, tiles)
    build = _Build(target)
    return ParsedGraph(build.flavour, build.version, build.parse(model, sides))


def _checked_tiles(model: OnnxModel, tiles: Sequence[int]) -> tuple[int, ...]:
    """Return the tiles without repetitions, by default the model's own.

    Raises:
        ValueError: the ONNX file does not take one of them.
    """
    return tuple(dict.fromkeys(spec_for_tile(model.spec, tile, model.path).tile for tile in tiles or (None,)))


class _Build:
    """The TensorRT objects of one build. They are freed together, because parents free their children."""

    def __init__(self, target: Target) -> None:
        self.flavour, trt, builder, logger = _open_builder(target)
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
        """Raise ValueError for options that this flavor would ignore."""
        if self.flavour == "tensorrt":
            if compute_capabilities:
                raise ValueError("compute capabilities are for TensorRT-RTX; TensorRT builds for the GPU that it finds")
            if timing_cache is not None:
                check_folder(timing_cache.parent, timing_cache)
            return
        if version_compatible:
            raise ValueError("a TensorRT-RTX engine cannot be made version compatible; build one for each version")
        if hardware_compatible:
            raise ValueError(
                "a TensorRT-RTX engine already runs on every GPU from Ampere on; name older ones by compute capability"
            )
        if timing_cache is not None:
            raise ValueError("TensorRT-RTX does not time kernels while building, so it has no timing cache")

    def parse(self, model: OnnxModel, tiles: Sequence[int]) -> int:
        """Read the graph, for one tile or several, and return its number of layers."""
        network, parser = self._network, self._parser
        if len(tiles) == 1 and model.spec.tile_multiple:
            parsed = parser.parse(fixed_size(model.path, tiles[0]), str(model.path))
        else:
            parsed = parser.parse_from_file(str(model.path))
        if not parsed:
            errors = [_parser_error(parser.get_error(i)) for i in range(parser.num_errors)]
            remedy = (
                "Export the original without NMS or without the operators that are named, and adopt it again"
                if model.spec.is_adopted
                else "Export the checkpoint again with this version of tinydet"
            )
            raise ValueError(
                f"{PRODUCTS[self.flavour]} {self.version} does not accept {model.path}: "
                f"{'; '.join(errors).rstrip('.')}. "
                f"{remedy}, or build with another --target"
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
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # lets the inspector show each layer's format
        config.clear_flag(trt.BuilderFlag.TF32)  # on by default; FP32 nodes must be computed in FP32
        if workspace is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace)
        if version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if hardware_compatible:
            config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        if compute_capabilities:
            _target_rtx(trt, config, compute_capabilities)
        return config

    def add_profile(self, config: Any, tile: int, batch: tuple[int, int, int]) -> None:
        """Add an optimization profile for one tile and a range of batch sizes."""
        builder = self._builder
        profile = builder.create_optimization_profile()
        profile.set_shape(INPUT, *((n, tile, tile, 3) for n in batch))
        if config.add_optimization_profile(profile) < 0:
            raise ValueError(
                f"{PRODUCTS[self.flavour]} refuses batches of {batch} tiles of {tile} pixels: {self._errors()}"
            )

    def use_timing_cache(self, config: Any, path: Path) -> None:
        cache = config.create_timing_cache(path.read_bytes() if path.exists() else b"")
        if cache is None or not config.set_timing_cache(cache, False):
            raise ValueError(f"{path} is not a timing cache of this GPU and TensorRT {self.version}; name another file")

    def save_timing_cache(self, config: Any, path: Path) -> None:
        cache = config.get_timing_cache()
        with atomic_path(path) as temporary:
            temporary.write_bytes(memoryview(cache.serialize()))

    def run(self, config: Any) -> memoryview:
        """Build the plan in another thread, so that Ctrl-C reaches this one and cancels the build."""
        builder, network = self._builder, self._network
        cancelled = threading.Event()
        monitor = _make_monitor(self._trt, cancelled)
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
            raise ValueError(f"{PRODUCTS[self.flavour]} {self.version} built no engine: {self._errors()}")
        return memoryview(plan)

    def tensors(self) -> dict[str, str]:
        """Return type and shape of the inputs and outputs, such as {"images": "UINT8 (-1, 640, 640, 3)"}."""
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
        """Describe the target GPUs; None for this machine's GPU if cuda-python, which knows its name, is missing."""
        if self.flavour == "rtx":
            named = ", ".join(compute_capabilities)
            return f"compute capability {named or ', '.join(RTX_CAPABILITIES) + ' and newer'}"
        try:
            return backend.gpu_description(backend.import_cudart(self.flavour))
        except (ImportError, OSError, RuntimeError):  # RuntimeError: the driver lacks a function of cuda-python
            return None

    def _errors(self) -> str:
        return " | ".join(self._logger.errors) or "no reason given; see the log with --verbose"


def _open_builder(target: Target) -> tuple[Flavour, Any, Any, Any]:
    """Find the first flavor of `target` that can build here; return its name, module, builder and logger."""
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
        except (ImportError, OSError) as error:  # the bindings exist, but not the library or the driver
            reasons.append(f"{PRODUCTS[flavour]} is installed but cannot be loaded ({error})")
            installed = True
            continue
        installed = True
        logger = backend.make_logger(trt)
        try:
            return flavour, trt, trt.Builder(logger), logger
        except TypeError:  # how pybind11 reports that the library created no builder
            errors = " | ".join(logger.errors) or "no CUDA driver"
            reasons.append(
                f"{PRODUCTS[flavour]} {trt.__version__} is installed, but it needs an NVIDIA GPU to build and found "
                f"none; TensorRT-RTX builds without one ({PRODUCTS[flavour]} says: {errors})"
            )
    text = f"no engine was built. {'. '.join(reasons)}"
    raise OSError(text) if installed else ModuleNotFoundError(text)


def _target_rtx(trt: Any, config: Any, compute_capabilities: Sequence[str]) -> None:
    """Set the target GPUs. The builder configuration has these members only in TensorRT-RTX."""
    known = {f"{name[2:-1]}.{name[-1]}": name for name in trt.ComputeCapability.__members__ if name.startswith("SM")}
    known |= {"current": "CURRENT"}
    unknown = [c for c in compute_capabilities if c not in known]
    if unknown:
        raise ValueError(
            f"TensorRT-RTX {trt.__version__} does not build for compute capability {', '.join(unknown)}; "
            f"choose from: {', '.join(known)}"
        )
    config.num_compute_capabilities = len(compute_capabilities)
    for i, capability in enumerate(compute_capabilities):
        config.set_compute_capability(trt.ComputeCapability.__members__[known[capability]], i)


def _make_monitor(trt: Any, cancelled: threading.Event) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)  # required by pybind11

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            step("%s", phase_name)

        def step_complete(self, phase_name: str, number: int) -> bool:
            return not cancelled.is_set()

        def phase_finish(self, phase_name: str) -> None:
            pass

    return Monitor()


def _parser_error(parser_error: Any) -> str:
    # Without a GPU each error also contains lines about CUDA, which are not its cause.
    lines = [line for line in parser_error.desc().splitlines() if "catchCudaError" not in line]
    return f"node {parser_error.node_name()!r} ({parser_error.node_operator()}): {' '.join(' '.join(lines).split())}"


def _default_batch(largest: int) -> tuple[int, int, int]:
    return 1, min(8, largest), largest
