"""The address of a model on a server that speaks KServe V2."""

from __future__ import annotations

import base64
import os
import re
from dataclasses import dataclass, field
from urllib.parse import quote, unquote, urlsplit

from tinydet._internal.names import public_location

PORTS = {"http": 80, "https": 443, "grpc": 8001, "grpcs": 8001}  # by scheme
FORM = "http://HOST:8000/v2/models/NAME (or https, grpc, grpcs)"
TOKEN = "TINYDET_TOKEN"  # environment variable


@dataclass(frozen=True)
class Address:
    """The address of a model on a server.

    Attributes:
        prefix: path in front of `/v2`; empty at most servers.
        version: of the model; empty for the one that the server chooses.
        authorization: HTTP header from the user and password of the address, or from TINYDET_TOKEN; empty for none.
    """

    scheme: str
    host: str
    port: int
    model: str
    prefix: str = ""
    version: str = ""
    authorization: str = field(default="", repr=False)

    @property
    def path(self) -> str:
        """Path of the model."""
        version = f"/versions/{quote(self.version, safe='')}" if self.version else ""
        return f"{self.prefix}/v2/models/{quote(self.model, safe='')}{version}"

    @property
    def authority(self) -> str:
        """Host and port."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.path}"


def is_address(text: str) -> bool:
    """Return whether a text is meant as an address.

    >>> is_address("http://gpu:8000/v2/models/tinydet"), is_address("onnx-cpu")
    (True, False)
    """
    return "://" in text


def parse_address(text: str) -> Address:
    """Parse the address of a model on a server.

    >>> str(parse_address("http://gpu:8000/v2/models/tinydet/"))
    'http://gpu:8000/v2/models/tinydet'

    Raises:
        ValueError: it is none. Names the form.
    """
    shown = public_location(text)
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{shown}: not an address ({error}); expected {FORM}") from error
    path = re.fullmatch(r"(.*?)/v2/models/([^/]+)(?:/versions/([^/]+))?(?:/infer|/ready|/)?", parts.path)
    if parts.scheme not in PORTS or not parts.hostname:
        raise ValueError(f"{shown}: not the address of a model server; expected {FORM}")
    if path is None or parts.query or parts.fragment:
        raise ValueError(f"{shown}: the address does not end in /v2/models/NAME; expected {FORM}")
    if path[1] and parts.scheme.startswith("grpc"):
        raise ValueError(f"{shown}: a gRPC address has no path before /v2; expected {FORM}")
    authorization = f"Bearer {os.environ[TOKEN]}" if os.environ.get(TOKEN) else ""
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        authorization = f"Basic {base64.b64encode(pair.encode()).decode()}"
    return Address(
        parts.scheme,
        parts.hostname,
        PORTS[parts.scheme] if port is None else port,
        unquote(path[2]),
        path[1],
        unquote(path[3] or ""),
        authorization,
    )
