"""Requests made up from our own OpenAPI document, good and bad, are answered as it says.

`RHEOS_HTTP_EXAMPLES` is how many are made up for each operation, beside those that go through its
bounds one by one: 600 give over 5,000 in all, 7,000 over 50,000.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import schemathesis
from schemathesis.checks import load_all_checks, not_a_server_error
from schemathesis.python.asgi import shutdown_lifespans
from schemathesis.specs.openapi.checks import (
    allow_header_conformance,
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)
from serving_fakes import FakeActors, films, service_over

from serve_app.operations import OPERATIONS
from serve_app.routes import build_api

EXAMPLES = int(os.environ.get("RHEOS_HTTP_EXAMPLES", "600"))
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
    allow_header_conformance,
]
CONFIG = schemathesis.Config.from_dict(
    {
        # 413 is a refusal too: a thousand texts, each of them too long, are too much to read.
        "checks": {
            "negative_data_rejection": {
                "expected-statuses": ["400", "404", "405", "413", "415", "422"]
            }
        },
    }
)
ACTORS = FakeActors(films(12))
API = build_api(service_over(ACTORS))
SCHEMA = schemathesis.openapi.from_dict(API.openapi(), config=CONFIG)
SCHEMA.app = API

load_all_checks()
num_answers: Counter[str] = Counter()


@pytest.fixture(scope="module", autouse=True)
def versions() -> Iterator[None]:
    """Two, so that the head can be moved."""
    for _ in range(2):
        asyncio.run(ACTORS.store.publish(ACTORS.catalog))
    yield
    shutdown_lifespans()


@SCHEMA.parametrize()
@hypothesis.settings(
    max_examples=EXAMPLES, derandomize=True, suppress_health_check=list(hypothesis.HealthCheck)
)
@pytest.mark.timeout(60 + EXAMPLES)
def test_an_operation_answers_as_documented(case: schemathesis.Case[Any]) -> None:
    num_answers[case.operation.label] += 1
    case.call_and_validate(checks=CHECKS)


def test_there_were_many_requests_to_every_operation() -> None:
    if len(num_answers) < len(OPERATIONS):
        pytest.skip("not all operations were asked")
    print(f"requests {num_answers.total()}, by operation {dict(num_answers)}")
    assert num_answers.total() >= min(5_000, 8 * EXAMPLES)
