"""The native API: jobs, models and images."""

import base64
from collections.abc import AsyncIterable, Mapping
from dataclasses import asdict
from typing import Annotated, Any, cast

from fastapi import APIRouter, Depends, Header, Query, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.requests import Request as HTTPRequest

from ssd1b.advice import advised
from ssd1b.controls import PREPROCESSORS
from ssd1b.errors import ConflictError, InputError, NotFoundError, line, unknown
from ssd1b.jobs.queue import CANCELLED, FAILED, FINISHED, Image, Request
from ssd1b.server.errors import code_of, with_fields
from ssd1b.server.files import ControlFacts, LoraFacts
from ssd1b.server.schemas import (
    ControlAnswer,
    Controls,
    EmbeddingAnswer,
    Embeddings,
    FewStepsAnswer,
    ImageAnswer,
    IPAdapterAnswer,
    IPAdapters,
    JobAnswer,
    JobBody,
    Jobs,
    LoraAnswer,
    Loras,
    ModelAnswer,
    Models,
    Priority,
    Problem,
    State,
    StyleAnswer,
    Styles,
    advice_answers,
    client_settings,
    problems,
)
from ssd1b.server.service import Service

MAX_PICTURES = 48 * 2**20
"""Bytes of a body with pictures in base64. A larger picture can be uploaded."""

OPENAI_TOO = frozenset({"/v1/models", "/v1/models/{name}"})
"""Paths that OpenAI's clients also ask for, with parameters of their own."""


def check_query(http: HTTPRequest) -> None:
    """Refuse query parameters that a route does not have, because they may be typing mistakes.

    Raises:
        InputError: there is one.
    """
    route = http.scope["route"]
    known = [each.alias for each in route.dependant.query_params]
    for name in http.query_params:
        if name not in known and route.path not in OPENAI_TOO:
            raise unknown("query parameter", name, known)


EXACT = [Depends(check_query)]

router = APIRouter(prefix="/v1", tags=["jobs"], responses=problems(Problem), dependencies=EXACT)


def service_of(request: HTTPRequest) -> Service:
    """The service of the app."""
    return request.app.state.service


def client_of(request: HTTPRequest) -> str:
    """Whom to be fair to: the name of the API key, or the address."""
    name = request.scope.get("ssd1b.client")
    return name or (request.client.host if request.client else "")


TheService = Annotated[Service, Depends(service_of)]
Client = Annotated[str, Depends(client_of)]


async def job_of(id: str, service: TheService) -> Request:
    """The job of a path, found before a stream begins."""
    return await service.request(id)


TheJob = Annotated[Request, Depends(job_of)]


@router.post("/jobs", status_code=202, max_body_size=MAX_PICTURES, summary="Generate images")
async def submit(
    body: JobBody,
    service: TheService,
    client: Client,
    response: Response,
    idempotency_key: Annotated[str | None, Header(max_length=200)] = None,
) -> JobAnswer:
    """Queue a job and return at once. Poll `/v1/jobs/{id}` or follow `/v1/jobs/{id}/events`."""
    request = await submitted(service, body, client, dialect="native", idempotency=idempotency_key)
    response.headers["Location"] = f"/v1/jobs/{request.id}"
    return answer(service, request, body.given())


async def submitted(
    service: Service, body: JobBody, client: str, *, dialect: str, idempotency: str | None
) -> Request:
    """Check a body and queue it."""
    model = body.model or service.default
    settings = await service.settings(
        model, body.prompt, body.preset, body.given(), styles=body.styles or (), count=body.count
    )
    return await service.submit(
        model, settings, client=client, priority=body.priority, dialect=dialect,
        idempotency=idempotency,
    )  # fmt: skip


@router.get("/jobs", summary="List jobs")
async def jobs(
    service: TheService,
    state: Annotated[list[State], Query()] = [],  # noqa: B006
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
    before: int | None = None,
) -> Jobs:
    """List jobs, the newest first."""
    found = await service.recent(state, limit=limit, before=before)
    return Jobs(
        jobs=[answer(service, request) for request in found],
        next=str(found[-1].number) if len(found) == limit else None,
    )


@router.get("/jobs/{id}", summary="Get a job")
async def job(request: TheJob, service: TheService) -> JobAnswer:
    """Return a job's state and images."""
    return answer(service, request)


@router.post("/jobs/{id}/cancel", summary="Cancel a job")
async def cancel(request: TheJob, service: TheService) -> JobAnswer:
    """Cancel a job that is queued or running. It stops after the step that is being computed."""
    await service.cancel(request)
    return answer(service, request)


@router.delete("/jobs/{id}", status_code=204, summary="Delete a job")
async def delete(request: TheJob, service: TheService) -> None:
    """Remove a job from the list and its images from the gallery. A job that is not finished is cancelled.

    The images can be restored for a day.
    """
    await service.delete(request)


@router.get("/jobs/{id}/events", response_class=EventSourceResponse, summary="Follow a job")
async def events(
    request: TheJob, service: TheService, previews: bool = False
) -> AsyncIterable[ServerSentEvent]:
    """Stream a job's changes as server-sent events until it is finished.

    Events are named `job`, with the same data as `/v1/jobs/{id}`, and `preview`, with a JPEG in base64.
    """
    async with service.listen(request, previews=previews) as listener:
        yield ServerSentEvent(event="job", data=answer(service, request))
        if request.state in FINISHED:
            return
        shown_preview: bytes | None = None
        async for request in listener.changes():
            yield ServerSentEvent(event="job", data=answer(service, request))
            if previews and request.preview is not None and request.preview is not shown_preview:
                shown_preview = request.preview
                yield ServerSentEvent(event="preview", data=base64.b64encode(shown_preview).decode())
            if request.state in FINISHED:
                return


@router.post("/jobs/{id}/retry", status_code=202, summary="Retry a job")
async def retry(old: TheJob, service: TheService, client: Client) -> JobAnswer:
    """Queue a new job with the settings of one that failed or was cancelled."""
    if old.state not in (FAILED, CANCELLED):
        raise ConflictError(f"the job is {old.state}: only failed and cancelled ones can be retried")
    service.model(old.model)
    request = await service.submit(
        old.model, [image.job.settings for image in old.images], client=client, priority=old.priority,
        dialect=old.dialect,
    )  # fmt: skip
    return answer(service, request)


@router.patch("/jobs/{id}", summary="Change a job's priority")
async def prioritize(request: TheJob, change: Priority, service: TheService) -> JobAnswer:
    """Move a job in the queue by its priority."""
    await service.move(request, change.priority)
    return answer(service, request)


@router.get("/queue", summary="List unfinished jobs")
async def queue(service: TheService) -> list[JobAnswer]:
    """List the jobs that are queued or running, in the order of the queue."""
    return [answer(service, request) for request in service.unfinished()]


@router.get("/events", response_class=EventSourceResponse, summary="Follow all jobs")
async def all_events(service: TheService, previews: bool = False) -> AsyncIterable[ServerSentEvent]:
    """Stream the changes of all jobs as server-sent events.

    Events are named `job`, with the same data as `/v1/jobs/{id}`, and `preview`, with the job's id and a JPEG
    in base64. A slow reader misses states in between, never the last one of a job.
    """
    shown: dict[str, bytes] = {}
    async with service.listen(previews=previews) as listener:
        yield ServerSentEvent(event="ready", data={})
        async for request in listener.changes():
            yield ServerSentEvent(event="job", data=answer(service, request))
            preview = request.preview
            if previews and preview is not None and preview is not shown.get(request.id):
                shown[request.id] = preview
                yield ServerSentEvent(
                    event="preview", data={"job": request.id, "jpeg": base64.b64encode(preview).decode()}
                )
            if request.state in FINISHED:
                shown.pop(request.id, None)


@router.get("/models", summary="List models")
async def models(service: TheService) -> Models:
    """List the models that this server offers."""
    return Models(data=[_model(service, name) for name in service.models])


@router.get("/models/{name}", summary="Describe a model")
async def model(service: TheService, name: str) -> ModelAnswer:
    """Describe one of the models that this server offers."""
    if name not in service.models:
        raise unknown("model", name, service.models, NotFoundError)
    return _model(service, name)


def _model(service: Service, name: str) -> ModelAnswer:
    return ModelAnswer(
        id=name, family=service.models[name].info.family, loaded=name in service.loaded,
        default=name == next(iter(service.models)), settings=service.defaults(name),
    )  # fmt: skip


@router.get("/loras", summary="List LoRAs")
async def loras(service: TheService) -> Loras:
    """List the LoRAs of the server's folder. Files that were put there or removed since the start count."""
    found = await service.loras()
    return Loras(loras=[_lora(name, each) for name, each in found.items()])


def _lora(name: str, facts: LoraFacts | InputError) -> LoraAnswer:
    if isinstance(facts, InputError):
        return LoraAnswer(name=name, families={}, trigger_words=[], error=line(with_fields(str(facts))))
    few, wanted = facts.few_steps, advised("", facts.few_steps)
    return LoraAnswer(
        name=name, families=dict(facts.families), trigger_words=list(facts.trigger_words),
        few_steps=few and FewStepsAnswer(
            kind=few.kind.name, settings=few.settings, advice=advice_answers(wanted),
            samplers=list(wanted.samplers),
        ),
    )  # fmt: skip


@router.get("/controls", summary="List ControlNets and T2I-Adapters")
async def controls(service: TheService) -> Controls:
    """List the networks that follow a picture: the built-in one, and those of the server's folder."""
    found = await service.controls()
    return Controls(
        controls=[_control(name, each) for name, each in found.items()], preprocessors=[*PREPROCESSORS]
    )


def _control(name: str, facts: ControlFacts | InputError) -> ControlAnswer:
    if isinstance(facts, InputError):
        return ControlAnswer(name=name, models=[], error=line(with_fields(str(facts))))
    return ControlAnswer(name=name, kind=cast(Any, facts.kind), models=list(facts.models))


@router.get("/ip-adapters", summary="List IP-Adapters")
async def ip_adapters(service: TheService) -> IPAdapters:
    """List the IP-Adapters of the server's folder."""
    found = await service.ip_adapters()
    return IPAdapters(
        ip_adapters=[
            IPAdapterAnswer(name=name, models=[], error=line(with_fields(str(each))))
            if isinstance(each, InputError)
            else IPAdapterAnswer(name=name, models=each)
            for name, each in found.items()
        ]
    )


@router.get("/embeddings", summary="List embeddings")
async def embeddings(service: TheService) -> Embeddings:
    """List the embeddings of the server's folder. Prompts use them by their words."""
    found = await service.embeddings()
    return Embeddings(
        embeddings=[
            EmbeddingAnswer(name=name, error=line(with_fields(str(each))))
            if isinstance(each, InputError)
            else EmbeddingAnswer(name=name, word=each.word, vectors=each.vectors)
            for name, each in found.items()
        ]
    )


@router.get("/styles", summary="List styles")
async def styles(service: TheService) -> Styles:
    """List the styles of the server's file."""
    return Styles(styles=[StyleAnswer(**asdict(each)) for each in service.styles()])


def answer(service: Service, request: Request, given: Mapping[str, Any] | None = None) -> JobAnswer:
    """Describe a request; ``given`` is what its client set, if that is known."""
    first = request.images[0].job.settings
    return JobAnswer(
        id=request.id, state=cast(State, request.state), model=request.model, prompt=first.prompt,
        settings=client_settings(first), priority=request.priority, created=request.created,
        started=request.started, finished=request.finished, position=service.position(request),
        step=request.step, steps=first.total_steps, eta=service.eta(request),
        images=[_image(image) for image in request.images],
        advice=service.advice(request.model, first, given),
        error=request.error and with_fields(request.error), code=code_of(request),
    )  # fmt: skip


def _image(image: Image) -> ImageAnswer:
    if image.made is None:
        return ImageAnswer(id=image.id, state="waiting", seed=image.job.settings.seed)
    if image.error is not None:
        error = with_fields(image.error)
        return ImageAnswer(id=image.id, state="failed", seed=image.job.settings.seed, error=error)
    return ImageAnswer(
        id=image.id, state="done", seed=image.job.settings.seed, url=f"/v1/pictures/{image.id}"
    )
