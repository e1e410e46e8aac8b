"""Run TensorRT and TensorRT-RTX engines through cuda-python, without torch.

Not verified on a GPU: nothing here has run on one. The tests check every TensorRT name against the real bindings of
10.3 to 11.4, every CUDA name against cuda-python, and the host side (buffers, padding, order of calls) against a
stand-in for the driver.

A plan file runs only with the flavor (TensorRT or TensorRT-RTX), version and GPU that it was built for. `open_engine`
reports which of them differs.
"""

from __future__ import annotations

import hashlib
import logging
import platform
import threading
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tinydet._internal.extras import needs_extra
from tinydet._internal.input_files import read_file
from tinydet._internal.shell import tinydet_command
from tinydet.runtime.backends.contract import INPUT, TileChoice, TileOutputs, check_tiles, output_shapes, spec_for_tile
from tinydet.runtime.backends.engine_runner import DTYPES, EngineRunner, Execution, checked
from tinydet.spec import ModelSpec

LOGGER = logging.getLogger("tinydet.tensorrt")  # at level DEBUG it gets every line that TensorRT logs

Flavour = Literal["tensorrt", "rtx"]

PRODUCTS: dict[Flavour, str] = {"tensorrt": "TensorRT", "rtx": "TensorRT-RTX"}
MAGIC: dict[bytes, Flavour] = {b"ftrt": "tensorrt", b"vtrt": "rtx"}  # the first bytes of a plan


class TensorRTBackend:
    """An engine. Each thread that calls `run` gets its own execution contexts, stream and buffers.

    Batches are padded to a power of two, or to the largest batch, and the outputs of the padding are dropped, because
    each batch size costs the engine a choice of kernels and a CUDA graph.
    """

    def __init__(
        self, engine: Any, spec: ModelSpec, cudart: Any, execution: Execution, *, name: str, keep: object = None
    ) -> None:
        """
        Args:
            engine: a deserialized ICudaEngine with the inputs and outputs of an exported model.
            cudart: the runtime module of cuda-python.
            execution: how to create contexts of the engine.
            keep: objects that must live as long as the engine (its Runtime and logger).

        Raises:
            ValueError: the engine's inputs, outputs or largest batch do not match `spec`.
        """
        self.name = name
        self.spec = spec
        self._engine = engine
        self._execution = execution
        self._keep = keep  # after the engine, as attributes are freed in this order
        self._cudart = cudart
        self._profile = spec.tiles.index(spec.tile)
        shapes = engine.get_tensor_profile_shape(INPUT, self._profile)
        smallest, _, largest = (int(shape[0]) for shape in shapes)
        if largest < spec.max_batch:
            raise ValueError(
                f"the engine takes up to {largest} tiles, its description says {spec.max_batch}: build it again"
            )
        if tuple(shapes[0][1:3]) != (spec.tile, spec.tile):
            raise ValueError(
                f"profile {self._profile} of the engine takes {tuple(shapes[0])}, its description says tiles of "
                f"{spec.tile}: build it again"
            )
        self._smallest = smallest
        self._shapes = _checked_shapes(engine, spec)
        self._runners = threading.local()

    def run(self, images: NDArray[np.uint8]) -> TileOutputs:
        """Run the model on tiles (N, T, T, 3), uint8 RGB, with N up to `spec.max_batch`.

        Raises:
            ValueError: the shape or type is different.
            OSError: CUDA or TensorRT failed.
        """
        check_tiles(images, self.spec)
        if len(images) == 0:
            empty = {n: np.zeros((0, *shape), DTYPES[n]) for n, shape in self._shapes.items() if n != INPUT}
            return TileOutputs(**empty)
        return self._runner().run(images, padded_batch(len(images), self._smallest, self.spec.max_batch))

    def stage_times(self, images: NDArray[np.uint8]) -> dict[str, float]:
        """Return the GPU milliseconds of the stages of one run, by CUDA events: "copy in", "execute", "copy out".

        For measurements. Runs without a CUDA graph, which would hide the boundaries of the stages.

        Raises:
            ValueError: as `run`, and for a batch without tiles.
            OSError: CUDA or TensorRT failed.
        """
        check_tiles(images, self.spec)
        if len(images) == 0:
            raise ValueError("no tiles: there is nothing to time")
        return self._runner().stage_times(images, padded_batch(len(images), self._smallest, self.spec.max_batch))

    def _runner(self) -> EngineRunner:
        runner: EngineRunner | None = getattr(self._runners, "runner", None)
        if runner is None:
            runner = EngineRunner(
                self._cudart, self._execution, self._shapes, self.spec.max_batch, profile=self._profile
            )
            self._runners.runner = runner
        return runner


def open_engine(
    path: Path, spec: ModelSpec | None = None, *, tile: TileChoice = None, cuda_graph: bool = True
) -> TensorRTBackend:
    """Load the engine at `path`.

    Args:
        spec: its description; None to read it from the `.json` of the same name (`model.engine`, `model.json`).
        tile: side of the tiles in pixels, one of those that the engine was built for; None for the first of them.
        cuda_graph: run each batch size as one CUDA graph. False, for measurements, launches every kernel by itself.

    Raises:
        ValueError: the file is not an engine, does not match its description, or was not built for this tile.
        ModuleNotFoundError: the TensorRT flavor that built the engine is not installed.
        OSError: there is no NVIDIA GPU, or the engine was built for another GPU, version or system.
    """
    path = Path(path)
    plan = read_file(path)
    flavour = plan_flavour(plan)
    if flavour is None:
        raise ValueError(f"{path} is not a TensorRT engine: it begins with {plan[:4]!r}, expected {list(MAGIC)}")
    spec = spec_for_tile(spec or read_description(path, plan, flavour), tile, path)
    product = PRODUCTS[flavour]

    cudart = import_cudart(flavour)
    gpu = gpu_description(cudart)
    if gpu is None:
        raise OSError(
            f"{path} is a {product} engine and needs an NVIDIA GPU with its driver; there is none here"
            f"{_why_no_gpu(cudart)}"
        )
    trt = import_tensorrt(flavour)
    logger = make_logger(trt)
    try:
        runtime = trt.Runtime(logger)
    except (TypeError, RuntimeError) as error:  # how pybind11 reports a null Runtime
        raise OSError(
            f"{product} {trt.__version__} does not start on {gpu}, so {path} cannot run: "
            f"{' | '.join(logger.errors) or error}"
        ) from error
    if spec.engine.get("version_compatible"):
        runtime.engine_host_code_allowed = True  # such a plan contains its own runtime code
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        built = spec.engine
        raise OSError(
            f"{path} cannot be loaded. Built by {product} {built.get('version')} for {built.get('gpu')} on "
            f"{built.get('platform')}; here: {product} {trt.__version__}, {gpu}, {platform_name()}. An engine runs "
            f"only where all of these are equal; build it here: {_build_command(path)}. "
            f"{product} says: {' | '.join(logger.errors) or 'nothing'}"
        )
    execution = (_execution_rtx if flavour == "rtx" else _execution)(trt, engine, cuda_graph)
    name = f"{product} {trt.__version__}, {gpu}"
    return TensorRTBackend(engine, spec, cudart, execution, name=name, keep=(runtime, logger))


def plan_flavour(plan: bytes) -> Flavour | None:
    """Return which product built a plan, from its first bytes; None for other files.

    >>> plan_flavour(b"vtrt...")
    'rtx'
    """
    return MAGIC.get(bytes(plan[:4]))


def padded_batch(count: int, smallest: int, largest: int) -> int:
    """Return the batch size to which `count` tiles are padded: the next power of two within the engine's profile.

    >>> [padded_batch(n, 1, 12) for n in (1, 3, 4, 5, 9, 12)]
    [1, 4, 4, 8, 12, 12]
    """
    return min(max(1 << (count - 1).bit_length(), smallest), largest)


def import_tensorrt(flavour: Flavour) -> Any:
    """Import `tensorrt` or `tensorrt_rtx`, which have the same API.

    Raises:
        ModuleNotFoundError: it is not installed; says which command installs it.
    """
    if flavour == "rtx":
        with needs_extra("rtx"):
            import tensorrt_rtx

        return tensorrt_rtx
    with needs_extra("tensorrt"):
        import tensorrt

    return tensorrt


def import_cudart(flavour: Flavour) -> Any:
    """Import the CUDA runtime of cuda-python, whose module was renamed in 12.6."""
    with needs_extra(flavour):
        try:
            import cuda.bindings.runtime as cudart
        except ModuleNotFoundError:
            import cuda.cudart as cudart
    return cudart


def make_logger(trt: Any) -> Any:
    """Create a TensorRT logger that collects errors in `errors` and logs every line as a debug message."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # required by pybind11
            self.errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.errors.append(" ".join(msg.split()))
            LOGGER.debug("%s: %s", severity.name, msg)

    return Logger()


def gpu_description(cudart: Any) -> str | None:
    """Return name and compute capability of the first visible GPU (see CUDA_VISIBLE_DEVICES); None without a GPU."""
    error, count = cudart.cudaGetDeviceCount()
    if error != cudart.cudaError_t.cudaSuccess or count == 0:
        return None
    attribute = cudart.cudaDeviceAttr
    major = checked(cudart, cudart.cudaDeviceGetAttribute(attribute.cudaDevAttrComputeCapabilityMajor, 0))
    minor = checked(cudart, cudart.cudaDeviceGetAttribute(attribute.cudaDevAttrComputeCapabilityMinor, 0))
    name = checked(cudart, cudart.cudaGetDeviceProperties(0)).name
    return f"{name.decode() if isinstance(name, bytes) else name} ({major}.{minor})"


def _why_no_gpu(cudart: Any) -> str:
    """Return CUDA's reason for finding no GPU, in parentheses; empty if it reports success."""
    error, _ = cudart.cudaGetDeviceCount()
    if error == cudart.cudaError_t.cudaErrorInsufficientDriver:
        return f" ({error.name}: no driver, or one older than the CUDA that cuda-python uses; update one of them)"
    return "" if error == cudart.cudaError_t.cudaSuccess else f" ({error.name})"


def platform_name() -> str:
    """Return system and processor, to which an engine is bound, such as `linux-x86_64`."""
    return f"{platform.system().lower()}-{platform.machine().lower()}"


def _execution(trt: Any, engine: Any, cuda_graph: bool) -> Execution:
    """Use one context per batch size, as a CUDA graph is bound to one shape and context. They share their memory."""
    strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
    return Execution(lambda: engine.create_execution_context(strategy), int(engine.device_memory_size_v2), cuda_graph)


def _execution_rtx(trt: Any, engine: Any, cuda_graph: bool) -> Execution:
    """Use one context for all batch sizes. TensorRT-RTX compiles kernels in the background and captures graphs itself
    when they are ready."""
    runtime_config = engine.create_runtime_config()
    strategy = trt.CudaGraphStrategy
    runtime_config.cuda_graph_strategy = strategy.WHOLE_GRAPH_CAPTURE if cuda_graph else strategy.DISABLED
    return Execution(lambda: engine.create_execution_context(runtime_config), 0, False)


def _build_command(path: Path) -> str:
    """Return the command that rebuilds an engine."""
    return tinydet_command("export", "engine", path.with_suffix(".onnx"))


def read_description(path: Path, plan: bytes, flavour: Flavour) -> ModelSpec:
    """Read the description of an engine from the `.json` of the same name.

    Raises:
        ValueError: it is missing, or describes another engine. Names the file.
    """
    sidecar = path.with_suffix(".json")
    if not sidecar.exists():
        raise ValueError(f"{path} lacks its description {sidecar}: copy it too, or build the engine again")
    spec = ModelSpec.from_json(read_file(sidecar), source=sidecar)
    again = f"build it again: {_build_command(path)}"
    if not spec.engine:
        raise ValueError(f"{sidecar} describes no engine: the model was exported again after {path} was built; {again}")
    if spec.engine.get("sha256") != hashlib.sha256(plan).hexdigest():
        raise ValueError(
            f"{path} ({PRODUCTS[flavour]}, {len(plan)} bytes) is not the engine that {sidecar} describes "
            f"({spec.engine.get('flavour')}, {spec.engine.get('bytes')} bytes): copied in part, or mixed up; {again}"
        )
    return spec


def _checked_shapes(engine: Any, spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Return the shapes of inputs and outputs without the batch axis, after checking the engine against `spec`."""
    shapes: dict[str, tuple[int, ...]] = {INPUT: (spec.tile, spec.tile, 3), **output_shapes(spec)}
    side = spec.tile if len(spec.tiles) == 1 else -1  # -1: of several tiles
    expected = {**shapes, INPUT: (side, side, 3)}
    names = {"uint8": "UINT8", "float32": "FLOAT", "int32": "INT32"}
    wanted = {
        name: f"{names[DTYPES[name].name]} (N{''.join(f', {n}' for n in shape)})" for name, shape in expected.items()
    }
    found = {}
    for i in range(engine.num_io_tensors):
        name = engine.get_tensor_name(i)
        shape = tuple(engine.get_tensor_shape(name))[1:]
        found[name] = f"{engine.get_tensor_dtype(name).name} (N{''.join(f', {n}' for n in shape)})"
    if found != wanted:
        raise ValueError(f"the engine's inputs and outputs are {found}, expected {wanted}: build it again")
    return shapes
