from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from deployment import DOCKER, ROOT, compose
from segfleet.queue.board import Board
from segfleet.queue.scheduling.values import Node
from segfleet.queue.states import AttemptState, FailureClass, JobState
from segfleet.telemetry import TURNS, WEBHOOK_TRIES
from serving import Service

MONITORING = DOCKER / "monitoring"
RULES: list[dict[str, Any]] = yaml.safe_load((MONITORING / "alerts.yml").read_text(encoding="utf-8"))["groups"][0][
    "rules"
]
DASHBOARD = json.loads((MONITORING / "grafana-dashboard.json").read_text(encoding="utf-8"))
TARGETS = [(panel["title"], target) for panel in DASHBOARD["panels"] for target in panel["targets"]]
EXPRESSIONS = {rule["alert"]: rule["expr"] for rule in RULES} | {
    f"{title}/{target['refId']}": target["expr"] for title, target in TARGETS
}
# Series and labels that Prometheus adds to what it scrapes.
ADDED_LABELS = {"job", "instance", "le"}
VALUES = {
    ("segfleet_jobs", "state"): set(JobState),
    ("segfleet_attempts_ended_total", "state"): set(AttemptState),
    ("segfleet_attempts_ended_total", "failure"): {"", *FailureClass},
    ("segfleet_dispatch_turns_total", "outcome"): {"done", "failed"},
}


@pytest.fixture
def series(service: Service) -> dict[str, set[str]]:
    """Every series of the service, with its labels."""
    service.queue.set_policy("project", "maps", {"workers": 1})
    hook = {"url": "https://hooks.example.org/in", "events": ["submitted"]}
    assert service.http.post("/api/v1/webhooks", json=hook, headers=service.bearer).status_code == 201
    service.queue.board = Board((Node(4, 1),))
    service.running(queue={"project": "maps"})
    _, attempt_id, bearer = service.running()
    failure = {"failure": {"class": "user", "message": "no"}}
    service.http.post(f"/api/v1/attempts/{attempt_id}/fail", json=failure, headers=bearer)
    WEBHOOK_TRIES.labels("taken").inc(0)
    TURNS.labels("done").inc(0)
    text = service.http.get("/metrics", headers=service.bearer).text
    found: dict[str, set[str]] = {"up": set()}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
        # Those without a sample yet are told by their type.
        found.setdefault(family.name + ("_total" if family.type == "counter" else ""), set())
    return found


def named(expression: str) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """Series in an expression, each with its matchers: label, operator, value."""
    found = re.findall(r"\b(segfleet_\w+|up)\b(?:\{([^}]*)\})?", expression)
    return [(name, re.findall(r'(\w+)(=~|!~|!=|=)"([^"]*)"', matchers)) for name, matchers in found]


def grouping(expression: str) -> set[str]:
    """Labels that an expression groups by."""
    return {label for text in re.findall(r"\bby \(([^)]*)\)", expression) for label in re.split(r",\s*", text)}


def test_every_metric_and_label_that_is_asked_for_exists(series: dict[str, set[str]]) -> None:
    for place, expression in EXPRESSIONS.items():
        asked = named(expression)
        assert asked, place
        labels: set[str] = set()
        for name, matchers in asked:
            assert name in series, f"{place}: {name}"
            assert {label for label, _, _ in matchers} <= series[name] | ADDED_LABELS, place
            labels |= series[name]
        if any(series[name] for name, _ in asked):
            assert grouping(expression) <= labels | ADDED_LABELS, place


def test_values_that_are_matched_exist() -> None:
    for place, expression in EXPRESSIONS.items():
        for name, matchers in named(expression):
            for label, operator, value in matchers:
                values = VALUES.get((name, label))
                for one in value.split("|") if "~" in operator else [value]:
                    assert values is None or one in values, f"{place}: {label}={one}"


def test_every_metric_of_the_service_is_on_the_dashboard(series: dict[str, set[str]]) -> None:
    shown = {name for _, target in TARGETS for name, _ in named(target["expr"])}
    bases = {re.sub("_(bucket|count|sum|total|created)$", "", name) for name in series} - {"up"}
    assert bases - {re.sub("_(bucket|count|sum|total)$", "", name) for name in shown} == set()


def test_a_metric_that_is_gone_would_be_found(series: dict[str, set[str]]) -> None:
    assert "segfleet_jobs" in series
    assert {"state", "project"} == series["segfleet_jobs"]
    assert named('sum(segfleet_job{state="queued"}) > 1') == [("segfleet_job", [("state", "=", "queued")])]
    assert "segfleet_job" not in series


def test_brackets_of_expressions_are_closed() -> None:
    for place, expression in EXPRESSIONS.items():
        for opening, closing in ("()", "[]", "{}"):
            assert expression.count(opening) == expression.count(closing), place


def test_every_alert_is_explained_and_told_how_urgent() -> None:
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    assert [rule["alert"] for rule in RULES if f"`{rule['alert']}`" not in text] == []
    assert {rule["labels"]["severity"] for rule in RULES} == {"page", "ticket"}
    assert all(rule["annotations"]["summary"] for rule in RULES)
    named_in_text = set(re.findall(r"^\| `([A-Z][a-z]\w+)` \|", text, re.MULTILINE))
    assert named_in_text == {rule["alert"] for rule in RULES}


def test_panels_have_numbers_of_their_own_and_do_not_overlap() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (panel["gridPos"]["x"] + dx, panel["gridPos"]["y"] + dy)
        for panel in panels
        for dx in range(panel["gridPos"]["w"])
        for dy in range(panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


def test_prometheus_asks_where_the_service_listens_and_with_its_token() -> None:
    document = yaml.safe_load((MONITORING / "prometheus.yml").read_text(encoding="utf-8"))
    [job] = document["scrape_configs"]
    services = compose({"SEGFLEET_HOST": "fleet.example.org"})["services"]
    environment = services["service"]["environment"]
    [target] = job["static_configs"][0]["targets"]
    host, _, port = target.partition(":")
    assert host in environment["SEGFLEET_HOST_NAMES"].split(",")
    assert environment["SEGFLEET_LISTEN"].endswith(f":{port}")
    assert job["authorization"]["credentials_file"] == "/run/secrets/prometheus-token"
    assert "prometheus-token" in services["prometheus"]["secrets"]
    assert document["rule_files"] == ["alerts.yml"]
