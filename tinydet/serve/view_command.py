"""The command `tinydet view`: show detections on their scene in a browser, or export the page as a folder."""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from tinydet._internal.arguments import integers, scale, whole
from tinydet._internal.command import command
from tinydet._internal.console import plural
from tinydet._internal.extras import needs_extra
from tinydet._internal.input_files import check_file
from tinydet._internal.parser import Parser
from tinydet._internal.progress import Bar
from tinydet._internal.shell import command_line, tinydet_command

LONGEST_NUMBER = 18  # digits of an image id that is a number
PORT = 8470  # if it is free
LOCAL = ("127.0.0.1", "localhost", "::1", "[::1]")
EPILOG = """\
The page zooms to single pixels, filters by score and class, steps through the detections from the best to the most
doubtful one, and exports those that you mark as true or false as a COCO file. It compares several files of detections
side by side. No request leaves this machine unless --host is given.
"""


@command("view")
def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    scene, files = _inputs(args)
    if args.overlap is not None and args.tile is None:
        raise ValueError("--overlap needs --tile, the side of the tiles of the scan")
    if args.tile is not None and (args.overlap or 0) >= args.tile:
        raise ValueError(f"--overlap must be smaller than --tile {args.tile}, got {args.overlap}")
    if args.export is None:
        with needs_extra("serve"):
            import fastapi  # noqa: F401
            import uvicorn  # noqa: F401
    from tinydet.geometry.tiles import TileGrid
    from tinydet.runtime.plan import default_overlap, plan_tiles
    from tinydet.serve.detection_files import read_categories
    from tinydet.serve.view import check_export_folder, export_tiles, export_view, open_view

    if args.export is not None:
        check_export_folder(args.export)

    def tilings(width: int, height: int) -> tuple[TileGrid, ...]:
        if args.tile is None:
            return ()
        overlap = default_overlap(args.tile) if args.overlap is None else args.overlap
        return (plan_tiles(width, height, tile=args.tile, overlap=overlap, scale=args.scale).grid,)

    view = open_view(
        scene,
        files,
        image_id=args.image_id,
        categories=None if args.annotations is None else read_categories(args.annotations),
        tilings=tilings,
        bands=args.bands,
    )
    for each in view.files:
        count = len(each.found.detections)
        print(f"{each.path}: {plural(count, 'detection')} ({', '.join(each.found.classes) or 'no classes'})")
    if args.export is None:
        _serve(args, view)
        return 0
    with Bar(export_tiles(view), "tile", "export") as bar:
        export_view(view, args.export, bar.update)
    print(f"{args.export}/: {plural(export_tiles(view), 'tile')}; any web server can serve it, for example:")
    print(f"  {command_line(sys.executable, '-m', 'http.server', '--bind', '127.0.0.1', '--directory', args.export)}")
    return 0


def _serve(args: argparse.Namespace, view: object) -> None:
    """Serve the page until Ctrl-C."""
    with needs_extra("serve"):
        import uvicorn
    from tinydet.serve.scenes_api import SceneStore
    from tinydet.serve.view import SCENE, View, view_application

    assert isinstance(view, View)
    store = SceneStore()
    hosts = [*LOCAL, args.host] if args.host in LOCAL else ["*"]
    with contextlib.closing(store), _listening(args.host, args.port) as listening:
        application = view_application(view, store, hosts)
        tiles = store.tiles(SCENE)
        tiles.prepare()
        if tiles.progress is not None:
            addo = command_line("gdaladdo", "-ro", args.scene, "2", "4", "8", "16", "32", "64")
            print(
                f"{args.scene} has no overviews, so it is read once before the page shows all of it. Add them: {addo}"
            )
        host, port = listening.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
        print(f"{address} (Ctrl-C ends)", flush=True)
        if not args.no_browser and _has_browser():
            webbrowser.open(address)
        config = uvicorn.Config(application, log_level="warning", lifespan="off", timeout_graceful_shutdown=2)
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listening])


def _listening(host: str, port: int | None) -> socket.socket:
    """Return a listening socket.

    Args:
        port: None for `PORT`, or any other if that is taken.

    Raises:
        OSError: the address cannot be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for number in (PORT, 0) if port is None else (port,):
        listening = socket.socket(family)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, number))
            return listening
        except OSError as error:
            listening.close()
            if port is not None or number == 0:
                raise OSError(f"--host {host} --port {number}: {error.strerror or error}; name another port") from error
    raise AssertionError


def _has_browser() -> bool:
    """Return whether a browser with a window can be opened; a text browser would take the terminal."""
    return sys.platform in ("darwin", "win32") or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))


def _inputs(args: argparse.Namespace) -> tuple[Path, list[Path]]:
    """Return the scene and the files of detections, by default those that `tinydet infer` writes next to the scene.

    Raises:
        ValueError, OSError: there are none.
    """
    from tinydet.serve.detection_files import check_detection_file

    check_file(args.scene, "name an image or raster")
    for file in args.detections:
        check_detection_file(file)
    if args.detections:
        return args.scene, args.detections
    own = args.scene.with_name(f"{args.scene.stem}.detections.json")
    if not own.is_file():
        raise ValueError(f"name a file of detections, or make one: {tinydet_command('infer', args.scene)}")
    return args.scene, [own]


def _image_id(text: str) -> int | str:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= LONGEST_NUMBER else text


def _parser() -> Parser:
    parser = Parser(
        "view",
        description="Show detections on their scene in a browser: those of tinydet, or COCO results of any tool.",
        epilog=EPILOG,
        examples=(
            "scene.tif detections.json",
            "scene.tif mine.json theirs.json",
            "scene.tif detections.json --export page/",
        ),
        needs_arguments=True,
    )
    parser.add_argument("scene", type=Path, help="image or raster of any size")
    parser.add_argument(
        "detections",
        type=Path,
        nargs="*",
        help="COCO results of any tool, or any format of infer: .json, .geojson, .gpkg, .csv, .parquet, .txt (YOLO); "
        "several to compare them (default: what infer wrote next to the scene)",
    )
    parser.add_argument(
        "--export",
        type=Path,
        metavar="DIR",
        help="write the page with all tiles to a folder for any web server (default: serve the page here)",
    )
    files = parser.add_argument_group("scene and detections")
    files.add_argument(
        "--annotations", type=Path, metavar="FILE", help="take class names for COCO results from this COCO file"
    )
    files.add_argument(
        "--image-id", type=_image_id, metavar="ID", help="COCO image id of the scene, in files of several images"
    )
    files.add_argument(
        "--bands", type=integers, metavar="R,G,B", help="1-based band indices to show, or one (default: the RGB bands)"
    )
    files.add_argument(
        "--tile", type=whole(32, 1 << 14, "pixels"), metavar="PX", help="side of the tiles of the scan, to show them"
    )
    files.add_argument(
        "--overlap", type=whole(0, 1 << 14, "pixels"), metavar="PX", help="pixels that tiles share (default: as infer)"
    )
    files.add_argument("--scale", type=scale, default=1.0, help="resize factor of the scan (default: 1)")
    server = parser.add_argument_group("server")
    server.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine only)"
    )
    server.add_argument(
        "--port", type=whole(1, 65535), metavar="N", help=f"port to listen on (default: {PORT}, or any free one)"
    )
    server.add_argument("--no-browser", action="store_true", help="print the address without opening a browser")
    return parser


if __name__ == "__main__":
    sys.exit(main())
