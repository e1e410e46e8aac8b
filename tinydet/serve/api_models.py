"""Bodies of requests and answers."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tinydet.serve.job_options import JobOptions
from tinydet.serve.jobs import JobRecord, Status


class Problem(BaseModel):
    """Why a request was refused."""

    detail: str


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": description}
    for status, description in {
        400: "The request is malformed.",
        401: "The token is missing or wrong.",
        403: "Not allowed here.",
        404: "Not found, or not ready.",
        409: "The state of a job or upload does not allow it.",
        413: "Too large.",
        415: "A format that is not accepted.",
        422: "Invalid values.",
        429: "Too many requests; see Retry-After.",
    }.items()
}


class UploadInfo(BaseModel):
    """An upload that is complete."""

    name: str
    bytes: int
    width: int
    height: int
    format: str
    scene: str = Field(description="id of the scene")


class JobRequest(BaseModel):
    """One scene, named in one of three ways, and options."""

    model_config = ConfigDict(extra="forbid")

    scene: str | None = Field(default=None, max_length=64, description="id of a scene of this service")
    upload: str | None = Field(default=None, max_length=200, description="name of an upload")
    path: str | None = Field(default=None, max_length=4096, description="path below a root of the service")
    options: JobOptions = Field(default_factory=JobOptions)


class Link(BaseModel):
    href: str
    rel: str
    type: str = "application/json"


class StatusInfo(BaseModel):
    """State of a job, in the words of OGC API Processes."""

    jobID: str
    processID: str = "detect"
    type: Literal["process"] = "process"
    status: Status
    progress: int = Field(ge=0, le=100)
    message: str = ""
    created: datetime
    started: datetime | None = None
    updated: datetime
    finished: datetime | None = None
    scene: str = Field(description="id of the scene")
    name: str = Field(description="name of the scene")
    width: int
    height: int
    options: dict[str, Any]
    model: str = Field(description="SHA-256 of the model file")
    tiles: int
    tiles_done: int
    detections: int
    by_class: dict[str, int] = Field(default_factory=dict)
    warnings: list[str] = Field(default_factory=list)
    links: list[Link] = Field(default_factory=list)

    @classmethod
    def of(cls, record: JobRecord) -> StatusInfo:
        place = f"/jobs/{record.id}"
        links = [Link(href=place, rel="self"), Link(href=f"{place}/events", rel="monitor", type="text/event-stream")]
        if record.status == "successful":
            links.append(Link(href=f"{place}/results", rel="http://www.opengis.net/def/rel/ogc/1.0/results"))
        return cls(
            jobID=record.id,
            status=record.status,
            progress=record.progress,
            message=record.message,
            created=_time(record.created),
            started=_time(record.started),
            updated=_time(record.updated),
            finished=_time(record.finished),
            scene=record.scene.id,
            name=record.scene.shown,
            width=record.scene.width,
            height=record.scene.height,
            options=record.options,
            model=record.model,
            tiles=record.tiles,
            tiles_done=record.tiles_done,
            detections=record.detections,
            by_class=record.summary.get("by_class", {}),
            warnings=record.summary.get("warnings", []),
            links=links,
        )


class JobList(BaseModel):
    jobs: list[StatusInfo]
    links: list[Link] = Field(default_factory=list)


def _time(seconds: float | None) -> Any:
    return None if seconds is None else datetime.fromtimestamp(seconds, timezone.utc)
