"""Routes of a machine learning backend of Label Studio: `/health`, `/setup`, `/predict` and `/webhook`."""

# Annotations are evaluated where the routes are defined, because FastAPI is imported there.

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field

from tinydet._internal.extras import needs_extra
from tinydet._internal.names import printable
from tinydet.serve.api_models import ERRORS
from tinydet.serve.errors import ServiceError
from tinydet.serve.label_studio import Boxes, Control, find_control, predict, prediction
from tinydet.serve.service import Service

if TYPE_CHECKING:
    from fastapi import APIRouter

MOST_TASKS = 100  # of a request

logger = logging.getLogger("tinydet.serve")


class SetupRequest(BaseModel):
    """What Label Studio says about a project."""

    project: str | int | None = None
    schema_: str | None = Field(default=None, alias="schema")


class PredictRequest(BaseModel):
    """Images of a project, and where their boxes go."""

    tasks: list[dict[str, Any]] = Field(max_length=MOST_TASKS)
    label_config: str
    project: str | int | None = None
    params: dict[str, Any] | None = None


def label_studio_router(service: Service) -> "APIRouter":
    """Return the routes of Label Studio."""
    with needs_extra("serve"):
        from fastapi import APIRouter

    def found(task: dict[str, Any], control: Control) -> Boxes | None:
        """Return the boxes of a task. One image that is damaged or too large does not take those of the others."""
        try:
            return predict(service, task, control)
        except ServiceError as error:
            if error.status == 429:  # Label Studio asks again
                raise
            logger.warning(f"task {str(task.get('id', ''))[:40]} of Label Studio: {printable(str(error))}")
            return None

    router = APIRouter(tags=["Label Studio"], responses=ERRORS)
    version = f"tinydet-{service.model.sha256[:12]}"

    @router.get("/health", summary="Whether the backend works")
    async def health() -> dict[str, str]:
        return {"status": "UP", "model_class": "tinydet"}

    @router.post("/setup", summary="Connect a project")
    def setup(body: SetupRequest) -> dict[str, str]:
        if body.schema_:
            find_control(body.schema_)
        return {"model_version": version}

    @router.post("/predict", summary="Predict the boxes of tasks")
    async def predict_tasks(body: PredictRequest) -> dict[str, Any]:
        control = find_control(body.label_config)

        def predicted() -> list[dict[str, Any]]:
            return [prediction(found(task, control), control, version) for task in body.tasks]

        return {"results": await asyncio.get_running_loop().run_in_executor(service.images.threads, predicted)}

    @router.post("/webhook", summary="Take an event, which changes nothing")
    def webhook() -> dict[str, str]:
        return {}

    return router
