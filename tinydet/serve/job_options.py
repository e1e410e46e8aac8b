"""JobOptions: the options of a request, with the names, defaults and rules of `tinydet infer`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tinydet.infer.__main__ import infer_parser, run_settings
from tinydet.infer.settings import Settings
from tinydet.runtime.backends import Backend
from tinydet.runtime.stitch import MERGES
from tinydet.serve.errors import ServiceError

Number = int | float


class JobOptions(BaseModel):
    """Options of `tinydet infer` for one scene; those that are left out have the defaults of the command."""

    model_config = ConfigDict(extra="forbid")

    score: Number | Literal["auto"] | None = Field(default=None, description="drop detections that score below, 0 to 1")
    overlap: int | Literal["auto"] | None = Field(default=None, description="pixels that neighboring tiles share")
    scale: Number | Literal["auto"] | None = Field(default=None, description="resize the scene by this factor")
    object_size: str | None = Field(default=None, max_length=20, description="side of a typical object: 24 or 0.6m")
    gsd: Number | None = Field(default=None, description="meters per pixel")
    merge: str | None = Field(default=None, max_length=20, description=f"merge boxes of tiles by: {', '.join(MERGES)}")
    agnostic: bool | None = Field(default=None, description="merge boxes of different classes too")
    bands: list[int] | None = Field(default=None, max_length=16, description="1-based band indices for R,G,B, or one")
    batch: int | None = Field(default=None, description="tiles that are run at once")
    max_tiles: int | None = Field(default=None, description="refuse scenes of more tiles")
    skip_empty: bool | None = Field(default=None, description="do not run tiles without objects, by contrast")
    skip: Literal["learned", "empty"] | None = Field(
        default=None, description="do not run tiles without objects: by the tile filter of the model, or by contrast"
    )
    gps: bool | None = Field(default=None, description="place the detections of drone photos by their camera metadata")
    image_id: int | None = Field(default=None, description="COCO image id of the scene")

    def arguments(self) -> argparse.Namespace:
        """Return all options of the command, as its parser would.

        Raises:
            ServiceError: 422 for a value that the command refuses.
        """
        try:
            return infer_parser().from_values(self.given())
        except ValueError as error:
            raise ServiceError(422, f"options.{error}") from error

    def given(self) -> dict[str, Any]:
        """Return the options that the client gave."""
        return self.model_dump(exclude_none=True)

    def settings(self, path: Path | None, backend: Backend) -> Settings:
        """Return the settings of a run that continues from its journal.

        Args:
            path: of the model.

        Raises:
            ServiceError: 422 for options that the command, or this model, refuses.
        """
        arguments = self.arguments()
        arguments.resume = True
        try:
            return run_settings(arguments, path, backend)
        except (ValueError, OSError) as error:
            raise ServiceError(422, f"options: {error}".replace("--", "")) from error
