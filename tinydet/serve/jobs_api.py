"""Routes of jobs, in the words of OGC API Processes: accept, watch, results, dismiss."""

# Annotations are evaluated where the routes are defined, because FastAPI is imported there.

import asyncio
from collections.abc import AsyncIterator
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Annotated

from tinydet._internal.extras import needs_extra
from tinydet.runtime.writers import FORMATS
from tinydet.serve.api_models import ERRORS, JobList, JobRequest, StatusInfo
from tinydet.serve.errors import ServiceError
from tinydet.serve.jobs import FINISHED
from tinydet.serve.service import Service

if TYPE_CHECKING:
    from fastapi import APIRouter

INTERVAL = 0.2  # seconds between two looks at a job that is watched
PING = 15.0  # seconds after which proxies would take a silent stream for a dead one
MEDIA_TYPES = {
    ".json": "application/json",
    ".geojson": "application/geo+json",
    ".gpkg": "application/geopackage+sqlite3",
    ".csv": "text/csv; charset=utf-8",
    ".parquet": "application/vnd.apache.parquet",
    ".txt": "text/plain; charset=utf-8",
}
KINDS = [kind for kind, form in FORMATS.items() if not form.tracked]


def jobs_router(service: Service) -> "APIRouter":
    """Return the routes below `/jobs`."""
    with needs_extra("serve"):
        from fastapi import APIRouter, Query
        from starlette.requests import Request
        from starlette.responses import FileResponse, Response, StreamingResponse

    router = APIRouter(prefix="/jobs", tags=["jobs"], responses=ERRORS)

    @router.post("", summary="Scan a scene", status_code=201)
    def add(body: JobRequest, response: Response) -> StatusInfo:
        record = service.add_job(body.options, scene=body.scene, upload=body.upload, path=body.path)
        response.headers["Location"] = f"/jobs/{record.id}"
        return StatusInfo.of(record)

    @router.get("", summary="List the jobs, the newest first")
    def listing(limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> JobList:
        return JobList(jobs=[StatusInfo.of(record) for record in service.jobs.records()[:limit]])

    @router.get("/{job_id}", summary="State of a job")
    def status(job_id: str) -> StatusInfo:
        return StatusInfo.of(service.jobs.record(job_id))

    @router.get("/{job_id}/events", summary="Watch a job (server-sent events)", response_class=StreamingResponse)
    async def events(job_id: str, request: Request) -> Response:
        record = service.jobs.record(job_id)
        if record.status in FINISHED and "last-event-id" in request.headers:
            return Response(status_code=204)  # the client has the last state; do not connect again

        async def stream() -> AsyncIterator[str]:
            last, silent, number = "", 0.0, 0
            while not service.jobs.is_closing:
                try:
                    record = service.jobs.record(job_id)
                except ServiceError:  # deleted meanwhile
                    return
                state = StatusInfo.of(record).model_dump_json()
                if state != last:
                    last, silent, number = state, 0.0, number + 1
                    yield f"id: {number}\nevent: status\nretry: 2000\ndata: {state}\n\n"
                elif silent >= PING:
                    silent = 0.0
                    yield ": ping\n\n"
                if record.status in FINISHED:
                    return
                await asyncio.sleep(INTERVAL)
                silent += INTERVAL

        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(stream(), media_type="text/event-stream", headers=headers)

    @router.get("/{job_id}/results", summary="Results of a job that was successful", response_class=FileResponse)
    def results(job_id: str, format: Annotated[str, Query(json_schema_extra={"enum": KINDS})] = "coco") -> FileResponse:
        if format not in KINDS:
            raise ServiceError(422, f"format: expected one of {', '.join(KINDS)}")
        path = service.jobs.results(job_id, format)
        stem = PurePosixPath(service.jobs.record(job_id).scene.shown).stem
        name = f"{stem}.detections{path.suffix}"
        return FileResponse(path, media_type=MEDIA_TYPES[path.suffix], filename=name)

    @router.delete("/{job_id}", summary="Dismiss a job, or delete one that is finished")
    def delete(job_id: str) -> StatusInfo:
        return StatusInfo.of(service.jobs.delete(job_id))

    return router
