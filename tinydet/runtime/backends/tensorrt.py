"""TensorRT and TensorRT-RTX engines through cuda-python. No torch.

Unverified on a GPU: nothing here has run on one. What is held without one: every TensorRT name against the real
bindings of 10.3 to 11.4, every CUDA name against cuda-python, and the host side (buffers, padding, order of calls)
against a stand-in of the driver.

A plan file runs only under the flavour, the version and the GPU that it was built for. `open_engine` says which of
them is not so here.
"""

from __future__ import annotations

import hashlib
import platform
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tinydet._internal.extras import needs_extra
from tinydet.runtime.backends import TileOutputs, check_tiles, output_shapes
from tinydet.runtime.backends.cuda_lane import DTYPES, INPUT, Execution, Lane, checked
from tinydet.spec import ModelSpec

Flavour = Literal["tensorrt", "rtx"]

PRODUCTS: dict[Flavour, str] = {"tensorrt": "TensorRT", "rtx": "TensorRT-RTX"}
MAGIC: dict[bytes, Flavour] = {b"ftrt": "tensorrt", b"vtrt": "rtx"}  # the first bytes of a plan


class TensorRTBackend:
    """One engine; each thread that calls `run` gets its own execution contexts, stream and buffers.

    The engine sees few batch sizes only, the powers of two up to the largest: every size costs it a choice of
    kernels, and a CUDA graph once it comes again. A batch in between is padded, and what the padding yields is cut
    off.
    """

    def __init__(
        self, engine: Any, spec: ModelSpec, cudart: Any, execution: Execution, *, name: str, keep: object = None
    ) -> None:
        """
        Args:
            engine: a deserialised ICudaEngine with the inputs and outputs of an exported model.
            cudart: the runtime module of cuda-python.
            execution: how contexts of the engine are made.
            keep: what must live as long as the engine (its Runtime and logger).

        Raises:
            ValueError: where the engine's inputs and outputs are not those of `spec`.
        """
        self.name = name
        self.spec = spec
        self._engine = engine
        self._execution = execution
        self._keep = keep  # after the engine: attributes are dropped in this order
        self._cudart = cudart
        smallest, _, largest = (int(shape[0]) for shape in engine.get_tensor_profile_shape(INPUT, 0))
        if largest < spec.max_batch:
            raise ValueError(
                f"the engine takes up to {largest} tiles, its description says {spec.max_batch}: build it again"
            )
        self._smallest = smallest
        self._shapes = _checked_shapes(engine, spec)
        self._lanes = threading.local()

    def run(self, images: NDArray[np.uint8]) -> TileOutputs:
        """(N, T, T, 3) uint8 RGB, N up to `spec.max_batch` -> boxes of each tile.

        Raises:
            ValueError: for other shapes or types.
            OSError: where CUDA or TensorRT fails.
        """
        check_tiles(images, self.spec)
        if len(images) == 0:
            empty = {n: np.zeros((0, *shape), DTYPES[n]) for n, shape in self._shapes.items() if n != INPUT}
            return TileOutputs(**empty)
        return self._lane().run(images, padded_batch(len(images), self._smallest, self.spec.max_batch))

    def stage_times(self, images: NDArray[np.uint8]) -> dict[str, float]:
        """Milliseconds on the GPU of one run, by CUDA events: "copy in", "execute", "copy out". For measuring: without
        a CUDA graph, which would hide where one stage ends. Raises as `run`, and for no tiles at all.
        """
        check_tiles(images, self.spec)
        if len(images) == 0:
            raise ValueError("no tiles: there is nothing to time")
        return self._lane().stage_times(images, padded_batch(len(images), self._smallest, self.spec.max_batch))

    def _lane(self) -> Lane:
        lane: Lane | None = getattr(self._lanes, "lane", None)
        if lane is None:
            lane = self._lanes.lane = Lane(self._cudart, self._execution, self._shapes, self.spec.max_batch)
        return lane


def open_engine(path: Path, spec: ModelSpec | None = None) -> TensorRTBackend:
    """Load the engine at `path`.

    Args:
        spec: its description; None: what lies beside it (`model.engine`, `model.json`).

    Raises:
        ValueError: not an engine, or one that does not belong to the description.
        ModuleNotFoundError: the flavour that it was built with is not installed.
        OSError: no NVIDIA GPU, or the engine was built for another GPU, version or system.
    """
    path = Path(path)
    plan = path.read_bytes()
    flavour = plan_flavour(plan)
    if flavour is None:
        raise ValueError(f"{path} is not a TensorRT engine: it begins with {plan[:4]!r}, expected {list(MAGIC)}")
    spec = spec or _description(path, plan, flavour)
    product = PRODUCTS[flavour]

    cudart = import_cudart(flavour)
    gpu = gpu_description(cudart)
    if gpu is None:
        raise OSError(
            f"{path} is a {product} engine and needs an NVIDIA GPU with its driver; there is none here{_why(cudart)}"
        )
    trt = import_tensorrt(flavour)
    logger = make_logger(trt)
    try:
        runtime = trt.Runtime(logger)
    except (TypeError, RuntimeError) as error:  # pybind11's words for a factory that gave nothing
        raise OSError(
            f"{product} {trt.__version__} does not start on {gpu}, so {path} cannot run: "
            f"{' | '.join(logger.errors) or error}"
        ) from error
    if spec.engine.get("version_compatible"):
        runtime.engine_host_code_allowed = True  # such a plan brings its own runtime code
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        built = spec.engine
        raise OSError(
            f"{path} cannot be loaded. Built by {product} {built.get('version')} for {built.get('gpu')} on "
            f"{built.get('platform')}; here: {product} {trt.__version__}, {gpu}, {platform_name()}. Engines move "
            f"between none of these; build it here: python export/to_trt.py {path.with_suffix('.onnx')}. "
            f"{product} says: {' | '.join(logger.errors) or 'nothing'}"
        )
    execution = (_execution_rtx if flavour == "rtx" else _execution)(trt, engine)
    name = f"{product} {trt.__version__}, {gpu}"
    return TensorRTBackend(engine, spec, cudart, execution, name=name, keep=(runtime, logger))


def plan_flavour(plan: bytes) -> Flavour | None:
    """Which of the two a plan was built by, from its first bytes.

    >>> plan_flavour(b"vtrt...")
    'rtx'
    """
    return MAGIC.get(bytes(plan[:4]))


def padded_batch(count: int, smallest: int, largest: int) -> int:
    """The batch that the engine sees for `count` tiles: the next power of two, within the engine's profile.

    >>> [padded_batch(n, 1, 12) for n in (1, 3, 4, 5, 9, 12)]
    [1, 4, 4, 8, 12, 12]
    """
    return min(max(1 << (count - 1).bit_length(), smallest), largest)


def import_tensorrt(flavour: Flavour) -> Any:
    """The module `tensorrt` or `tensorrt_rtx`; their names are the same.

    Raises:
        ModuleNotFoundError: with the command that installs it.
    """
    if flavour == "rtx":
        with needs_extra("rtx"):
            import tensorrt_rtx

        return tensorrt_rtx
    with needs_extra("tensorrt"):
        import tensorrt

    return tensorrt


def import_cudart(flavour: Flavour) -> Any:
    """The CUDA runtime of cuda-python, under its name of today or of before 12.6."""
    with needs_extra(flavour):
        try:
            import cuda.bindings.runtime as cudart
        except ModuleNotFoundError:
            import cuda.cudart as cudart
    return cudart


def make_logger(trt: Any) -> Any:
    """A TensorRT logger that keeps what went wrong in `errors` and passes every line to `listener` if one is set."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # pybind11 asks for this form
            self.errors: list[str] = []
            self.listener: Callable[[str], None] | None = None

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.errors.append(" ".join(msg.split()))
            if self.listener is not None:
                self.listener(f"{severity.name}: {msg}")

    return Logger()


def gpu_description(cudart: Any) -> str | None:
    """Name and compute capability of the first visible GPU (CUDA_VISIBLE_DEVICES chooses); None: no GPU or driver."""
    error, count = cudart.cudaGetDeviceCount()
    if error != cudart.cudaError_t.cudaSuccess or count == 0:
        return None
    attribute = cudart.cudaDeviceAttr
    major = checked(cudart, cudart.cudaDeviceGetAttribute(attribute.cudaDevAttrComputeCapabilityMajor, 0))
    minor = checked(cudart, cudart.cudaDeviceGetAttribute(attribute.cudaDevAttrComputeCapabilityMinor, 0))
    name = checked(cudart, cudart.cudaGetDeviceProperties(0)).name
    return f"{name.decode() if isinstance(name, bytes) else name} ({major}.{minor})"


def _why(cudart: Any) -> str:
    """What CUDA says of a GPU that it does not find, in brackets; nothing where it says just that."""
    error, _ = cudart.cudaGetDeviceCount()
    if error == cudart.cudaError_t.cudaErrorInsufficientDriver:
        return f" ({error.name}: no driver, or one older than the CUDA that cuda-python is of; update one of them)"
    return "" if error == cudart.cudaError_t.cudaSuccess else f" ({error.name})"


def platform_name() -> str:
    """System and processor, as engines are bound to them: linux-x86_64."""
    return f"{platform.system().lower()}-{platform.machine().lower()}"


def _execution(trt: Any, engine: Any) -> Execution:
    """A context for each batch size, all in one memory: a CUDA graph belongs to one shape and one context."""
    strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
    return Execution(lambda: engine.create_execution_context(strategy), int(engine.device_memory_size_v2), True)


def _execution_rtx(trt: Any, engine: Any) -> Execution:
    """One context for all sizes. TensorRT-RTX compiles kernels for a size while others run, and captures graphs itself
    once it has them; only it knows when."""
    runtime_config = engine.create_runtime_config()
    runtime_config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    return Execution(lambda: engine.create_execution_context(runtime_config), 0, False)


def _description(path: Path, plan: bytes, flavour: Flavour) -> ModelSpec:
    """The description beside an engine, if it is this engine's."""
    sidecar = path.with_suffix(".json")
    if not sidecar.is_file():
        raise ValueError(f"{path} lacks its description {sidecar}: copy it too, or build the engine again")
    spec = ModelSpec.from_json(sidecar.read_text(encoding="utf-8"), source=sidecar)
    again = f"build it again: python export/to_trt.py {path.with_suffix('.onnx')}"
    if not spec.engine:
        raise ValueError(f"{sidecar} describes no engine: the model was exported again after {path} was built; {again}")
    if spec.engine.get("sha256") != hashlib.sha256(plan).hexdigest():
        raise ValueError(
            f"{path} ({PRODUCTS[flavour]}, {len(plan)} bytes) is not the engine that {sidecar} describes "
            f"({spec.engine.get('flavour')}, {spec.engine.get('bytes')} bytes): copied in part, or mixed up; {again}"
        )
    return spec


def _checked_shapes(engine: Any, spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Shapes of inputs and outputs without the batch axis, once they are those of an exported model."""
    expected: dict[str, tuple[int, ...]] = {INPUT: (spec.tile, spec.tile, 3), **output_shapes(spec)}
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
    return expected
