"""The Open Inference Protocol (KServe V2) over HTTP: requests of tiles and answers, as JSON and raw tensors.

Source: https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol, with Triton's extension for
binary tensors: the header `Inference-Header-Content-Length` states the bytes of the JSON, raw little-endian tensors
follow it in the order of the JSON.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinydet._internal.arguments import quoted
from tinydet._internal.json_files import parse_json
from tinydet.runtime.backends import OUTPUT_TYPES, TileOutputs, output_shapes
from tinydet.runtime.backends.contract import INPUT
from tinydet.serve.errors import ServiceError
from tinydet.spec import ModelSpec

NAME, VERSION = "tinydet", "1"  # of the model
HEADER = "Inference-Header-Content-Length"
DATATYPES = {np.dtype(np.float32): "FP32", np.dtype(np.int32): "INT32", np.dtype(np.uint8): "UINT8"}


class TileRequest(NamedTuple):
    """A request to run the model.

    Attributes:
        images: (N, T, T, 3) uint8 RGB.
        outputs: names of the tensors to return, with whether each is raw.
        id: of the client; empty for none.
    """

    images: NDArray[np.uint8]
    outputs: dict[str, bool]
    id: str


def metadata(spec: ModelSpec, platform: str) -> dict[str, Any]:
    """Return names, types and shapes of the tensors; -1 is the number of tiles."""
    outputs = [
        {"name": name, "datatype": DATATYPES[np.dtype(OUTPUT_TYPES[name])], "shape": [-1, *shape]}
        for name, shape in output_shapes(spec).items()
    ]
    images = {"name": INPUT, "datatype": "UINT8", "shape": [-1, spec.tile, spec.tile, 3]}
    return {"name": NAME, "versions": [VERSION], "platform": platform, "inputs": [images], "outputs": outputs}


def configuration(spec: ModelSpec, platform: str, sha256: str) -> dict[str, Any]:
    """Return the configuration in the form of Triton's extension, with what a client must know as parameters.

    Args:
        sha256: of the model file.
    """
    described = metadata(spec, platform)
    tensors = {
        key: [
            {"name": each["name"], "data_type": f"TYPE_{each['datatype']}", "dims": each["shape"][1:]}
            for each in described[f"{key}s"]
        ]
        for key in ("input", "output")
    }
    parameters = {"tinydet": {"string_value": spec.to_json()}, "tinydet_sha256": {"string_value": sha256}}
    return {"name": NAME, "platform": platform, "max_batch_size": spec.max_batch, **tensors, "parameters": parameters}


def parse_request(body: bytes, header_length: str | None, spec: ModelSpec) -> TileRequest:
    """Return the tiles and the wanted outputs of a request.

    Args:
        header_length: value of the header `Inference-Header-Content-Length`; None for a request in JSON alone.

    Raises:
        ServiceError: 400 for a request that does not follow the protocol, or does not fit the model.
    """
    if header_length is not None and not (
        re.fullmatch("[0-9]{1,18}", header_length) and int(header_length) <= len(body)
    ):
        raise ServiceError(400, f"{HEADER}: expected the bytes of the JSON, at most {len(body)}")
    split = len(body) if header_length is None else int(header_length)
    try:
        request = parse_json(body[:split], source="the request", remedy="see the Open Inference Protocol")
    except ValueError as error:
        raise ServiceError(400, str(error)) from error
    inputs = request.get("inputs") if isinstance(request, dict) else None
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise ServiceError(400, f"inputs: expected one tensor, {INPUT}")
    images = _tensor(inputs[0], body[split:], spec)
    parameters = request.get("parameters")
    default = isinstance(parameters, dict) and parameters.get("binary_data_output") is True
    request_id = request.get("id", "")
    return TileRequest(images, _wanted(request.get("outputs"), spec, default), str(request_id) if request_id else "")


def build_answer(request: TileRequest, outputs: TileOutputs) -> tuple[bytes, int | None]:
    """Return the body of an answer, and the bytes of its JSON if raw tensors follow."""
    tensors, raw = [], []
    for name, is_raw in request.outputs.items():
        array = np.ascontiguousarray(getattr(outputs, name))
        tensor: dict[str, Any] = {"name": name, "datatype": DATATYPES[array.dtype], "shape": list(array.shape)}
        if is_raw:
            data = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
            tensor["parameters"] = {"binary_data_size": len(data)}
            raw.append(data)
        else:
            tensor["data"] = array.ravel().tolist()
        tensors.append(tensor)
    answer: dict[str, Any] = {"model_name": NAME, "model_version": VERSION, "outputs": tensors}
    if request.id:
        answer["id"] = request.id
    text = json.dumps(answer).encode()
    return b"".join([text, *raw]), len(text) if raw else None


def _tensor(tensor: dict[str, Any], raw: bytes, spec: ModelSpec) -> NDArray[np.uint8]:
    name, kind, shape = (tensor.get(key) for key in ("name", "datatype", "shape"))
    if name != INPUT or kind != "UINT8":
        raise ServiceError(400, f"inputs: expected {INPUT} of type UINT8, got {quoted(name)} of type {quoted(kind)}")
    tile = spec.tile
    if not isinstance(shape, list) or not all(type(each) is int for each in shape):
        shape = []
    if len(shape) != 4 or shape[1:] != [tile, tile, 3] or not 1 <= shape[0] <= spec.max_batch:
        raise ServiceError(
            400,
            f"{INPUT}: expected shape [N, {tile}, {tile}, 3] with N from 1 to {spec.max_batch}, got {quoted(shape)}",
        )
    count = shape[0] * tile * tile * 3
    parameters = tensor.get("parameters")
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    if size is not None:
        if size != len(raw) or size != count:
            raise ServiceError(400, f"{INPUT}: expected {count} bytes after the JSON, got {len(raw)}")
        return np.frombuffer(bytearray(raw), np.uint8).reshape(shape)  # writable, which OpenVINO requires
    try:
        values = np.asarray(tensor.get("data"))
    except ValueError:  # lists of different lengths
        values = np.zeros(0)
    if values.size != count or values.dtype.kind not in "iu" or values.min() < 0 or values.max() > 255:
        raise ServiceError(400, f"{INPUT}: expected {count} integers from 0 to 255 as data")
    return values.astype(np.uint8).reshape(shape)


def _wanted(outputs: Any, spec: ModelSpec, default: bool) -> dict[str, bool]:
    known = output_shapes(spec)
    if outputs is None:
        return dict.fromkeys(known, default)
    wanted: dict[str, bool] = {}
    for each in outputs if isinstance(outputs, list) else [outputs]:
        name = each.get("name") if isinstance(each, dict) else None
        if not isinstance(name, str) or name not in known:
            raise ServiceError(400, f"outputs: expected some of {', '.join(known)}, got {quoted(name)}")
        parameters = each.get("parameters")
        raw = parameters.get("binary_data", default) if isinstance(parameters, dict) else default
        wanted[name] = raw is True
    return wanted
