"""Routes of the Open Inference Protocol (KServe V2): a remote backend for raw tiles."""

# Annotations are evaluated where the routes are defined, because FastAPI is imported there.

import asyncio
from typing import TYPE_CHECKING, Any

import tinydet
from tinydet._internal.extras import needs_extra
from tinydet.serve.errors import ServiceError, not_found
from tinydet.serve.kserve import HEADER, NAME, VERSION, build_answer, configuration, metadata, parse_request
from tinydet.serve.service import Service

if TYPE_CHECKING:
    from fastapi import APIRouter

TENSOR_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"type": "object", "required": ["inputs"]}},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


def kserve_router(service: Service) -> "APIRouter":
    """Return the routes below `/v2`. Errors are `{"error": ...}`, as the protocol has them."""
    with needs_extra("serve"):
        from fastapi import APIRouter
        from starlette.requests import ClientDisconnect, Request
        from starlette.responses import Response

    spec, backend = service.model.spec, service.model.backend
    problem = {"content": {"application/json": {"schema": {"type": "object", "required": ["error"]}}}}
    answers: dict[int | str, dict[str, Any]] = {
        400: {"description": "Not a request of the protocol.", **problem},
        404: {"description": "No such model."},
        413: {"description": "Too large."},
        429: {"description": "Too many requests; see Retry-After."},
    }
    router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"], responses=answers)

    def check(model: str, version: str = VERSION) -> None:
        if model != NAME or version != VERSION:
            raise not_found("model", model if model != NAME else f"{model} of version {version}")

    @router.get("", summary="Server metadata")
    def server() -> dict[str, Any]:
        return {"name": "tinydet", "version": tinydet.__version__, "extensions": ["binary_tensor_data",
                "model_configuration"]}  # fmt: skip

    @router.get("/health/live", summary="Whether the server works")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @router.get("/health/ready", summary="Whether the server takes requests")
    async def ready() -> dict[str, bool]:
        if service.jobs.is_closing:
            raise ServiceError(503, "the service is stopping")
        return {"ready": True}

    for place in ("/models/{model}", "/models/{model}/versions/{version}"):

        @router.get(place, summary="Model metadata")
        def model_metadata(model: str, version: str = VERSION) -> dict[str, Any]:
            check(model, version)
            return metadata(spec, backend.name)

        @router.get(f"{place}/ready", summary="Whether the model is loaded")
        def model_ready(model: str, version: str = VERSION) -> dict[str, Any]:
            check(model, version)
            return {"name": NAME, "ready": True}

        @router.get(f"{place}/config", summary="Model configuration, with the ModelSpec")
        def model_config(model: str, version: str = VERSION) -> dict[str, Any]:
            check(model, version)
            return configuration(spec, backend.name, service.model.sha256)

        @router.post(f"{place}/infer", summary="Run the model on tiles", response_class=Response,
                     openapi_extra=TENSOR_BODY)  # fmt: skip
        async def infer(model: str, request: Request, version: str = VERSION) -> Response:
            check(model, version)
            try:
                body = await request.body()
            except ClientDisconnect as error:
                raise ServiceError(413, f"a request may have at most {service.options.max_body} bytes here") from error
            threads = service.images.threads
            return await asyncio.get_running_loop().run_in_executor(threads, run, body, request.headers.get(HEADER))

    def run(body: bytes, header_length: str | None) -> Response:
        tiles = parse_request(body, header_length, spec)
        with service.images.turn():
            outputs = backend.run(tiles.images)
        answer, length = build_answer(tiles, outputs)
        if length is None:
            return Response(answer, media_type="application/json")
        return Response(answer, media_type="application/octet-stream", headers={HEADER: str(length)})

    return router
