"""A real Triton: the server inside the package nvidia-pytriton, with its Python backend, in an environment of its own.

The package has no other backend. So the backend of an exported repository is replaced by a model.py that runs the same
model.onnx in ONNX Runtime; the rest of the configuration is what the server reads.
"""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

PYTRITON = "nvidia-pytriton==0.7.0"  # Triton 2.51; its Python backend returns empty outputs with NumPy 2
MODEL = """
import json
from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as triton


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        options = onnxruntime.SessionOptions()
        threads = config["parameters"].get("intra_op_thread_count", {"string_value": "1"})["string_value"]
        options.intra_op_num_threads = int(threads)
        file = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self.session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self.names = [output["name"] for output in config["output"]]

    def execute(self, requests):
        tiles = [triton.get_input_tensor_by_name(request, "images").as_numpy() for request in requests]
        arrays = self.session.run(self.names, {"images": np.concatenate(tiles)})
        ends = np.cumsum([len(each) for each in tiles])[:-1]
        parts = zip(*(np.split(array, ends) for array in arrays))
        return [
            triton.InferenceResponse([triton.Tensor(name, part) for name, part in zip(self.names, each)])
            for each in parts
        ]
"""


def make_environment(folder: Path) -> Path:
    """Install Triton and the ONNX Runtime that is installed here; return the Python of the environment.

    Raises:
        subprocess.CalledProcessError: the packages cannot be installed.
    """
    builds = ("onnxruntime-gpu", "onnxruntime")
    version = next(d.version for d in metadata.distributions() if d.metadata["Name"] in builds)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--no-deps", PYTRITON], check=True)
    subprocess.run([*pip, f"onnxruntime=={version}", "numpy<2"], check=True)
    return python


def use_python_backend(model: Path) -> None:
    """Replace the backend of an exported model."""
    config = model / "config.pbtxt"
    lines = config.read_text().splitlines(keepends=True)
    kept = [line for line in lines if not line.startswith(("backend:", "platform:", "default_model_filename:"))]
    config.write_text('backend: "python"\n' + "".join(kept))
    (model / "1" / "model.py").write_text(MODEL)


@dataclass
class Triton:
    process: subprocess.Popen[bytes]
    http: int
    grpc: int
    log: Path

    def address(self, model: str, scheme: str = "http") -> str:
        port = self.grpc if scheme == "grpc" else self.http
        return f"{scheme}://127.0.0.1:{port}/v2/models/{model}"

    def get(self, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.http, timeout=10)
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()

    def kill(self) -> None:
        """End the server and its stubs at once."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def start(python: Path, repository: Path, work: Path, ports: tuple[int, int] | None = None) -> Triton:
    """Start a server and wait until all models are ready.

    Raises:
        RuntimeError: it ends, or is not ready within two minutes; with its log.
    """
    site = next((python.parents[1] / "lib").glob("python*")) / "site-packages"
    server = site / "pytriton" / "tritonserver"
    backends = work / "backends"
    if not backends.exists():
        shutil.copytree(server / "backends" / "python", backends / "python")
        stub = f"{sys.version_info.major}.{sys.version_info.minor}/triton_python_backend_stub"
        shutil.copy(server / "python_backend_stubs" / stub, backends / "python")
        (backends / "python" / "triton_python_backend_stub").chmod(0o755)
    ports = ports or (_free_port(), _free_port())
    log = work / "triton.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [
                str(server / "bin" / "tritonserver"),
                f"--model-repository={repository}",
                f"--backend-directory={backends}",
                "--http-address=127.0.0.1",
                f"--http-port={ports[0]}",
                "--grpc-address=127.0.0.1",
                f"--grpc-port={ports[1]}",
                "--allow-metrics=false",
                "--disable-auto-complete-config",
            ],
            env={
                **os.environ,
                "PATH": f"{python.parent}:{os.environ['PATH']}",
                "PYTHONPATH": str(site),
                "LD_LIBRARY_PATH": str(site / "nvidia_pytriton.libs"),  # of the stub, which is in another folder here
            },
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    triton = Triton(process, *ports, log)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError):
            if triton.get("/v2/health/ready")[0] == 200:
                return triton
        time.sleep(0.2)
    triton.kill()
    raise RuntimeError(log.read_text()[-5000:])


@contextmanager
def running(python: Path, repository: Path, work: Path) -> Iterator[Triton]:
    shared_memory = Path("/dev/shm")
    before = set(shared_memory.iterdir())
    try:
        triton = start(python, repository, work)
        try:
            yield triton
        finally:
            triton.kill()
    finally:
        for region in set(shared_memory.glob("triton_python_backend_shm_region_*")) - before:
            region.unlink(missing_ok=True)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
