"""Requests made from the OpenAPI document, right and wrong: whatever comes, every answer is one that is documented.

SEGFLEET_TEST_EXAMPLES sets how many (20000 take some minutes).
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving import Service, make_shards, prepare_spec, serving

EXAMPLES = int(os.environ.get("SEGFLEET_TEST_EXAMPLES", "300"))
# No server of ours puts these into a path: they end it.
PATH_TEXT = st.text(min_size=1, max_size=20).filter(lambda text: text not in (".", ".."))
TEXT = st.text(max_size=20) | st.sampled_from(
    ["", "\0", "\ud800", "$(touch x)", "../../etc", "' OR 1=1 --", "x" * 9000]
)
NUMBERS = st.sampled_from([0, -1, 1, 2**63, -(2**70), 1e308, 0.001, float("nan"), float("inf"), True])
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


class World:
    """One service for all examples, with a job and an attempt whose ids the requests may use."""

    def __init__(self, service: Service, shards: str) -> None:
        self.service = service
        self.document = service.http.get("/api/v1/openapi.json", headers=service.bearer).json()
        self.operations = sorted(
            (method, path) for path, methods in self.document["paths"].items() for method in methods
        )
        # Of many routes, the one that makes jobs is asked oftener.
        self.operations += [("post", "/api/v1/jobs")] * 5
        job_id, attempt_id, attempt_bearer = service.running()
        made = service.http.post("/api/v1/tokens", json={"user": "ann"}, headers=service.bearer).json()
        self.known = [job_id, attempt_id, made["id"], "seg", "1", "@best", "project", "user", "cluster", "default"]
        wrong = {"Authorization": "Bearer segfleet_user_x"}
        user = {"Authorization": f"Bearer {made['token']}"}
        self.bearers = [service.bearer, service.bearer, user, attempt_bearer, wrong, {}]
        train = {"kind": "train", "name": "tiny", "data": {"shards": shards}}
        self.specs = [prepare_spec(), train, {**train, "recipe": "ade20k"}, {"kind": "evaluate", "name": "e"}]
        self.statuses: dict[int, int] = {}

    def schema(self, schema: dict[str, Any]) -> dict[str, Any]:
        while "$ref" in schema:
            schema = self.document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        return schema


def fitting(world: World, schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that a schema allows, of those kinds of schemas that the service has."""
    schema = world.schema(schema)
    if "anyOf" in schema:
        return st.one_of([fitting(world, part) for part in schema["anyOf"]])
    if "enum" in schema or "const" in schema:
        return st.sampled_from(schema.get("enum") or [schema["const"]])
    match schema.get("type"):
        case "object":
            needed = set(schema.get("required", ()))
            fields = {name: fitting(world, part) for name, part in schema.get("properties", {}).items()}
            if not fields:
                return st.dictionaries(TEXT, ANYTHING, max_size=3)
            required = {name: part for name, part in fields.items() if name in needed}
            optional = {name: part for name, part in fields.items() if name not in needed}
            return st.fixed_dictionaries(required, optional=optional)
        case "string" if "pattern" in schema:
            return st.from_regex(schema["pattern"], fullmatch=True)
        case "string":
            return st.text(max_size=min(schema.get("maxLength", 20), 20)) | st.sampled_from(world.known)
        case "integer":
            return st.integers(schema.get("minimum"), schema.get("maximum", schema.get("exclusiveMaximum")))
        case "number":
            return st.floats(schema.get("minimum"), schema.get("maximum"))
        case "boolean":
            return st.booleans()
        case "null":
            return st.none()
        case "array":
            return st.lists(fitting(world, schema.get("items", {})), max_size=3)
    return ANYTHING


@st.composite
def specs(draw: st.DrawFn, world: World) -> dict[str, Any]:
    """A valid spec with up to three fields replaced, removed or added."""
    spec: dict[str, Any] = copy.deepcopy(draw(st.sampled_from(world.specs)))
    for _ in range(draw(st.integers(0, 3))):
        holder = spec
        section = draw(st.sampled_from(["", "data", "model", "queue", "train", "optim", "resources", "augment"]))
        if section:
            holder = spec.setdefault(section, {})
        if not isinstance(holder, dict):
            continue
        names = [*sorted(holder), "name", "project", "priority", "after", "workers", "lr", "steps", "variant", "out"]
        name = draw(st.sampled_from(names) | TEXT)
        holder[name] = draw(ANYTHING)
    return spec


def body_of(world: World, operation: dict[str, Any]) -> st.SearchStrategy[Any]:
    schema = world.schema(operation["requestBody"]["content"]["application/json"]["schema"])
    right = fitting(world, schema)
    if "spec" in schema.get("properties", {}):
        right = st.fixed_dictionaries({"spec": specs(world)})
    # Mostly right, so that more than the first check is met.
    return st.one_of(right, right, right, ANYTHING)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder: Path = tmp_path_factory.mktemp("fuzz")
    with serving(folder) as service:
        yield World(service, make_shards(folder / "shards"))


@given(data=st.data())
@settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
def test_every_answer_is_documented(world: World, data: st.DataObject) -> None:
    method, path = data.draw(st.sampled_from(world.operations))
    operation = world.document["paths"][path][method]
    url, query = path, {}
    for parameter in operation.get("parameters", ()):
        value = fitting(world, parameter["schema"])
        if parameter["in"] == "path":
            text = str(data.draw(st.sampled_from(world.known) | value | PATH_TEXT)) or "x"
            url = url.replace(f"{{{parameter['name']}}}", quote(text, safe="@", errors="replace"))
        elif parameter["in"] == "query" and data.draw(st.booleans()):
            query[parameter["name"]] = str(data.draw(value | TEXT)).encode(errors="replace")
    headers = {**data.draw(st.sampled_from(world.bearers)), "Content-Type": "application/json"}
    content = b""
    if "requestBody" in operation:
        content = json.dumps(data.draw(body_of(world, operation))).encode()
    answer = world.service.http.request(method, url, params=query, headers=headers, content=content)
    world.statuses[answer.status_code] = world.statuses.get(answer.status_code, 0) + 1
    said = (method, url, content[:500], answer.status_code, answer.text[:500])
    assert answer.status_code < 500, said
    assert "Traceback" not in answer.text, said
    if answer.status_code >= 400:
        assert answer.headers["Content-Type"] == "application/problem+json", said
        assert {"status", "title", "code", "message"} <= answer.json().keys(), said
    # What a path turned into may belong to another route, whose answers are documented there.
    if url.count("/") == path.count("/"):
        assert str(answer.status_code) in operation["responses"], said


def test_the_requests_reached_all_kinds_of_answers(world: World) -> None:
    if not world.statuses:
        pytest.skip("needs the requests of the other test in the same process")
    assert {200, 201, 401, 403, 404, 422} <= world.statuses.keys()
    assert world.service.http.get("/healthz").json() == {"status": "ok"}
