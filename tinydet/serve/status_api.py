"""Routes about the service itself: health, readiness, model, metrics."""

# Annotations are evaluated where the routes are defined, because FastAPI is imported there.

import dataclasses
from typing import TYPE_CHECKING, Any

import tinydet
from tinydet._internal.extras import needs_extra
from tinydet.runtime.writers import FORMATS
from tinydet.serve.errors import ServiceError
from tinydet.serve.metrics import Metrics
from tinydet.serve.service import Service

if TYPE_CHECKING:
    from fastapi import APIRouter


def status_router(service: Service, metrics: Metrics) -> "APIRouter":
    """Return the routes `/healthz`, `/readiness`, `/info` and `/metrics`."""
    with needs_extra("serve"):
        from fastapi import APIRouter
        from starlette.responses import Response

    router = APIRouter(tags=["service"])
    # Probes are coroutines: they must not wait for a thread while all are busy.

    @router.get("/healthz", summary="Whether the process works")
    async def healthz() -> dict[str, str]:
        if not service.jobs.is_working:
            raise ServiceError(503, "the thread that runs jobs has ended; restart the service")
        return {"status": "ok"}

    @router.get("/readiness", summary="Whether requests are accepted")
    async def readiness() -> dict[str, str]:
        if service.jobs.is_closing:
            raise ServiceError(503, "the service is stopping")
        return {"status": "ready"}

    @router.get("/info", summary="The model, the formats and the limits")
    def info() -> dict[str, Any]:
        options = service.options
        names = ("queue", "max_pixels", "max_detect_pixels", "max_body", "max_upload", "quota")
        return {
            "version": tinydet.__version__,
            "model": {**dataclasses.asdict(service.model.spec), "sha256": service.model.sha256},
            "backend": service.model.backend.name,
            "formats": {kind: form.summary for kind, form in FORMATS.items() if not form.tracked},
            "limits": {name: getattr(options, name) for name in names},
            "reads_paths": bool(options.roots),
        }

    @router.get("/metrics", summary="Metrics for Prometheus", response_class=Response)
    def metrics_text() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router
