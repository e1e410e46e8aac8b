"""The viewer page: its files, and the routes that serve them."""

# Annotations are evaluated when a route is defined, because FastAPI is imported inside of functions.

import shutil
from pathlib import Path
from typing import Any

from tinydet._internal.extras import needs_extra

FOLDER = Path(__file__).with_name("viewer")
TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
    ".txt": "text/plain",
}
# The hash is that of the only style that OpenSeadragon adds. The page itself has the same policy in a <meta> element,
# for folders that other servers serve.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'sha256-9xTiqzfwFaL2SGb1rmr8gysEwVVjIvqWAgmZgqFqpEE='; "
    "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
STATIC_MARK = ('data-source="server"', 'data-source="static"')


def page_router() -> Any:
    """Return a FastAPI router with the page at `/` and its files below `/viewer/`.

    Raises:
        ModuleNotFoundError: FastAPI is not installed.
    """
    with needs_extra("serve"):
        from fastapi import APIRouter, HTTPException
        from fastapi.responses import FileResponse

    router = APIRouter(include_in_schema=False)
    files = {path.relative_to(FOLDER).as_posix(): path for path in FOLDER.rglob("*") if path.suffix in TYPES}

    def answer(name: str) -> FileResponse:
        if name not in files:
            raise HTTPException(404, "there is no such file")
        return FileResponse(files[name], media_type=TYPES[files[name].suffix], headers=HEADERS)

    @router.get("/")
    def page() -> FileResponse:
        return answer("index.html")

    @router.get("/viewer/{name:path}")
    def file(name: str) -> FileResponse:
        return answer(name)

    return router


def copy_page(folder: Path) -> None:
    """Copy the page to a folder, where it reads the files of `data/` in place of a server.

    Raises:
        OSError: a file cannot be written.
    """
    for path in FOLDER.rglob("*"):
        name = path.relative_to(FOLDER)
        if path.suffix not in TYPES or path.name == "index.html":
            continue
        target = folder / "viewer" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    text = (FOLDER / "index.html").read_text(encoding="utf-8")
    (folder / "index.html").write_text(text.replace(*STATIC_MARK), encoding="utf-8")
