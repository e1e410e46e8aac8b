"""An S3 server on this machine (moto), which counts what it sends and can be told to fail."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

ACCESS, SECRET = "AKIATINYDETTEST", "wJalrXUtnFEMIK7MDENGbPxRfiCYzEXAMPLEKEY"
Answer = Callable[[str, str], "tuple[str, str] | None"]


class CountedServer:
    """Attributes:
    requests: method, path and number of bytes sent, of each request.
    fail: returns status and error code for a method and a path; None to serve it.
    """

    def __init__(self, app: Any) -> None:
        self._app, self.requests = app, list[tuple[str, str, int]]()
        self.fail: Answer | None = None

    def __call__(self, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        if self.fail is not None and (failure := self.fail(method, path)) is not None:
            body = f"<?xml version='1.0'?><Error><Code>{failure[1]}</Code><Message>no</Message></Error>".encode()
            start(failure[0], [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
            return [] if method == "HEAD" else [body]
        sent = b"".join(self._app(environ, start))
        self.requests.append((method, path, 0 if method == "HEAD" else len(sent)))
        return [sent]

    def sent(self, path: str) -> int:
        return sum(count for _, each, count in self.requests if each == path)


@contextmanager
def s3_server() -> Iterator[CountedServer]:
    """Serve an empty bucket `survey`; the environment has its address and credentials."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log(self, *_: object) -> None:
            pass

    app = CountedServer(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    chosen = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
        "AWS_ACCESS_KEY_ID": ACCESS,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
        "GDAL_HTTP_MAX_RETRY": "1",
        "GDAL_HTTP_RETRY_DELAY": "0.05",
    }
    before = {name: os.environ.get(name) for name in chosen}
    os.environ.update(chosen)
    try:
        from tinydet._internal.stores import filesystem

        filesystem("s3").mkdir("survey")
        yield app
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
        server.shutdown()
        thread.join()
