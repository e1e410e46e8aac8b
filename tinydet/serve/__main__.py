"""The command `tinydet serve`: detect objects over HTTP, in scenes of any size."""

from __future__ import annotations

import argparse
import logging
import os
import re
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from tinydet._internal.arguments import positive_int, quoted, side, threads, whole
from tinydet._internal.command import command
from tinydet._internal.extras import needs_extra
from tinydet._internal.input_files import check_file, read_file
from tinydet._internal.interrupt import terminated_like_interrupted
from tinydet._internal.outputs import check_folder
from tinydet._internal.parser import Parser
from tinydet._internal.suggestions import did_you_mean, did_you_mean_path
from tinydet.runtime.backends import BACKENDS, MODEL_FILES
from tinydet.runtime.bundled import BUNDLED, DEFAULT, model_path
from tinydet.runtime.scenes.raster_access import VARIABLE
from tinydet.serve.options import ServeOptions
from tinydet.serve.service import check_roots

EXAMPLES = (
    "",
    "--model model.onnx --root /data/flights",
    "--host 0.0.0.0 --port 8080 --token-file token.txt --folder /var/lib/tinydet",
)
EPILOG = """\
Open http://127.0.0.1:8000 in a browser for the viewer; docs/serving.md
describes the routes, and /openapi.json lists them. Jobs that were running
when the service ended continue when it is started again with the same
--folder and --model.
"""
LOCAL = ("127.0.0.1", "localhost", "::1")
TOKEN_VARIABLE = "TINYDET_TOKEN"
SHORTEST_TOKEN = 16  # characters
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}

logger = logging.getLogger("tinydet.serve")


@command("serve")
def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    options = _options(args)
    _check_model(args.model)
    with needs_extra("serve"):
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn
    # References of rasters to other files are admitted by --allow-vrt, for files below the roots only.
    os.environ.pop(VARIABLE, None)

    from tinydet.serve.app import create_app
    from tinydet.serve.model import open_served_model
    from tinydet.serve.service import Service

    with terminated_like_interrupted(), _bound(args.host, args.port) as bound:
        model = open_served_model(args.model, backend=args.backend, tile=args.tile, threads=args.threads)
        service = Service(model, options)
        hosts = LOCAL if args.host in LOCAL else ()
        config = uvicorn.Config(
            create_app(service, hosts=hosts), args.host, args.port, log_config=None, access_log=False, workers=1,
            timeout_graceful_shutdown=2, server_header=False, limit_concurrency=args.connections,
        )  # fmt: skip
        shown = f"[{args.host}]" if ":" in args.host else args.host
        if not (hosts or options.token):
            logger.warning("every machine that reaches this one may use the service; require a token: --token-file")
        logger.info(f"Serving on http://{shown}:{args.port} (Ctrl-C stops)")
        try:
            uvicorn.Server(config).run([bound])
        except KeyboardInterrupt:  # once it has stopped
            logger.info("Stopped")
    return 0


def _parser() -> Parser:
    parser = Parser(
        "serve",
        examples=EXAMPLES,
        description="Detect objects over HTTP: clients upload scenes or name files below --root, watch jobs, and"
        " download detections in every format of infer.",
        epilog=EPILOG,
    )
    add = parser.add_argument_group("model").add_argument
    add("--model", type=Path, metavar="FILE", help=f"serve this exported model, or a bundled one: {', '.join(BUNDLED)}"
        f" (default: {' or '.join(MODEL_FILES)} in the current folder, else {DEFAULT})")  # fmt: skip
    add("--backend", choices=BACKENDS, default="auto", help="run the model with this backend (default: auto, the"
        " fastest that works here)")  # fmt: skip
    add("--tile", type=side, metavar="PX", help="cut scenes into tiles of PX pixels, as `infer` does"
        " (default: the model's tile)")  # fmt: skip
    add("--threads", type=threads, metavar="N", help="run the model on N CPU threads (default: all that are usable)")
    add = parser.add_argument_group("scenes").add_argument
    add("--root", type=Path, action="append", metavar="DIR", help="let jobs name scenes below this folder by path; may"
        " be repeated (default: uploads only)")  # fmt: skip
    add("--folder", type=Path, default=Path("tinydet-serve"), metavar="DIR", help="keep uploads, jobs and results here"
        " (default: tinydet-serve)")  # fmt: skip
    add("--allow-vrt", action="store_true", help="open VRT files below --root that refer to rasters in their folder or"
        " below (default: refuse them)")  # fmt: skip
    add = parser.add_argument_group("limits").add_argument
    add("--queue", type=whole(1, 100_000), default=100, metavar="N", help="let N jobs wait; answer further ones with"
        " 429 (default: 100)")  # fmt: skip
    add("--keep-jobs", type=whole(1, 1_000_000), default=1000, metavar="N", help="keep the newest N finished jobs and"
        " delete older ones (default: 1000)")  # fmt: skip
    add("--max-upload", type=_bytes, default=_bytes("32G"), metavar="SIZE", help="refuse larger uploads, in bytes or"
        " with K, M, G or T (default: 32G)")  # fmt: skip
    add("--quota", type=_bytes, default=_bytes("128G"), metavar="SIZE", help="refuse uploads that make the total of all"
        " uploads larger (default: 128G)")  # fmt: skip
    add("--max-body", type=_bytes, default=_bytes("64M"), metavar="SIZE", help="refuse larger requests other than"
        " uploads (default: 64M)")  # fmt: skip
    add("--max-pixels", type=positive_int, default=1 << 36, metavar="N", help="refuse scenes of more pixels (default:"
        " 2^36)")  # fmt: skip
    add("--max-detect-pixels", type=positive_int, default=1 << 24, metavar="N", help="refuse images of more pixels in"
        " /detect; they need a job (default: 2^24)")  # fmt: skip
    add("--connections", type=whole(1, 100_000), default=500, metavar="N", help="accept N connections at a time and"
        " answer further ones with 503 (default: 500)")  # fmt: skip
    add = parser.add_argument_group("network").add_argument
    add("--host", default="127.0.0.1", metavar="ADDRESS", help="listen on this address; 0.0.0.0 for all (default:"
        " 127.0.0.1, this machine only)")  # fmt: skip
    add("--port", type=whole(1, 65535), default=8000, metavar="N", help="listen on this port (default: 8000)")
    add("--token-file", type=Path, metavar="FILE", help="require the token in this file from every client (default:"
        " TINYDET_TOKEN, else no token)")  # fmt: skip
    add("--cors", action="append", metavar="ORIGIN", help="let pages of this origin call the service, such as"
        " https://maps.example.org; may be repeated (default: none)")  # fmt: skip
    return parser


def _options(args: argparse.Namespace) -> ServeOptions:
    check_roots(args.root or ())
    check_folder(args.folder)
    for origin in args.cors or ():
        if not re.fullmatch(r"https?://[^/\s*]+", origin):
            raise ValueError(f"--cors {quoted(origin)}: expected an origin, such as https://maps.example.org")
    return ServeOptions(
        args.folder.resolve(),
        tuple(args.root or ()),
        allow_vrt=args.allow_vrt,
        token=_token(args.token_file),
        queue=args.queue,
        keep_jobs=args.keep_jobs,
        max_pixels=args.max_pixels,
        max_detect_pixels=args.max_detect_pixels,
        max_body=args.max_body,
        max_upload=args.max_upload,
        quota=args.quota,
        cors=tuple(args.cors or ()),
    )


def _bound(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to an address, before the model is loaded. Clients connect once it listens.

    Raises:
        OSError: the address is taken, or not one of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        raise OSError(f"cannot listen on {host}:{port} ({error.strerror}); choose another --port or --host") from error
    return bound


def _token(path: Path | None) -> str:
    """Return the token from a file or the environment; empty if there is none."""
    if path is None:
        source, token = TOKEN_VARIABLE, os.environ.get(TOKEN_VARIABLE, "")
        if not token:
            return ""
    else:
        source, token = f"--token-file {path}", read_file(path).decode("utf-8", "replace").strip()
    if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError(
            f"{source}: a token has at least {SHORTEST_TOKEN} printable ASCII characters without spaces; make one: "
            "openssl rand -hex 32"
        )
    return token


def _check_model(model: Path | None) -> None:
    """Check that the model file exists, before any library is imported."""
    if model is None:
        return
    path = model_path(model)
    if not path.exists():
        hint = did_you_mean(str(path), BUNDLED) or did_you_mean_path(path)
        raise FileNotFoundError(f"--model {path} does not exist; bundled models: {', '.join(BUNDLED)}{hint}")
    check_file(path, "name an exported model")


def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d{1,15})([kmgt]?)i?b?", text.strip().lower())
    if found is None or not int(found[1]):
        raise argparse.ArgumentTypeError(f"expected a size in bytes, such as 500M or 32G, got {quoted(text)}")
    return int(found[1]) * _UNITS[found[2]]


if __name__ == "__main__":
    sys.exit(main())
