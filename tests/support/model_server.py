"""A small KServe V2 server, written from the protocol's description, around an ONNX file in ONNX Runtime."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

DATATYPES = {"tensor(uint8)": "UINT8", "tensor(int32)": "INT32", "tensor(float)": "FP32"}


class ModelServer(ThreadingHTTPServer):
    """Serves one model under the name `cells`.

    Attributes:
        parameters: what `/config` says beside the largest batch; None: there is no `/config`, as on plain V2 servers.
        faults: what happens to the next requests for inference: "drop" closes the connection, a number is the status.
        token: that requests must carry; empty for none.
        is_ready: what `/ready` says.
        in_json: answer with JSON numbers in place of binary tensors.
        columns: give `candidates` the shape (N, 1), as Triton does.
        delay: seconds that a request takes in addition, until `released`.
        together: ends all delays as soon as this many requests are in progress at a time; 0: never.
        batches, most: number of tiles of each request; the most requests that were in progress at a time.
    """

    daemon_threads = True

    def __init__(self, model: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock, self.released, self.active = threading.Lock(), threading.Event(), 0
        self.load(model)

    def load(self, model: Path) -> None:
        """Serve this model from now on, with everything else as at the start."""
        self.released.set()
        while self.active:  # requests that the last test did not wait for; they would be counted twice
            time.sleep(0.01)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        text = self.session.get_modelmeta().custom_metadata_map["tinydet"]
        self.parameters: dict[str, Any] | None = {"tinydet": {"string_value": text}}
        self.faults: deque[str | int] = deque()
        self.token, self.is_ready, self.in_json, self.columns, self.delay = "", True, False, False, 0.0
        self.version = "1"
        self.batches: list[int] = []
        self.active = self.most = self.together = 0
        self.released = threading.Event()  # ends all delays

    def handle_error(self, *_: Any) -> None:
        """Say nothing of clients that have gone."""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v2/models/cells"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ModelServer

    def do_GET(self) -> None:
        server, route = self.server, self.path.removeprefix("/v2/models/cells")
        if server.token and self.headers["Authorization"] != f"Bearer {server.token}":
            self.answer(401, {"error": "a token is required"})
        elif route == "/ready":
            self.answer(200 if server.is_ready else 400, {})
        elif route == "":
            described = {"name": "cells", "versions": ["1"], "platform": "onnxruntime_onnx"}
            for kind, nodes in (("inputs", server.session.get_inputs()), ("outputs", server.session.get_outputs())):
                described[kind] = [
                    {
                        "name": node.name,
                        "datatype": DATATYPES[node.type],
                        "shape": [size if isinstance(size, int) else -1 for size in node.shape],
                    }
                    for node in nodes
                ]
            self.answer(200, described)
        elif route == "/config" and server.parameters is not None:
            self.answer(200, {"name": "cells", "max_batch_size": 3, "parameters": server.parameters})
        else:
            self.answer(404, {"error": f"no {self.path} here"})

    def do_POST(self) -> None:
        server = self.server
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with server.lock:
            fault = server.faults.popleft() if server.faults else None
            server.active += 1
            server.most = max(server.most, server.active)
            if server.active == server.together:
                server.released.set()
        try:
            server.released.wait(server.delay)
            if fault == "drop":
                self.close_connection = True
            elif fault is not None:
                self.answer(int(fault), {"error": "busy" if fault == 503 else "bad request"})
            else:
                self.infer(body)
        finally:
            with server.lock:
                server.active -= 1

    def infer(self, body: bytes) -> None:
        server, length = self.server, int(self.headers["Inference-Header-Content-Length"])
        request = json.loads(body[:length])
        (tensor,) = request["inputs"]
        assert tensor["parameters"]["binary_data_size"] == len(body) - length
        images = np.frombuffer(body, np.uint8, offset=length).reshape(tensor["shape"])
        server.batches.append(len(images))
        names = [each["name"] for each in request["outputs"]]
        arrays = dict(zip(names, server.session.run(names, {tensor["name"]: images}), strict=True))
        if server.columns:
            arrays["candidates"] = arrays["candidates"][:, None]
        outputs, tail = [], b""
        for name, array in arrays.items():
            kind = {"int32": "INT32", "float32": "FP32"}[array.dtype.name]
            entry = {"name": name, "datatype": kind, "shape": list(array.shape)}
            if server.in_json:
                outputs.append({**entry, "data": array.ravel().tolist()})
            else:
                outputs.append({**entry, "parameters": {"binary_data_size": array.nbytes}})
                tail += array.tobytes()
        head = {"model_name": "cells", "model_version": server.version, "outputs": outputs}
        self.answer(200, head, None if server.in_json else tail)

    def answer(self, status: int, value: Any, tail: bytes | None = None) -> None:
        head = json.dumps(value).encode()
        self.send_response(status)
        if tail is not None:
            self.send_header("Inference-Header-Content-Length", str(len(head)))
        self.send_header("Content-Length", str(len(head) + len(tail or b"")))
        self.end_headers()
        self.wfile.write(head + (tail or b""))

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def served(model: Path) -> Iterator[ModelServer]:
    with ModelServer(model) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
