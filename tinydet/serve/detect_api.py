"""The route `/detect`: the objects of one image in one request."""

# Annotations are evaluated where the routes are defined, because FastAPI is imported there.

import asyncio
import re
from typing import TYPE_CHECKING, Annotated, Any

from tinydet._internal.extras import needs_extra
from tinydet.serve.api_models import ERRORS
from tinydet.serve.errors import ServiceError
from tinydet.serve.job_options import JobOptions
from tinydet.serve.jobs_api import MEDIA_TYPES
from tinydet.serve.service import Service
from tinydet.serve.uploads import NAME_RULE, is_name

if TYPE_CHECKING:
    from fastapi import APIRouter

ACCEPT = {"application/json": "coco", "application/geo+json": "geojson", "text/csv": "csv"}
SUFFIXES = {"coco": ".json", "geojson": ".geojson", "csv": ".csv"}
IMAGE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            kind: {"schema": {"type": "string", "format": "binary"}}
            for kind in ("image/jpeg", "image/png", "image/tiff", "application/octet-stream")
        },
    }
}
_QUALITY = re.compile(r";\s*q=([01](?:\.\d{0,3})?)\s*$")


def detect_router(service: Service) -> "APIRouter":
    """Return the route `/detect`."""
    with needs_extra("serve"):
        from fastapi import APIRouter, Query
        from starlette.requests import ClientDisconnect, Request
        from starlette.responses import Response

    answers: dict[int | str, dict[str, Any]] = {
        200: {
            "description": "A COCO file, GeoJSON or CSV, as `infer` writes it.",
            "content": {kind: {} for kind in ACCEPT},
        },
        406: {"description": "None of the accepted formats can be written."},
    }
    router = APIRouter(tags=["detect"], responses={**ERRORS, **answers})

    class DetectOptions(JobOptions):
        name: str = "image"

    @router.post("/detect", summary="Detect the objects of one image", response_class=Response,
                 openapi_extra=IMAGE_BODY)  # fmt: skip
    async def detect(request: Request, options: Annotated[DetectOptions, Query()]) -> Response:
        kind = _accepted(request.headers.get("accept", ""))
        if request.headers.get("content-type", "").startswith("multipart/"):
            raise ServiceError(415, "send the image file itself as the body, as `curl --data-binary @photo.jpg` does")
        if not is_name(options.name):
            raise ServiceError(422, f"name: expected {NAME_RULE}")
        try:
            data = await request.body()
        except ClientDisconnect as error:
            raise ServiceError(
                413, f"an image may have at most {service.options.max_body} bytes here; upload it and start a job"
            ) from error
        chosen = JobOptions(**options.model_dump(exclude={"name"}, exclude_none=True))
        found = await asyncio.get_running_loop().run_in_executor(
            service.images.threads, service.images.detect, data, options.name, chosen, kind
        )
        return Response(found, media_type=MEDIA_TYPES[SUFFIXES[kind]])

    return router


def _accepted(header: str) -> str:
    """Return the format that a client prefers.

    >>> _accepted(""), _accepted("text/csv;q=0.5, application/geo+json"), _accepted("text/*")
    ('coco', 'geojson', 'csv')

    Raises:
        ServiceError: 406 if it takes none of them.
    """
    ranked: list[tuple[float, str]] = []
    for part in (header or "*/*").split(","):
        quality = _QUALITY.search(part)
        ranked.append((float(quality[1]) if quality else 1.0, part.partition(";")[0].strip().lower()))
    for value, wanted in sorted(ranked, key=lambda each: -each[0]):
        for kind, form in ACCEPT.items():
            if value > 0 and wanted in (kind, "*/*", f"{kind.partition('/')[0]}/*"):
                return form
    raise ServiceError(406, f"Accept: expected {', '.join(ACCEPT)}")
