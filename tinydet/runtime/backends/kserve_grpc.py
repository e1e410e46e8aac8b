"""The client side of KServe V2 over gRPC, by Triton's own client package."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinydet._internal.errors import reason
from tinydet._internal.extras import needs_extra
from tinydet.runtime.backends.kserve import (
    ANSWER_SECONDS,
    CONNECT_SECONDS,
    Answer,
    ServedModel,
    ServerUnavailableError,
    served_model,
)
from tinydet.runtime.backends.server_address import TOKEN, Address

UNAVAILABLE = ("UNAVAILABLE", "RESOURCE_EXHAUSTED", "ABORTED")  # codes after which the same request may succeed


class GrpcModelServer:
    """A model on a server that speaks KServe V2 over gRPC."""

    def __init__(self, address: Address) -> None:
        """
        Raises:
            ModuleNotFoundError: `tritonclient` is not installed.
        """
        with needs_extra("triton"):
            import tritonclient.grpc as client
        self._address, self._client = address, client
        self._headers = {"authorization": address.authorization} if address.authorization else {}
        self._model = {"model_name": address.model, "model_version": address.version, "headers": self._headers}
        self._channel = self._open()

    def describe(self) -> ServedModel:
        with self._errors():
            if not self._channel.is_model_ready(**self._model, client_timeout=CONNECT_SECONDS):
                self._channel.get_model_metadata(**self._model, client_timeout=CONNECT_SECONDS)  # says why
                raise ServerUnavailableError(f"{self._address}: the model is not ready; try again when it is loaded")
            metadata = self._channel.get_model_metadata(**self._model, as_json=True, client_timeout=CONNECT_SECONDS)
        return served_model(metadata, self._config(), str(self._address))

    def _config(self) -> Any:
        """Return the configuration of the model, which is an extension of Triton's; None from other servers."""
        with contextlib.suppress(self._client.InferenceServerException):
            answer = self._channel.get_model_config(**self._model, as_json=True, client_timeout=CONNECT_SECONDS)
            return answer.get("config")
        return None

    def infer(self, name: str, images: NDArray[np.uint8], outputs: Sequence[str], most: int) -> Answer:
        tensor = self._client.InferInput(name, list(images.shape), "UINT8")
        tensor.set_data_from_numpy(np.ascontiguousarray(images))
        wanted = [self._client.InferRequestedOutput(output) for output in outputs]
        with self._errors():
            result = self._channel.infer(inputs=[tensor], outputs=wanted, **self._model, client_timeout=ANSWER_SECONDS)
        arrays = {output: result.as_numpy(output) for output in outputs}
        found = {output: array for output, array in arrays.items() if array is not None}
        return Answer(found, str(result.get_response().model_version))

    def cancel(self) -> None:
        channel, self._channel = self._channel, self._open()
        channel.close()

    def _open(self) -> Any:
        return self._client.InferenceServerClient(self._address.authority, ssl=self._address.scheme == "grpcs")

    @contextlib.contextmanager
    def _errors(self) -> Any:
        """Raise the errors of the client as those of `ModelServer`."""
        try:
            yield
        except self._client.InferenceServerException as error:
            code, text = str(error.status()).removeprefix("StatusCode."), reason(ValueError(error.message()))
            if code in UNAVAILABLE:
                raise ServerUnavailableError(f"{self._address}: the server cannot be reached ({text})") from error
            if code in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
                raise OSError(
                    f"{self._address}: the server refuses access ({text}); set {TOKEN} to its token"
                ) from error
            raise OSError(f"{self._address}: the server refuses the request ({text})") from error
        except ValueError as error:  # of a channel that `cancel` has closed
            raise ServerUnavailableError(f"{self._address}: the connection was closed ({reason(error)})") from error
