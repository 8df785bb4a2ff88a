"""The OpenAPI document says all that a client must know; the handbook of the API shows what really comes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from segfleet.server.rights import PAGE_RIGHTS
from segfleet.server.rights import RIGHTS as ALL_RIGHTS
from serving import Service

RIGHTS = {route: right for route, right in ALL_RIGHTS.items() if route not in PAGE_RIGHTS}
HANDBOOK = Path(__file__).parents[3] / "docs" / "api.md"
ROW = re.compile(r"^\| `([A-Z]+) (/\S*)` \| (\w+) \|", re.MULTILINE)
# `METHOD PATH [BODY]` and, behind an arrow, the status and the answer's document where one is shown.
EXAMPLE = re.compile(
    r"^> (GET|POST|PUT|DELETE) (\S+)(?: (\{.*\}))?\n< (\d{3})(?: (\S+))?\n((?:[ {}\]].*\n)*)", re.MULTILINE
)


def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (method, path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if path != "/healthz"
    ]


@pytest.fixture
def document(service: Service) -> dict[str, Any]:
    answer: dict[str, Any] = service.http.get("/api/v1/openapi.json", headers=service.bearer).json()
    return answer


def test_every_route_says_what_it_does_takes_and_gives(document: dict[str, Any]) -> None:
    found = operations(document)
    assert len(found) > 50
    for method, path, operation in found:
        place = f"{method} {path}"
        assert operation["description"].endswith((".", "`.")), place
        assert operation["tags"], place
        assert operation["security"] == [{"token": []}], place
        for parameter in operation.get("parameters", []):
            assert parameter.get("description"), f"{place}: {parameter['name']}"
        good = [answer for status, answer in operation["responses"].items() if status.startswith("2")]
        for answer in good:
            schemas = [content["schema"] for content in answer["content"].values()]
            assert schemas, place
            assert all("$ref" in schema or schema.get("type") == "string" for schema in schemas), place
        problems = [answer for status, answer in operation["responses"].items() if status.startswith(("4", "5"))]
        assert {next(iter(answer["content"])) for answer in problems} == {"application/problem+json"}, place
        assert good, place
    assert [name for name, schema in document["components"]["schemas"].items() if not schema.get("description")] == []


def test_generated_clients_have_a_name_for_each_route(document: dict[str, Any]) -> None:
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(names)) == len(names)
    assert [name for name in names if not re.fullmatch(r"[a-z]+(_[a-z]+)+", name)] == []
    listed = {(method.upper(), path.removeprefix("/api/v1")) for method, path, _ in operations(document)}
    assert listed == {route for route in RIGHTS if route[1] != "/healthz"}


def test_the_handbook_names_every_route_of_users_and_its_role() -> None:
    text = HANDBOOK.read_text(encoding="utf-8")
    named = {(method, path): role for method, path, role in ROW.findall(text)}
    users = {route: right for route, right in RIGHTS.items() if not route[1].startswith(("/attempts/", "/healthz"))}
    del users["GET", "/metrics"]
    assert named == {route: right.role for route, right in users.items() if right is not None}


def test_the_examples_of_the_handbook_are_what_happens(service: Service) -> None:
    """In order, on an empty queue; ids and times are the reader's own."""
    examples = EXAMPLE.findall(HANDBOOK.read_text(encoding="utf-8"))
    assert len(examples) >= 8
    known: dict[str, str] = {}
    for method, path, body, status, kind, shown in examples:
        for name, value in known.items():
            path = path.replace(name, value)
        content = {} if method == "GET" else {"json": json.loads(body or "{}")}
        answer = service.http.request(method, f"/api/v1{path}", headers=service.bearer, **content)
        assert answer.status_code == int(status), (path, answer.text)
        assert answer.headers["Content-Type"].startswith(kind or "application/json"), path
        if shown.strip():
            wanted, found = json.loads(shown), answer.json()
            _compare(wanted, found, known, path)


def _compare(wanted: Any, found: Any, known: dict[str, str], place: str) -> None:
    """All that is shown is there; what is written in capitals or with an ellipsis may be anything of its type."""
    if isinstance(wanted, dict):
        assert isinstance(found, dict), place
        for key, value in wanted.items():
            if key == "...":
                continue
            assert key in found, f"{place}: {key}"
            _compare(value, found[key], known, f"{place}.{key}")
        assert "..." in wanted or wanted.keys() == found.keys(), f"{place}: {sorted(found.keys() - wanted.keys())}"
    elif isinstance(wanted, list):
        assert len(wanted) == len(found), place
        for number, (one, other) in enumerate(zip(wanted, found, strict=True)):
            _compare(one, other, known, f"{place}[{number}]")
    elif isinstance(wanted, str) and wanted.isupper():
        assert isinstance(found, str), place
        known[wanted] = found
    elif isinstance(wanted, float):
        assert isinstance(found, float), place
    else:
        assert wanted == found, place
