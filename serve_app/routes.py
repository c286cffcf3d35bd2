"""The HTTP interface of one replica: which path does what. Logic is in `service`."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, Path, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, Response
from pydantic import BeforeValidator
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route
from starlette.types import Scope

from actors.messages import ActorsError
from serve_app.admission import AdmissionGate, AdmissionLimits
from serve_app.openapi import describe, document_api
from serve_app.pages import console_files, problem_page
from serve_app.problem_types import PROBLEM_TYPES
from serve_app.problems import (
    Problem,
    problem_of,
    problem_response,
)
from serve_app.request_reading import (
    decoded_id,
    read_document,
    read_optional_document,
    read_query,
    whole_number,
)
from serve_app.schemas import (
    MoveHeadBody,
    RecommendBody,
    RequestLimits,
    RollbackBody,
    read_events,
    read_items,
    validate_body,
)
from serve_app.service import RecommenderService
from serve_app.settings import replica_deadline_s


def _plain_digits(text: str) -> int:
    """Python reads `+1`, `1.0` and `1_0` as numbers too; no version is called that."""
    if not (text.isascii() and text.isdigit()) or len(text) > 16:
        raise ValueError("not a version")
    return int(text)


Version = Annotated[int, BeforeValidator(_plain_digits), Path(ge=0, le=2**53)]
_ROUTES = frozenset({"/v1/events", "/v1/recommend", "/v1/items", "/v1/model"})


def build_api(service: RecommenderService) -> FastAPI:
    """The ASGI application of one replica; its lifespan runs the follower."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.follower.start()
        # Serve sends requests from here on: an empty catalogue would hide every history, and
        # whoever has been answered by the head shall not be answered without it.
        await service.follower.wait_until_caught_up(service.settings.actor_timeout_s)
        yield
        await service.follower.stop()

    api = FastAPI(
        title="rheos",
        summary="Recommendations that learn from every event.",
        version="1",
        lifespan=lifespan,
        docs_url=None,  # both pages load scripts from a CDN
        redoc_url=None,
        redirect_slashes=False,
    )
    settings = service.settings
    api.add_middleware(
        AdmissionGate,
        limits=AdmissionLimits(
            max_ongoing_requests=settings.max_ongoing_requests,
            max_body_bytes=settings.max_body_bytes,
            deadline_s=replica_deadline_s(settings.deadline_s),
            slow_requests=frozenset({("PUT", "/v1/items")}),
            slow_deadline_s=replica_deadline_s(settings.items_deadline_s),
        ),
        on_answer=lambda path, status, duration_s: service.telemetry.answered(
            _route_of(path), status, duration_s
        ),
    )
    _add_problem_handlers(api)
    _add_event_and_item_routes(api, service)
    _add_recommendation_routes(api, service)
    _add_model_routes(api, service)
    _add_state_routes(api, service)
    _add_pages(api)
    document_api(api)
    return api


def _add_event_and_item_routes(api: FastAPI, service: RecommenderService) -> None:
    max_body_bytes = service.settings.max_body_bytes

    @api.post("/v1/events", status_code=202, **describe("post_events"))
    async def post_events(request: Request) -> Response:
        """Store one event or many. Acknowledged means on disk, and in the next recommendation."""
        events = read_events(await read_document(request, max_body_bytes), _limits(service))
        return _json(await service.append(events, _request_id(request)), 202)

    @api.put("/v1/items", **describe("put_items"))
    async def put_items(request: Request) -> Response:
        """Create or change one item or many. A new item can be recommended from its text alone."""
        items = read_items(await read_document(request, max_body_bytes), _limits(service))
        return _json(await service.put_items(items, _request_id(request)))

    @api.get("/v1/items", **describe("list_items"))
    async def list_items(request: Request) -> Response:
        """A page of the catalogue, oldest first."""
        query = read_query(request, "limit", "after")
        limit = whole_number(query, "limit", 100, service.settings.max_batch)
        return _json(service.list_items(query.get("after"), limit, _request_id(request)))

    @api.get("/v1/items/{item_id}", **describe("get_item"))
    async def get_item(request: Request, item_id: str) -> Response:
        """One item as it was stored."""
        read_query(request)
        return _json(await service.get_item(decoded_id(item_id), _request_id(request)))


def _add_recommendation_routes(api: FastAPI, service: RecommenderService) -> None:
    @api.post("/v1/recommend", **describe("recommend"))
    async def recommend(request: Request) -> Response:
        """The best items for a user, or for a history given in the request."""
        document = await read_document(request, service.settings.max_body_bytes)
        body = validate_body(RecommendBody, document, _limits(service))
        return _json(await service.recommend(body, _request_id(request)))

    @api.get("/v1/items/{item_id}/similar", **describe("similar_items"))
    async def similar_items(request: Request, item_id: str) -> Response:
        """The items most like one."""
        k = whole_number(read_query(request, "k"), "k", 10, service.settings.max_k)
        return _json(service.similar(decoded_id(item_id), k, _request_id(request)))


def _add_model_routes(api: FastAPI, service: RecommenderService) -> None:
    max_body_bytes = service.settings.max_body_bytes

    @api.get("/v1/model", **describe("get_model"))
    async def get_model(request: Request) -> Response:
        """The version that is served, its metrics, and how this replica keeps up."""
        read_query(request)
        return _json(service.describe_model(_request_id(request)))

    @api.get("/v1/model/versions", **describe("list_versions"))
    async def list_versions(request: Request) -> Response:
        """Every version that is kept, newest first."""
        read_query(request)
        return _json(await service.list_versions(_request_id(request)))

    @api.post("/v1/model/versions/{version}/promote", **describe("promote_version"))
    async def promote_version(request: Request, version: Version) -> Response:
        """Serve this version, on every replica."""
        document = await read_optional_document(request, max_body_bytes)
        body = validate_body(MoveHeadBody, document, _limits(service))
        return _json(await service.promote(version, body.reason, _request_id(request)))

    @api.post("/v1/model/rollback", **describe("roll_back"))
    async def roll_back(request: Request) -> Response:
        """Serve the version that was the head before, on every replica."""
        document = await read_document(request, max_body_bytes)
        body = validate_body(RollbackBody, document, _limits(service))
        return _json(await service.rollback(body.reason, _request_id(request)))


def _add_state_routes(api: FastAPI, service: RecommenderService) -> None:
    @api.get("/healthz", **describe("healthz"))
    async def healthz(request: Request) -> Response:
        """Whether the replica can do its work."""
        service.check_health()
        return _json({"status": "ok", **service.provenance(_request_id(request))})

    @api.get("/readyz", **describe("readyz"))
    async def readyz(request: Request) -> Response:
        """Whether the replica has caught up with the catalogue and the counters."""
        if not service.follower.is_ready:
            raise Problem("not-ready", "still catching up", headers={"Retry-After": "1"})
        return _json({"status": "ready", **service.provenance(_request_id(request))})


def _add_pages(api: FastAPI) -> None:
    files = console_files()

    @api.get("/", include_in_schema=False)
    @api.get("/console.css", include_in_schema=False)
    @api.get("/console.js", include_in_schema=False)
    async def console(request: Request) -> Response:
        """The web page that shows the state and tries a recommendation, and its parts."""
        return files[request.url.path]

    @api.get("/problems/{slug}", include_in_schema=False)
    async def problem(slug: str) -> HTMLResponse:
        """What a kind of refusal means."""
        if slug not in PROBLEM_TYPES:
            raise Problem("not-found", "there is no such problem")
        return problem_page(PROBLEM_TYPES[slug])


def _add_problem_handlers(api: FastAPI) -> None:
    @api.exception_handler(Problem)
    async def refused(request: Request, error: Problem) -> Response:
        return problem_response(error, _request_id(request))

    @api.exception_handler(ActorsError)
    async def actor_refused(request: Request, error: ActorsError) -> Response:
        return problem_response(problem_of(error), _request_id(request))

    @api.exception_handler(RequestValidationError)
    async def path_refused(request: Request, _: RequestValidationError) -> Response:
        """All that FastAPI checks for us is the number of a version."""
        problem = Problem("not-found", "there is no such version")
        return problem_response(problem, _request_id(request))

    @api.exception_handler(HTTPException)
    async def not_routed(request: Request, error: HTTPException) -> Response:
        problem = Problem("not-found", "no such path")
        if error.status_code == 405:
            allowed = {"Allow": ", ".join(_methods_of(api, request.scope))}
            problem = Problem(
                "method-not-allowed", "this path knows other methods", headers=allowed
            )
        return problem_response(problem, _request_id(request))


def _methods_of(api: FastAPI, scope: Scope) -> list[str]:
    """All methods of a path; Starlette's own answer tells those of its first route alone."""
    return sorted(
        method
        for route in api.routes
        if isinstance(route, Route) and route.matches(scope)[0] is not Match.NONE
        for method in route.methods or ()
    )


def _limits(service: RecommenderService) -> RequestLimits:
    settings = service.settings
    return RequestLimits(
        now_ms=service.now_ms(),
        max_batch=settings.max_batch,
        max_k=settings.max_k,
        max_candidates=settings.max_candidates,
    )


def _request_id(request: Request) -> str:
    return str(request.state.request_id)


def _json(answer: dict[str, Any], status: int = 200) -> Response:
    """Serialised here, not validated again: the documented shapes are held by tests."""
    body = json.dumps(answer, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Response(body.encode("utf-8"), status, media_type="application/json")


def _route_of(path: str) -> str:
    """A tag with few values, for metrics."""
    if path in _ROUTES:
        return path
    return "/v1/items/*" if path.startswith("/v1/items/") else "other"
