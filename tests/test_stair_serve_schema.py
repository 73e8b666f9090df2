"""The OpenAPI schema of `stair serve`, against what the service does (schemathesis), and its examples."""

from __future__ import annotations

import json
from collections.abc import Iterator

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)
from serving import Client, running, save_tiny_collection
from stair.serve import Folder, Settings

# Not positive_data_acceptance: no schema says which terms there are, or that indices and values are as many.
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
]
TAKES_SOMETHING = ("/v1/search", "/v1/search/image", "/v1/picture")  # that could be wrong


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = save_tiny_collection(tmp_path_factory.mktemp("schema"))
    with running(Folder(folder), Settings(max_k=20, max_text=200)) as made:
        yield made


@pytest.fixture(scope="module")
def api(client: Client) -> schemathesis.openapi.OpenApiSchema:
    return schemathesis.openapi.from_url(f"http://127.0.0.1:{client.port}/openapi.json")


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=lambda mode: mode.value)
def test_whatever_is_sent_gets_an_answer_that_the_schema_has(
    api: schemathesis.openapi.OpenApiSchema, mode: GenerationMode
) -> None:
    operations = [found.ok() for found in api.get_all_operations()]
    assert len(operations) == 8
    checked = {
        operation.path: check(operation, mode)
        for operation in operations
        if mode == GenerationMode.POSITIVE or operation.path in TAKES_SOMETHING
    }
    assert all(checked[path] >= 10 for path in TAKES_SOMETHING), checked


def check(operation: schemathesis.openapi.APIOperation, mode: GenerationMode) -> int:
    """The number of requests that were sent and whose answers were right."""
    sent = []

    @hypothesis.settings(
        max_examples=20, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def send(case: schemathesis.Case) -> None:
        case.call_and_validate(checks=CHECKS)
        sent.append(case)

    send()
    return len(sent)


def test_the_schema_has_every_limit_and_its_examples_work(client: Client) -> None:
    described = client.ask("GET", "/openapi.json").json
    assert set(described["paths"]) == {
        "/v1/search",
        "/v1/search/image",
        "/v1/index",
        "/v1/picture",
        "/v1/reload",
        "/healthz",
        "/readyz",
        "/metrics",
    }
    models = described["components"]["schemas"]
    assert models["TextQuery"]["properties"]["text"]["maxLength"] == 200
    assert models["VectorQuery"]["properties"]["k"]["maximum"] == 20
    asked = described["paths"]["/v1/search"]["post"]
    assert set(asked["responses"]) == {"200", "400", "413", "422", "503", "504"}
    kinds = asked["requestBody"]["content"]["application/json"]["schema"]["oneOf"]
    assert len(kinds) == 3
    for kind in kinds:
        model = models[kind["$ref"].rpartition("/")[2]]
        assert model["additionalProperties"] is False
        (example,) = model["examples"]
        assert client.ask("POST", "/v1/search", json.dumps(example), {"Content-Type": "application/json"}).status == 200
