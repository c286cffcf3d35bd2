"""The OpenAPI 3.1 document, written from the table in `operations`."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from serve_app.answers import ProblemDocument
from serve_app.operations import OPERATIONS, PROVENANCE_EXAMPLE, Operation
from serve_app.problem_types import PROBLEM_TYPES

_REF = "#/components/schemas/{model}"
_REQUEST_ID = PROVENANCE_EXAMPLE["request_id"]


def describe(name: str) -> dict[str, Any]:
    """Arguments for the decorator of the route of that name."""
    operation = OPERATIONS[name]
    extra: dict[str, Any] = {}
    if operation.bodies:
        refs = [{"$ref": _REF.format(model=body.__name__)} for body in operation.bodies]
        content = {
            "schema": refs[0] if len(refs) == 1 else {"anyOf": refs},
            "examples": {key: {"value": value} for key, value in operation.body_examples.items()},
        }
        extra["requestBody"] = {
            "required": operation.body_required,
            "content": {"application/json": content},
        }
    if operation.query:
        extra["parameters"] = [
            {"name": key, "in": "query", "description": text, "schema": schema}
            for key, (text, schema) in operation.query.items()
        ]
    return {
        "operation_id": name,
        "tags": [operation.tag],
        "responses": {**_answer(operation), **_problems(operation.problems)},
        "openapi_extra": extra,
    }


def document_api(api: FastAPI) -> None:
    """Let the application tell its own document, with the schemas that routes read by hand."""

    def openapi() -> dict[str, Any]:
        if api.openapi_schema is None:
            document = get_openapi(
                title=api.title,
                version=api.version,
                summary=api.summary,
                description=api.description,
                routes=api.routes,
            )
            document.setdefault("components", {}).setdefault("schemas", {}).update(_schemas())
            api.openapi_schema = document
        return api.openapi_schema

    api.openapi = openapi  # type: ignore[method-assign]


def _answer(operation: Operation) -> dict[int | str, dict[str, Any]]:
    ref = {"$ref": _REF.format(model=operation.answer.__name__)}
    example = {**operation.answer_example, **PROVENANCE_EXAMPLE}
    return {
        operation.status: {
            "description": (operation.answer.__doc__ or "").strip(),
            "content": {"application/json": {"schema": ref, "example": example}},
        }
    }


def _problems(slugs: tuple[str, ...]) -> dict[int | str, dict[str, Any]]:
    ref = {"$ref": _REF.format(model=ProblemDocument.__name__)}
    by_status: dict[int | str, dict[str, Any]] = {}
    for kind in sorted((PROBLEM_TYPES[slug] for slug in slugs), key=lambda k: k.status):
        documented = by_status.setdefault(
            kind.status,
            {
                "description": "",
                "content": {"application/problem+json": {"schema": ref, "examples": {}}},
            },
        )
        text = f"`/problems/{kind.slug}`: {kind.title}."
        documented["description"] = f"{documented['description']} {text}".strip()
        documented["content"]["application/problem+json"]["examples"][kind.slug] = {
            "value": {
                "type": f"/problems/{kind.slug}",
                "title": kind.title,
                "status": kind.status,
                "detail": kind.explanation,
                "instance": f"/requests/{_REQUEST_ID}",
                "request_id": _REQUEST_ID,
            }
        }
    return by_status


def _schemas() -> dict[str, Any]:
    shown: list[type[BaseModel]] = [ProblemDocument]
    for operation in OPERATIONS.values():
        shown += [operation.answer, *operation.bodies]
    _, definitions = models_json_schema(
        [(model, "validation") for model in dict.fromkeys(shown)], ref_template=_REF
    )
    return dict(definitions["$defs"])
