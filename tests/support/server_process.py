"""A `tinydet serve` in a process of its own."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


class Server:
    """A running service; a context manager that ends it.

    Attributes:
        port: on 127.0.0.1.
    """

    def __init__(self, folder: Path, *arguments: str, port: int | None = None, seconds: float = 120) -> None:
        if port is None:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
        self.port = port
        command = [sys.executable, "-m", "tinydet", "serve", "--port", str(port), "--threads", "1", *arguments]
        self.log = (folder / f"server-{port}.log").open("a")
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(command, cwd=folder, env=environment, stdout=self.log, stderr=self.log)
        end = time.monotonic() + seconds
        while True:
            try:
                assert self.call("GET", "/healthz")[0] == 200
                return
            except OSError:
                ended = self._process.poll() is not None
                if ended or time.monotonic() > end:
                    self.end()
                    raise AssertionError(Path(self.log.name).read_text()) from None
                time.sleep(0.05)

    @property
    def pid(self) -> int:
        return self._process.pid

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, bytes]:
        """Send a request; a dict is sent as JSON. Return status and body."""
        if isinstance(body, dict):
            body, headers = json.dumps(body).encode(), {"Content-Type": "application/json", **headers}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def json(self, method: str, path: str, body: Any = None) -> Any:
        """Send a request that succeeds; return its JSON."""
        status, content = self.call(method, path, body)
        assert status < 300, content
        return json.loads(content)

    def finished(self, job: str, seconds: float = 600) -> dict[str, Any]:
        """Wait for the end of a job; return its state."""
        end = time.monotonic() + seconds
        while True:
            state: dict[str, Any] = self.json("GET", f"/jobs/{job}")
            if state["status"] not in ("accepted", "running"):
                return state
            assert time.monotonic() < end, state
            time.sleep(0.1)

    def kill(self) -> None:
        """End the process as a power failure would."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self.log.close()

    def end(self) -> int:
        """End the process as `docker stop` would; return its exit code."""
        if self._process.poll() is None:
            self._process.terminate()
        code = self._process.wait(30)
        self.log.close()
        return code

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
