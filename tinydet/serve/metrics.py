"""Metrics: counts of requests, jobs, tiles and bytes, in the text format of Prometheus."""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping
from typing import TYPE_CHECKING, Any

from tinydet._internal.extras import needs_extra
from tinydet.serve.service import Service

if TYPE_CHECKING:
    from prometheus_client import Metric

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)  # seconds


class Metrics:
    """Counters of one service.

    Args:
        service: whose jobs, uploads and model are read when the metrics are requested.
    """

    def __init__(self, service: Service) -> None:
        with needs_extra("serve"):
            from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
        self._service, self._registry = service, CollectorRegistry()
        self._requests = Counter(
            "tinydet_requests", "Requests by route and status.", ["method", "route", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "tinydet_request_seconds", "Duration of requests.", ["route"], buckets=BUCKETS, registry=self._registry
        )
        ProcessCollector(registry=self._registry)
        self._registry.register(self)

    def observe(self, scope: MutableMapping[str, Any], status: int, seconds: float) -> None:
        """Count a request."""
        route = getattr(scope.get("route"), "path", "other")
        method = scope["method"] if route != "other" else "other"
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """Return all metrics."""
        with needs_extra("serve"):
            from prometheus_client import generate_latest
        return generate_latest(self._registry)

    def collect(self) -> Iterable[Metric]:
        """Yield what the service counts itself; called by the registry."""
        with needs_extra("serve"):
            from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
        jobs = GaugeMetricFamily("tinydet_jobs", "Jobs that are kept, by status.", labels=["status"])
        for status, count in self._service.jobs.counts().items():
            jobs.add_metric([status], count)
        yield jobs
        backend = self._service.model.backend
        yield CounterMetricFamily("tinydet_tiles", "Tiles that the model has run.", value=backend.tiles)
        yield CounterMetricFamily("tinydet_model_seconds", "Seconds in the model.", value=backend.seconds)
        yield GaugeMetricFamily("tinydet_upload_bytes", "Bytes of all uploads.", value=self._service.uploads.used)
