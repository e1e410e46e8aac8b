"""TensorRT and TensorRT-RTX engines through cuda-python. No torch.

Unverified on a GPU: nothing here has run on one. What is held without one: every TensorRT name against the real
bindings of 10.3 to 11.4, every CUDA name against cuda-python, and the host side (buffers, padding, order of calls)
against a stand-in of the driver.

A plan file runs only under the flavour, the version and the GPU that it was built for. `open_engine` says which of
them is not so here.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
import platform
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tinydet._extras import needs_extra
from tinydet.runtime.backends import TileOutputs, check_tiles, output_shapes
from tinydet.spec import ModelSpec

Flavour = Literal["tensorrt", "rtx"]

PRODUCTS: dict[Flavour, str] = {"tensorrt": "TensorRT", "rtx": "TensorRT-RTX"}
MAGIC: dict[bytes, Flavour] = {b"ftrt": "tensorrt", b"vtrt": "rtx"}  # the first bytes of a plan

INPUT = "images"
DTYPES: dict[str, np.dtype[Any]] = {
    "images": np.dtype(np.uint8),
    "boxes": np.dtype(np.float32),
    "scores": np.dtype(np.float32),
    "labels": np.dtype(np.int32),
    "candidates": np.dtype(np.int32),
    "unconverged": np.dtype(np.int32),
}


class TensorRTBackend:
    """One engine; each thread that calls `run` gets its own execution context, stream and buffers.

    The engine sees few batch sizes only, the powers of two up to the largest: every size costs it a choice of
    kernels. A batch in between is padded, and what the padding yields is cut off.
    """

    def __init__(self, engine: Any, spec: ModelSpec, cudart: Any, *, name: str, keep: object = None) -> None:
        """
        Args:
            engine: a deserialised ICudaEngine with the inputs and outputs of an exported model.
            cudart: the runtime module of cuda-python.
            keep: what must live as long as the engine (its Runtime and logger).

        Raises:
            ValueError: where the engine's inputs and outputs are not those of `spec`.
        """
        self.name = name
        self.spec = spec
        self._engine = engine
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
        lane: _Lane | None = getattr(self._lanes, "lane", None)
        if lane is None:
            lane = self._lanes.lane = _Lane(self._engine, self._cudart, self._shapes, self.spec.max_batch)
        return lane.run(images, padded_batch(len(images), self._smallest, self.spec.max_batch))


def open_engine(path: Path) -> TensorRTBackend:
    """Load the engine at `path`; its description lies beside it (`model.engine`, `model.json`).

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
    spec = _description(path, plan, flavour)
    product = PRODUCTS[flavour]

    cudart = import_cudart(flavour)
    gpu = gpu_description(cudart)
    if gpu is None:
        raise OSError(f"{path} is a {product} engine and needs an NVIDIA GPU with its driver; there is none here")
    trt = import_tensorrt(flavour)
    logger = make_logger(trt)
    runtime = trt.Runtime(logger)
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
    return TensorRTBackend(engine, spec, cudart, name=f"{product} {trt.__version__}", keep=(runtime, logger))


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
    major = _checked(cudart, cudart.cudaDeviceGetAttribute(attribute.cudaDevAttrComputeCapabilityMajor, 0))
    minor = _checked(cudart, cudart.cudaDeviceGetAttribute(attribute.cudaDevAttrComputeCapabilityMinor, 0))
    name = _checked(cudart, cudart.cudaGetDeviceProperties(0)).name
    return f"{name.decode() if isinstance(name, bytes) else name} ({major}.{minor})"


def platform_name() -> str:
    """System and processor, as engines are bound to them: linux-x86_64."""
    return f"{platform.system().lower()}-{platform.machine().lower()}"


class _Lane:
    """What one thread needs to run the engine: context, stream, pinned host buffers and device buffers, all kept."""

    def __init__(self, engine: Any, cudart: Any, shapes: dict[str, tuple[int, ...]], capacity: int) -> None:
        self.cudart = cudart
        self.batch = 0
        self.host: dict[str, NDArray[Any]] = {}
        self.device: dict[str, int] = {}
        self._owned: list[tuple[Callable[[int], Any], int]] = []
        weakref.finalize(self, _release, self._owned)  # before the first allocation: a later one may fail

        self.stream = self._checked(cudart.cudaStreamCreateWithFlags(cudart.cudaStreamNonBlocking))
        self._owned.append((cudart.cudaStreamDestroy, self.stream))
        for name, shape in shapes.items():
            size = capacity * math.prod(shape) * DTYPES[name].itemsize
            pinned = int(self._checked(cudart.cudaMallocHost(size)))
            self._owned.append((cudart.cudaFreeHost, pinned))
            self.device[name] = int(self._checked(cudart.cudaMalloc(size)))
            self._owned.append((cudart.cudaFree, self.device[name]))
            memory = (ctypes.c_uint8 * size).from_address(pinned)
            self.host[name] = np.ctypeslib.as_array(memory).view(DTYPES[name]).reshape(capacity, *shape)
        self.host[INPUT][:] = 0

        self.context = engine.create_execution_context()
        if self.context is None:
            raise OSError("TensorRT made no execution context: the GPU's memory is used up; close other programs")
        for name, address in self.device.items():
            if not self.context.set_tensor_address(name, address):
                raise OSError(f"TensorRT refused the buffer of {name!r}")

    def run(self, images: NDArray[np.uint8], batch: int) -> TileOutputs:
        """Copy in, execute, copy out, all on the lane's own stream; `images` fill the first of `batch` places."""
        cudart, context, count = self.cudart, self.context, len(images)
        self.host[INPUT][:count] = images  # the padding keeps older tiles; nobody reads what they yield
        if batch != self.batch:
            if not context.set_input_shape(INPUT, (batch, *images.shape[1:])) or context.infer_shapes():
                raise OSError(f"TensorRT refused a batch of {batch}; build the engine again")
            self.batch = batch
        self._copy(INPUT, batch, cudart.cudaMemcpyKind.cudaMemcpyHostToDevice)
        if not context.execute_async_v3(int(self.stream)):
            raise OSError("TensorRT could not run the engine")
        answers = [name for name in self.host if name != INPUT]
        for name in answers:
            self._copy(name, batch, cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost)
        self._checked(cudart.cudaStreamSynchronize(self.stream))
        return TileOutputs(**{name: self.host[name][:count].copy() for name in answers})

    def _copy(self, name: str, batch: int, kind: Any) -> None:
        host = self.host[name]
        ends = (self.device[name], host.ctypes.data)
        target, source = ends if name == INPUT else ends[::-1]
        self._checked(self.cudart.cudaMemcpyAsync(target, source, host[:batch].nbytes, kind, self.stream))

    def _checked(self, answer: tuple[Any, ...]) -> Any:
        return _checked(self.cudart, answer)


def _checked(cudart: Any, answer: tuple[Any, ...]) -> Any:
    """The value of a CUDA call, whose answer is (error, value) or (error,)."""
    error, *values = answer
    if error != cudart.cudaError_t.cudaSuccess:
        text = cudart.cudaGetErrorString(error)[1]
        raise OSError(f"CUDA: {text.decode() if isinstance(text, bytes) else text} ({error.name})")
    return values[0] if values else None


def _release(owned: list[tuple[Callable[[int], Any], int]]) -> None:
    """Give back in reverse order; at exit the driver may be gone already, so answers are not read."""
    while owned:
        free, what = owned.pop()
        free(what)


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
