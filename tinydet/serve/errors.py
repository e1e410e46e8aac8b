"""ServiceError: an answer other than success, with its HTTP status."""

from __future__ import annotations

from collections.abc import Mapping


class ServiceError(ValueError):
    """A request that cannot be answered. The message is for the client.

    Attributes:
        status: HTTP status: 4xx, 503 while the service stops, 507 if the disk is full.
        headers: of the answer.
    """

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})


def not_found(what: str, name: str) -> ServiceError:
    """Return the error for a job, scene or upload that does not exist."""
    return ServiceError(404, f"there is no {what} {name[:80]!r}")
