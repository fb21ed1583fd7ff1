"""A short `make bench-serve`: malformed requests, and many clients at once."""

import asyncio
import os

import httpx
import pytest
from malformed import by_hand, complaints, generated
from serve import KEY, batches, load
from servers import running

from triptych.inference.pipeline import UnifiedPipeline
from triptych.serving.images.sizes import ImageSizes

HAND_WRITTEN = dict(by_hand())


@pytest.fixture(scope="module")
def server():
    pipeline = UnifiedPipeline.from_pretrained("tiny")
    with running(pipeline, ImageSizes.of(pipeline), api_key=KEY) as server:
        yield server


def headers():
    return {"authorization": f"Bearer {KEY}"}


def test_malformed_requests_are_refused_in_a_sentence(server):
    with server.http(headers=headers()) as client:
        found = {name: complaints(send(client)) for name, send in HAND_WRITTEN.items()}
    wrong = {name: each for name, each in found.items() if each}
    assert not wrong
    assert len(HAND_WRITTEN) > 150


def test_requests_that_break_the_openapi_document(server):
    results = list(generated(server.url, KEY, 6))
    assert results and not [each for each in results if each[1]]


def test_the_document_names_every_status_and_asks_for_the_key(server):
    document = httpx.get(f"{server.url}/openapi.json").json()
    for path in ("/v1/images/generations", "/v1/images/edits", "/v1/chat/completions"):
        operation = document["paths"][path]["post"]
        assert {"200", "400", "401", "413", "429", "500", "503", "504"} <= set(
            operation["responses"]
        )
        assert operation["security"] and operation["requestBody"]
    text = str(document)
    assert "422" not in text and "ValidationError" not in text


def test_many_clients_at_once_all_get_answers(server):
    result = asyncio.run(load(server.url, os.getpid(), clients=16, seconds=3))
    assert result["failed_other_than_429"] == 0, result["failures"]
    assert set(result["statuses"]) <= {200, 429} and result["statuses"][200] >= 16
    assert batches(server.url, 3)["mean_batch_generate"] > 2
