"""The operator's bounds and fixed values on specs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from factories import make_queue, train_document
from fakes import FakeClock
from segfleet.errors import SpecError
from segfleet.queue.limits import limit_problems, rule_problems, with_forced
from segfleet.queue.policy import beyond_limits, check_rules, force


@pytest.mark.parametrize(
    ("limits", "forced", "found"),
    [
        ({"resources": {"workers": 8}, "queue": {"time_limit": "48h"}}, {"queue": {"max_retries": 5}}, []),
        ({"resources": {"wrokers": 8}}, {}, ["limits.resources.wrokers: no spec has this field"]),
        ({"resources": {"workers": "many"}}, {}, ["limits.resources.workers: 'many' is no number"]),
        ({"resources": {"workers": True}}, {}, ["limits.resources.workers: True is no number"]),
        ({"queue": {"time_limit": 48}}, {}, ["limits.queue.time_limit: 48 is no duration"]),
        ({}, {"queue": {"project": "vision"}}, ["forced.queue.project: names the job"]),
        ({}, {"kind": "train"}, ["forced.kind: names the job"]),
        ({}, {"eval": {"window": {"deep": 1}}}, ["forced.eval.window.deep: no spec has this field"]),
        ({"queue": {"start_within": "6h"}, "train": {"ema": 0.9}}, {"eval": {"scales": [1.0, 2.0]}}, []),
        ({"eval": {"scales": 3}}, {}, ["limits.eval.scales: this field is no number"]),
        ({"queue": {"after": 1}, "name": 3}, {}, ["limits.queue.after: this field", "limits.name: this field"]),
        ({"train": 3, "train.compile": 1}, {}, ["limits.train: this field is no", "limits.train.compile: this field"]),
        ({"data": {"mix": {"weight": 2}}}, {}, ["limits.data.mix.weight: no spec has this field"]),
        ({}, {"data": {"mix": {"weight": 2}}}, ["forced.data.mix.weight: no spec has this field"]),
    ],
)
def test_rules_are_of_fields_that_specs_have(limits: Any, forced: Any, found: list[str]) -> None:
    problems = [str(problem) for problem in rule_problems(limits, forced)]
    assert len(problems) == len(found)
    assert all(text.startswith(begin) for text, begin in zip(problems, found, strict=True))


def test_a_forced_value_goes_where_the_kind_has_such_a_section() -> None:
    forced = {"queue": {"max_retries": 5}, "train": {"precision": "bf16"}}
    document = {"kind": "train", "queue": {"priority": 3, "max_retries": 1}}
    result, changed = with_forced(document, forced)
    assert result == {"kind": "train", "queue": {"priority": 3, "max_retries": 5}, "train": {"precision": "bf16"}}
    assert changed == ("queue.max_retries", "train.precision")
    assert document["queue"] == {"priority": 3, "max_retries": 1}
    assert with_forced({"kind": "prepare", "queue": {"max_retries": 5}}, forced)[1] == ()
    assert with_forced({"kind": "nonsense"}, forced) == ({"kind": "nonsense"}, ())


def test_bounds_are_upper_ones_and_a_bounded_duration_must_be_given() -> None:
    limits = {"resources": {"workers": 2}, "queue": {"time_limit": "1h", "priority": 60}, "samples": 9}
    spec = train_document(workers=2, time_limit="60m", priority=60)
    assert limit_problems(spec, limits, "the cluster") == []
    spec = train_document(workers=4, priority=61)
    problems = limit_problems(spec, limits, "project vision")
    assert [problem.path for problem in problems] == ["resources.workers", "queue.time_limit", "queue.priority"]
    assert "4 is too much" in str(problems[0])
    assert "at most 2 is the rule of project vision" in str(problems[0])
    assert "missing" in str(problems[1])
    assert "2h is too long" in str(limit_problems(train_document(time_limit="2h"), limits, "x")[0])


def test_the_clusters_rules_win_over_the_projects() -> None:
    stored = [
        ("cluster", "cluster", {"forced": {"queue": {"max_retries": 7}}}),
        ("project", "default", {"forced": {"queue": {"max_retries": 5, "priority": 9}}}),
        ("project", "other", {"forced": {"queue": {"priority": 1}}, "limits": {"queue": {"priority": 0}}}),
    ]
    document, changed = force(stored, {"kind": "train"})
    assert document["queue"] == {"max_retries": 7, "priority": 9}
    assert changed == ("queue.max_retries", "queue.priority")
    assert beyond_limits(stored, train_document()) == []
    assert [problem.path for problem in beyond_limits(stored, train_document(project="other"))] == ["queue.priority"]


def test_rules_that_mean_nothing_are_not_stored() -> None:
    with pytest.raises(SpecError, match="no spec has this field"):
        check_rules("project", "vision", {"limits": {"resources": {"wrokers": 8}}})
    with pytest.raises(SpecError, match="limits"):
        check_rules("user", "ann", {"limits": {"resources": {"workers": 8}}})


def test_a_job_beyond_the_bounds_is_refused_and_jobs_accepted_before_stay(tmp_path: Path) -> None:
    queue = make_queue(tmp_path, FakeClock())
    before, _ = queue.submit(train_document(workers=4), owner="ann")
    queue.set_policy("cluster", "cluster", {"limits": {"resources": {"workers": 2}}})
    with pytest.raises(SpecError, match="at most 2 is the rule of the cluster"):
        queue.submit(train_document(workers=4), owner="ann")
    with pytest.raises(SpecError, match="at most 2 is the rule of the cluster"):
        queue.check(train_document(workers=4), "ann")
    assert queue.get(before.id).state == "queued"
    assert len(queue.list()) == 1
