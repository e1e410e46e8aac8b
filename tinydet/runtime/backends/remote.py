"""Run a model on a server that speaks KServe V2: Triton, `tinydet serve`, and others.

The scene stays on this machine, which cuts it into tiles and joins their boxes; only tiles and boxes are sent.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import random
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinydet._internal import arguments
from tinydet._internal.arguments import check_number
from tinydet._internal.input_files import hash_file
from tinydet._internal.shell import tinydet_command
from tinydet.runtime.backends.contract import (
    INPUT,
    OUTPUT_TYPES,
    TileChoice,
    TileOutputs,
    check_tiles,
    output_shapes,
    spec_for_tile,
)
from tinydet.runtime.backends.kserve import (
    DATATYPES,
    SHA256_KEY,
    Answer,
    HttpModelServer,
    ModelServer,
    ServedModel,
    ServerUnavailableError,
)
from tinydet.runtime.backends.model_files import read_spec
from tinydet.runtime.backends.server_address import Address, parse_address
from tinydet.spec import METADATA_KEY, ModelSpec

IN_FLIGHT = 4  # requests
PATIENCE = 60.0  # seconds
FIRST_WAIT, LONGEST_WAIT = 0.25, 8.0  # seconds between two attempts
# Fields that may differ between a model file and what is served of it, such as the engine that was built from it.
FREE_FIELDS = {"tile", "tile_multiple", "max_batch", "onnx_sha256", "engine", "versions"}

logger = logging.getLogger("tinydet.runtime")


class RemoteBackend:
    """A model on a server; `run` may be called from several threads, each with a request of its own.

    A request that fails because the connection is lost, or because the server is busy or restarts, is repeated with
    growing pauses. Before that, the model is compared with the one that was opened.

    Attributes:
        spec: as the server stores it, or of the given model file.
        name: for messages.
        in_flight: how many requests the server should have at a time.
        model_hash: SHA-256 of the served model file; if the server does not know it, of its address and description.
    """

    def __init__(
        self,
        address: Address | str,
        model: Path | None = None,
        *,
        tile: TileChoice = None,
        in_flight: int | None = None,
        patience: float = PATIENCE,
    ) -> None:
        """
        Args:
            address: of the model, such as `http://gpu:8000/v2/models/tinydet`.
            model: the file that should be served; it is compared with the server's model, and not run. Needed if the
                server does not store the description of its model.
            tile: side of the tiles in pixels; None for the model's default.
            in_flight: how many requests may wait for the server at a time; None for 4.
            patience: seconds for which a failed request is repeated.

        Raises:
            ValueError: the address is malformed; the server's model is not a detector of tinydet, is not `model`, or
                does not take this tile.
            OSError: the server cannot be reached, has no such model, or the model is not ready.
            ModuleNotFoundError: gRPC needs a package that is not installed.
        """
        if isinstance(address, str):
            address = parse_address(address)
        if in_flight is not None:
            in_flight = check_number("in_flight", in_flight, arguments.threads)
        self._address, self._patience = address, patience
        given = None if model is None else read_spec(model)  # before the network
        self._server = _server(address)
        self._served = self._server.describe()
        served = self._served.parameters.get(METADATA_KEY)
        stored = None if served is None else ModelSpec.from_json(served, source=str(address))
        if stored is None and given is None:
            raise ValueError(
                f"{address}: the server does not store the description of its model; name its file: --model model.onnx"
            )
        if stored is not None and given is not None:
            assert model is not None
            _check_same(address, stored, self._served.parameters.get(SHA256_KEY), model, given)
        spec = stored or given
        assert spec is not None
        self.spec = _check(address, self._served, spec, tile)
        self.in_flight = in_flight or IN_FLIGHT
        self.name = f"server {address}"
        self.model_hash = (
            self._served.parameters.get(SHA256_KEY)
            or hashlib.sha256(f"{address}\n{spec.to_json()}".encode()).hexdigest()
        )
        self._shapes = output_shapes(self.spec)
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._version = ""
        self._has_warned = False

    def run(self, images: NDArray[np.uint8]) -> TileOutputs:
        """Run the model on tiles (N, T, T, 3), uint8 RGB, with N up to `spec.max_batch`.

        Raises:
            ValueError: the shape or type is different, the server's model has changed, or its outputs are malformed.
            OSError: the server refuses the request, or cannot be reached for `patience` seconds.
        """
        check_tiles(images, self.spec)
        count = len(images)
        if count == 0:
            return TileOutputs(
                **{name: np.zeros((0, *size), OUTPUT_TYPES[name]) for name, size in self._shapes.items()}
            )
        most = sum(4 * count * int(np.prod(size)) for size in self._shapes.values())
        stop, wait, deadline = self._stop, FIRST_WAIT, None
        while True:
            try:
                if deadline is not None:
                    self._check_unchanged()
                answer = self._server.infer(INPUT, images, list(self._shapes), most)
                break
            except ServerUnavailableError as error:
                now = time.monotonic()
                deadline = deadline or now + self._patience
                pause = error.wait if error.wait is not None else wait * random.uniform(0.5, 1)
                if stop.is_set():
                    raise ConnectionAbortedError(f"{self._address}: the request was cancelled") from error
                if now + pause > deadline:
                    raise ConnectionError(f"{error}; gave up after {self._patience:g} seconds") from error
                self._warn(error)
                stop.wait(pause)
                wait = min(2 * wait, LONGEST_WAIT)
        if deadline is not None:
            with self._lock:
                self._has_warned = False  # the next outage is another one
        return self._outputs(answer, count)

    def cancel(self) -> None:
        """Make all runs that are in progress fail, so that their threads end at once. Later runs are not affected."""
        self._stop.set()
        self._stop = threading.Event()
        self._server.cancel()

    def _warn(self, error: ServerUnavailableError) -> None:
        with self._lock:
            if self._has_warned:
                return
            self._has_warned = True
        logger.warning(f"{error}; repeating the request for up to {self._patience:g} seconds")

    def _check_unchanged(self) -> None:
        """Raise ValueError if the server has another model than before, which would mix two in one result."""
        if self._server.describe() != self._served:
            raise ValueError(f"{self._address}: the server came back with a different model; start the run again")

    def _outputs(self, answer: Answer, count: int) -> TileOutputs:
        with self._lock:
            self._version = self._version or answer.version
            if answer.version != self._version:
                raise ValueError(
                    f"{self._address}: the server changed to version {answer.version} of the model during the run; "
                    f"name one in the address, as in {self._address.path}/versions/{self._version}"
                )
        arrays = {}
        for name, size in self._shapes.items():
            array, shape = answer.outputs.get(name), (count, *size)
            if array is None or array.dtype != OUTPUT_TYPES[name] or array.size != np.prod(shape):
                found = "nothing" if array is None else f"{array.dtype} {array.shape}"
                expected = f"{name} {np.dtype(OUTPUT_TYPES[name])} {shape}"
                raise ValueError(f"{self._address}: expected {expected}, the server returned {found}")
            arrays[name] = array.reshape(shape)  # (N, 1) of Triton is (N,) here
        return TileOutputs(**arrays)


def _server(address: Address) -> ModelServer:
    if not address.scheme.startswith("grpc"):
        return HttpModelServer(address)
    from tinydet.runtime.backends.kserve_grpc import GrpcModelServer

    return GrpcModelServer(address)


def _check_same(address: Address, stored: ModelSpec, sha256: str | None, model: Path, given: ModelSpec) -> None:
    """Check that a server has the model of a file, or an engine of it.

    Raises:
        ValueError: it has another one. Names what differs.
    """
    there, here = _comparable(stored), _comparable(given)
    differing = [key for key in here if here[key] != there[key]]
    why = "; ".join(f"{key}: {_short(there[key])} there, {_short(here[key])} here" for key in differing[:2])
    if not differing and sha256 is not None:
        own = hash_file(model)
        if {own, given.onnx_sha256} & {sha256, stored.onnx_sha256} - {None}:
            return
        why = f"equal descriptions, but file hash {sha256[:12]} there, {own[:12]} here"
    if why:
        raise ValueError(
            f"{address}: the server's model is not {model} ({why}); serve this file, or leave out --model to use the "
            "server's"
        )


def _comparable(spec: ModelSpec) -> dict[str, Any]:
    return {key: value for key, value in dataclasses.asdict(spec).items() if key not in FREE_FIELDS}


def _short(value: Any) -> str:
    named = isinstance(value, tuple) and all(isinstance(each, str) for each in value)
    text = ", ".join(value) if named else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _check(address: Address, served: ServedModel, spec: ModelSpec, tile: TileChoice) -> ModelSpec:
    """Return the description of a served model for the tile that it is opened for.

    Raises:
        ValueError: its inputs or outputs differ from the description, or it does not take this tile.
    """
    shapes = {INPUT: (-1, -1, -1, 3), **{name: (-1, *shape) for name, shape in output_shapes(spec).items()}}
    dtypes: dict[str, type[Any]] = {INPUT: np.uint8, **OUTPUT_TYPES}
    types = {name: DATATYPES[dtype] for name, dtype in dtypes.items()}
    found = {**served.inputs, **served.outputs}
    for name, shape in shapes.items():
        expected = f"{name} {types[name]} {list(shape)}"
        tensor = found.pop(name, None)
        if tensor is None or tensor.datatype != types[name] or not _fits(tensor.shape, shape):
            shown = "lacks it" if tensor is None else f"has {tensor.datatype} {list(tensor.shape)}"
            raise ValueError(f"{address}: expected {expected}, the server's model {shown}; is it a model of tinydet?")
    if found:
        raise ValueError(f"{address}: the server's model also has {', '.join(found)}; is it a model of tinydet?")
    spec = dataclasses.replace(spec, max_batch=min(spec.max_batch, served.max_batch or spec.max_batch))
    height, width = served.inputs[INPUT].shape[1:3]
    chosen = tile(spec) if callable(tile) else tile
    if height < 0 or width < 0:
        try:
            return spec_for_tile(spec, chosen, Path(str(address)))
        except ValueError as error:
            raise ValueError(str(error).replace(str(Path(str(address))), str(address))) from error
    if height != width or chosen not in (None, height):
        export = tinydet_command(
            "export", "triton", "model.onnx", "--repository", "models/", "--tile", str(chosen or spec.tile)
        )
        raise ValueError(
            f"{address}: the server's model takes tiles of {width}x{height} pixels, not {chosen or spec.tile}; leave "
            f"out --tile, or export the model for this tile: {export}"
        )
    engine = {**spec.engine, "tiles": [height]} if spec.engine else {}
    return dataclasses.replace(spec, tile=height, tile_multiple=0, engine=engine)


def _fits(shape: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Return whether shapes agree where both are known. A trailing axis of 1 counts as none.

    >>> _fits((-1, 1), (-1,)), _fits((-1, 1000, 4), (-1, 300, 4))
    (True, False)
    """
    if len(shape) == len(expected) + 1 and shape[-1] == 1:
        shape = shape[:-1]
    pairs = list(zip(shape, expected, strict=False))
    return len(shape) == len(expected) and all(a == b or a < 0 or b < 0 for a, b in pairs)
