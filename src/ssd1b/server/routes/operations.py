"""Probes and metrics for whoever operates the server."""

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from ssd1b.server.routes.native import TheService

router = APIRouter(tags=["operations"])


@router.get("/healthz", summary="Whether the process works")
async def health(service: TheService, response: Response) -> dict[str, str]:
    """Answer 200 as long as the process works, and 503 if it must be restarted."""
    if not service.is_healthy:
        response.status_code = 503
        return {"status": "failed"}
    return {"status": "ok"}


@router.get("/readyz", summary="Whether requests are accepted")
async def ready(service: TheService, response: Response) -> dict[str, str]:
    """Answer 200 while requests are accepted, and 503 during a shutdown."""
    if service.draining:
        response.status_code = 503
        return {"status": "draining"}
    return {"status": "ready"}


@router.get("/metrics", response_class=Response, summary="Metrics for Prometheus")
async def metrics(service: TheService) -> Response:
    """Return metrics in Prometheus's text format."""
    return Response(generate_latest(service.measured().registry), media_type=CONTENT_TYPE_LATEST)
