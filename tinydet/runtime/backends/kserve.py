"""The client side of KServe V2 (the Open Inference Protocol) over HTTP, with its binary tensor extension.

https://github.com/kserve/open-inference-protocol, and docs/protocol/extension_binary_data.md of Triton's server. Only
the standard library is needed. `kserve_grpc` speaks the same protocol over gRPC.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tinydet._internal.errors import reason
from tinydet.runtime.backends.server_address import FORM, TOKEN, Address
from tinydet.spec import METADATA_KEY

SHA256_KEY = f"{METADATA_KEY}_sha256"  # parameter of a served model: the hash of its file
CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 300.0  # between two parts of an answer
LARGEST_TEXT = 1 << 22  # bytes of a description, or of the JSON in front of tensors
UNAVAILABLE = (429, 502, 503, 504)  # HTTP statuses after which the same request may succeed
DTYPES: dict[str, type[Any]] = {"UINT8": np.uint8, "INT32": np.int32, "FP32": np.float32}
DATATYPES = {dtype: name for name, dtype in DTYPES.items()}


class ServerUnavailableError(ConnectionError):
    """The server cannot be reached, or cannot take the request now; the same request may succeed later.

    Attributes:
        wait: seconds after which the server wants to be asked again; None if it does not say.
    """

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


@dataclass(frozen=True)
class Tensor:
    """An input or output of a served model; -1 is a free axis. The first axis is the batch."""

    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ServedModel:
    """How a server describes a model.

    Attributes:
        max_batch: largest batch of a request; None if the server does not limit it, or does not say so.
        parameters: texts that were stored with the model.
    """

    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    max_batch: int | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """The outputs of a request.

    Attributes:
        version: of the model that ran; empty if the server does not say.
    """

    outputs: Mapping[str, NDArray[Any]]
    version: str = ""


class ModelServer(Protocol):
    """A model on a server. `infer` may be called from several threads."""

    def describe(self) -> ServedModel:
        """Return what the server says about the model.

        Raises:
            ServerUnavailableError: the server cannot be reached, or the model is not ready.
            OSError: it refuses the request, or has no such model.
            ValueError: it does not speak the protocol.
        """
        ...

    def infer(self, name: str, images: NDArray[np.uint8], outputs: Sequence[str], most: int) -> Answer:
        """Run the model.

        Args:
            name: of the input.
            outputs: names of the outputs to return.
            most: bytes that they take at most.

        Raises:
            ServerUnavailableError, OSError, ValueError: as `describe`.
        """
        ...

    def cancel(self) -> None:
        """Make all requests that are in progress fail."""
        ...


class HttpModelServer:
    """A model on a server that speaks KServe V2 over HTTP. Connections are kept open and reused."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._context = ssl.create_default_context() if address.scheme == "https" else None
        self._lock = threading.Lock()
        self._idle: list[http.client.HTTPConnection] = []
        self._active: set[http.client.HTTPConnection] = set()
        self._cancels = 0

    def describe(self) -> ServedModel:
        ready, told = self._request("GET", "/ready")
        status, body = self._request("GET", "")
        if status != 200:
            raise self._error(status, body, "does not describe this model")
        if ready not in (200, 404, 405):  # servers that lack this route are ready when they describe the model
            raise ServerUnavailableError(
                f"{self._address}: the model is not ready ({_told(told, ready)}); try again when it is loaded"
            )
        return served_model(self._json(body), self._config(), str(self._address))

    def _config(self) -> Any:
        """Return the configuration of the model, which Triton and `tinydet serve` publish; None from other servers."""
        status, body = self._request("GET", "/config")
        return self._json(body) if status == 200 else None

    def infer(self, name: str, images: NDArray[np.uint8], outputs: Sequence[str], most: int) -> Answer:
        images = np.ascontiguousarray(images)
        tensor = {"name": name, "shape": list(images.shape), "datatype": "UINT8"}
        wanted = [{"name": output, "parameters": {"binary_data": True}} for output in outputs]
        content = {"inputs": [{**tensor, "parameters": {"binary_data_size": images.nbytes}}], "outputs": wanted}
        status, body, length = self._exchange(
            "POST", "/infer", json.dumps(content).encode(), images.data.cast("B"), limit=LARGEST_TEXT + 8 * most
        )
        if status != 200:
            raise self._error(status, body, "refuses the request")
        return self._answer(body, length)

    def cancel(self) -> None:
        with self._lock:
            self._cancels += 1
            for connection in self._active:
                if connection.sock is not None:
                    with contextlib.suppress(OSError):
                        connection.sock.shutdown(socket.SHUT_RDWR)

    def _request(self, method: str, route: str) -> tuple[int, bytes]:
        status, body, _ = self._exchange(method, route, limit=LARGEST_TEXT)
        return status, body

    def _exchange(
        self, method: str, route: str, head: bytes = b"", tensors: memoryview | None = None, *, limit: int
    ) -> tuple[int, bytes, int | None]:
        """Send a request; return status, body, and the length of the JSON in front of binary tensors."""
        while True:
            with self._lock:
                connection = self._idle.pop() if self._idle else self._connection()
                self._active.add(connection)
                cancels = self._cancels
            reused, keep = connection.sock is not None, True
            try:
                return self._send(connection, method, route, head, tensors, limit)
            except ServerUnavailableError:
                raise
            except (OSError, http.client.HTTPException) as error:
                keep = False
                # The server may have closed a connection while it was idle.
                if not reused or isinstance(error, TimeoutError) or cancels != self._cancels:
                    raise self._failed(error, connected=connection.sock is not None) from error
            except BaseException:
                keep = False
                raise
            finally:
                if not keep:
                    connection.close()
                with self._lock:
                    self._active.discard(connection)
                    if keep:
                        self._idle.append(connection)

    def _connection(self) -> http.client.HTTPConnection:
        host, port = self._address.host, self._address.port
        if self._context is not None:
            return http.client.HTTPSConnection(host, port, timeout=CONNECT_SECONDS, context=self._context)
        return http.client.HTTPConnection(host, port, timeout=CONNECT_SECONDS)

    def _send(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        route: str,
        head: bytes,
        tensors: memoryview | None,
        limit: int,
    ) -> tuple[int, bytes, int | None]:
        if connection.sock is None:
            _connect(connection)
        connection.putrequest(method, self._address.path + route)
        if self._address.authorization:
            connection.putheader("Authorization", self._address.authorization)
        if head:
            connection.putheader("Content-Type", "application/octet-stream")
            connection.putheader("Inference-Header-Content-Length", str(len(head)))
            connection.putheader("Content-Length", str(len(head) + len(tensors or b"")))
        connection.endheaders(head or None)
        if tensors is not None:
            connection.send(tensors)
        response = connection.getresponse()
        body = response.read(limit + 1)
        if len(body) > limit:
            raise ValueError(f"{self._address}: the server's answer has more than {limit} bytes; is it this model?")
        if response.status in UNAVAILABLE:
            raise ServerUnavailableError(
                f"{self._address}: the server cannot take the request now ({_told(body, response.status)})",
                _seconds(response.headers.get("Retry-After")),
            )
        length = response.headers.get("Inference-Header-Content-Length")
        return response.status, body, int(length) if length and length.isdecimal() else None

    def _failed(self, error: Exception, *, connected: bool) -> OSError:
        why = (error.strerror if isinstance(error, OSError) else "") or reason(error)
        if isinstance(error, ssl.SSLError):
            return OSError(f"{self._address}: no secure connection ({reason(error)}); check the certificate")
        if isinstance(error, TimeoutError) and connected:
            return OSError(f"{self._address}: no answer within {ANSWER_SECONDS:g} seconds; use a smaller --batch")
        return ServerUnavailableError(f"{self._address}: the server cannot be reached ({why})")

    def _error(self, status: int, body: bytes, what: str) -> OSError:
        told = _told(body, status)
        if status in (401, 403):
            return OSError(f"{self._address}: the server refuses access ({told}); set {TOKEN} to its token")
        if 300 <= status < 400:
            return OSError(f"{self._address}: the server redirects the request ({told}); name the final address")
        return OSError(f"{self._address}: the server {what} ({told})")

    def _json(self, body: bytes) -> Any:
        try:
            return json.loads(body)
        except ValueError as error:
            raise ValueError(f"{self._address}: the server does not speak KServe V2; expected {FORM}") from error

    def _answer(self, body: bytes, length: int | None) -> Answer:
        """Cut the body of an answer into its tensors."""
        head = self._json(body[:length] if length is not None else body)
        position, outputs = length or len(body), {}
        try:
            for output in head["outputs"]:
                dtype = np.dtype(DTYPES[output["datatype"]]).newbyteorder("<")
                size = output.get("parameters", {}).get("binary_data_size")
                if size is None:
                    array = np.array(output["data"], dtype)
                else:
                    array = np.frombuffer(body[position : position + size], dtype)
                    position += size
                outputs[str(output["name"])] = array.reshape(output["shape"])
            return Answer(outputs, str(head.get("model_version") or ""))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{self._address}: the server's answer has malformed tensors ({reason(error)})") from error


def _connect(connection: http.client.HTTPConnection) -> None:
    connection.connect()
    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sock.settimeout(ANSWER_SECONDS)


def served_model(metadata: Any, config: Any, name: str) -> ServedModel:
    """Return what the JSON of a server says about a model.

    Args:
        config: Triton's configuration of the model; None if the server has none.
        name: of the model, for messages.

    Raises:
        ValueError: the JSON is malformed.
    """
    try:
        inputs, outputs = (
            {str(each["name"]): _tensor(each) for each in metadata[kind]} for kind in ("inputs", "outputs")
        )
        config = config or {}
        stored = {**(metadata.get("parameters") or {}), **(config.get("parameters") or {})}
        texts = {
            str(key): value.get("string_value") if isinstance(value, dict) else value for key, value in stored.items()
        }
        return ServedModel(
            inputs,
            outputs,
            int(config.get("max_batch_size") or 0) or None,
            {key: text for key, text in texts.items() if isinstance(text, str)},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{name}: the server's description of the model is malformed ({reason(error)})") from error


def _tensor(entry: Mapping[str, Any]) -> Tensor:
    return Tensor(str(entry["datatype"]).removeprefix("TYPE_"), tuple(int(size) for size in entry["shape"]))


def _told(body: bytes, status: int) -> str:
    """Return the reason that a server gives, or else the status."""
    try:
        said = json.loads(body)
        text = said["error"] if "error" in said else said["detail"]
        return reason(ValueError(text)) if isinstance(text, str) and text.strip() else f"status {status}"
    except (ValueError, TypeError, KeyError):
        return f"status {status}"


def _seconds(header: str | None) -> float | None:
    return float(header) if header and header.strip().isdecimal() else None
