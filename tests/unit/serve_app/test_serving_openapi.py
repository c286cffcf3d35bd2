"""The OpenAPI document: complete, self-contained, and true to the schemas that are enforced."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from serving_fakes import NOW_MS, FakeActors, service_over

from serve_app.operations import OPERATIONS
from serve_app.problem_types import PROBLEM_TYPES
from serve_app.routes import build_api
from serve_app.schemas import RequestLimits, validate_body


@pytest.fixture
async def document() -> dict[str, Any]:
    return build_api(service_over(FakeActors())).openapi()


async def test_every_route_is_documented_with_an_example(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    found = {
        operation["operationId"]: operation
        for path in document["paths"].values()
        for operation in path.values()
    }
    assert found.keys() == OPERATIONS.keys()
    for name, operation in found.items():
        documented = OPERATIONS[name]
        answer = operation["responses"][str(documented.status)]["content"]["application/json"]
        documented.answer.model_validate(answer["example"])
        assert operation["summary"]
        assert "HTTPValidationError" not in json.dumps(operation)


async def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    names = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document)))
    assert names
    assert names <= document["components"]["schemas"].keys()


def test_every_example_body_is_accepted() -> None:
    limits = RequestLimits(now_ms=NOW_MS)
    for operation in OPERATIONS.values():
        for example in operation.body_examples.values():
            [model] = [
                body
                for body in operation.bodies
                if len(operation.bodies) == 1
                or (next(iter(example)) in ("events", "items")) == body.__name__.endswith("Batch")
            ]
            validate_body(model, example, limits)


def test_every_documented_problem_exists() -> None:
    for operation in OPERATIONS.values():
        assert set(operation.problems) <= PROBLEM_TYPES.keys()
