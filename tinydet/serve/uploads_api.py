"""Routes of uploads: raw bodies, streamed to disk."""

# Annotations are evaluated where the routes are defined, because FastAPI is imported there.

from typing import TYPE_CHECKING, Any

from tinydet._internal.extras import needs_extra
from tinydet.serve.api_models import ERRORS, UploadInfo
from tinydet.serve.errors import ServiceError
from tinydet.serve.service import Service, scene_id

if TYPE_CHECKING:
    from fastapi import APIRouter

BLOCK = 1 << 20  # bytes that are written at once
RAW_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


def uploads_router(service: Service) -> "APIRouter":
    """Return the routes below `/uploads`."""
    with needs_extra("serve"):
        from fastapi import APIRouter
        from starlette.concurrency import run_in_threadpool
        from starlette.requests import ClientDisconnect, Request

    router = APIRouter(prefix="/uploads", tags=["uploads"])

    @router.put("/{name}", summary="Send a scene", status_code=201, responses=ERRORS, openapi_extra=RAW_BODY)
    async def put(name: str, request: Request) -> UploadInfo:
        stated = request.headers.get("content-length", "")
        length = int(stated) if stated.isdigit() else None
        service.check_replaceable(name)
        with service.uploads.receive(name, length) as upload:
            block = bytearray()
            try:
                async for part in request.stream():
                    block += part
                    if len(block) >= BLOCK:
                        await run_in_threadpool(upload.write, bytes(block))
                        block.clear()
                await run_in_threadpool(upload.write, bytes(block))
            except ClientDisconnect as error:
                raise ServiceError(400, f"{name}: the connection ended before the upload was complete") from error
            except OSError as error:
                raise ServiceError(507, f"{name} cannot be stored ({error.strerror})") from error
            await run_in_threadpool(upload.flush)
            info = await run_in_threadpool(service.admit_upload, upload.part, name)
            service.check_replaceable(name)
        return UploadInfo(
            name=name, bytes=upload.bytes, width=info.width, height=info.height, format=info.format,
            scene=scene_id(service.uploads.path(name)),
        )  # fmt: skip

    @router.get("", summary="List the uploads")
    def listing() -> list[dict[str, Any]]:
        return [{"name": path.name, "bytes": path.stat().st_size, "scene": scene_id(path)}
                for path in service.uploads.paths()]  # fmt: skip

    @router.delete("/{name}", summary="Delete an upload that no job needs", status_code=204, responses=ERRORS)
    def delete(name: str) -> None:
        service.delete_upload(name)

    return router
