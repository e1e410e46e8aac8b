"""create_app: the service as an ASGI application, with authorization, limits and errors as JSON."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import tinydet
from tinydet._internal.extras import needs_extra
from tinydet._internal.names import printable
from tinydet.serve.api_models import ERRORS
from tinydet.serve.detect_api import detect_router
from tinydet.serve.errors import ServiceError
from tinydet.serve.guard import Guard
from tinydet.serve.jobs_api import jobs_router
from tinydet.serve.kserve_api import kserve_router
from tinydet.serve.label_studio_api import label_studio_router
from tinydet.serve.metrics import Metrics
from tinydet.serve.page import page_router
from tinydet.serve.scenes_api import scenes_router
from tinydet.serve.service import Service
from tinydet.serve.service_scenes import ServiceScenes
from tinydet.serve.status_api import status_router
from tinydet.serve.uploads_api import uploads_router

if TYPE_CHECKING:
    from fastapi import FastAPI

logger = logging.getLogger("tinydet.serve")


def create_app(service: Service, *, hosts: tuple[str, ...] = ()) -> FastAPI:
    """Return the application. Its lifespan starts the jobs, and stops the running one.

    Args:
        hosts: names under which the service may be called; empty for any.
    """
    with needs_extra("serve"):
        from fastapi import FastAPI
        from fastapi.exceptions import RequestValidationError
        from starlette.exceptions import HTTPException
        from starlette.middleware.cors import CORSMiddleware
        from starlette.requests import Request
        from starlette.responses import JSONResponse

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        try:
            yield
        finally:
            service.close()

    def answer(request: Request, status: int, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
        key = "error" if request.url.path.startswith("/v2") else "detail"  # as the Open Inference Protocol has it
        return JSONResponse({key: printable(detail)}, status, headers)

    async def refused(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ServiceError)
        return answer(request, error.status, str(error), error.headers)

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return answer(request, 422, "; ".join(map(_sentence, error.errors()[:5])))

    async def other(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return answer(request, error.status_code, str(error.detail), dict(error.headers or {}))

    app = FastAPI(
        title="tinydet",
        version=tinydet.__version__,
        summary="Detect tiny objects in images and rasters of any size.",
        docs_url=None,  # its page loads scripts from other servers
        redoc_url=None,
        lifespan=lifespan,
    )
    app.add_exception_handler(ServiceError, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, other)
    metrics = Metrics(service)
    app.include_router(status_router(service, metrics))
    app.include_router(uploads_router(service))
    app.include_router(jobs_router(service))
    app.include_router(detect_router(service))
    app.include_router(kserve_router(service))
    app.include_router(label_studio_router(service))
    app.include_router(scenes_router(ServiceScenes(service)), responses=ERRORS)
    app.include_router(page_router())
    app.add_middleware(Guard, token=service.options.token, hosts=hosts, origins=service.options.cors,
                       max_body=service.options.max_body, observe=metrics.observe)  # fmt: skip
    if service.options.cors:
        app.add_middleware(CORSMiddleware, allow_origins=service.options.cors, allow_methods=["*"],
                           allow_headers=["Authorization", "Content-Type"])  # fmt: skip
    return app


def _sentence(error: Any) -> str:
    """Return a mistake in a request as "place: rule"."""
    if error["type"] == "json_invalid":
        return f"the request: not JSON ({error['ctx']['error']} at character {error['loc'][-1]})"
    place = ".".join(str(part) for part in error["loc"] if part not in ("body", "query", "path"))
    return f"{place or 'the request'}: {error['msg'][:1].lower()}{error['msg'][1:]}"
