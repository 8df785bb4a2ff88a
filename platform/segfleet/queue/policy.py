"""The operator's rules as plain data: checked, stored, and turned into what the scheduler obeys."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from segfleet.errors import Problem, SpecError
from segfleet.queue.limits import limit_problems, rule_problems, with_forced
from segfleet.queue.model import Document
from segfleet.queue.scheduling.shares import HALF_LIFE_S
from segfleet.queue.scheduling.values import Policy, Quota
from segfleet.spec.filling import leaves
from segfleet.spec.sections import JOB_NAME, Duration, QueueSpec, Section, duration_s

Scope = Literal["cluster", "project", "user"]
CLUSTER = "cluster"
DEFAULT_PROJECT = str(QueueSpec.model_fields["project"].default)

_Count = Annotated[int, Field(ge=0, le=1_000_000)]


class UserRules(Section):
    """Bounds of one user."""

    max_workers: _Count | None = Field(None, description="workers at a time")
    max_gpus: _Count | None = Field(None, description="GPUs at a time")
    max_running: _Count | None = Field(None, description="running jobs")
    max_queued: _Count | None = Field(None, description="waiting jobs; more are refused at submit")


class SpecRules(Section):
    """What specs may hold, checked at submit; accepted jobs are left alone."""

    limits: dict[str, Any] = Field({}, description="upper bounds of spec fields, nested as in a spec")
    forced: dict[str, Any] = Field({}, description="values put into every spec, nested as in a spec")

    @model_validator(mode="after")
    def _of_specs(self) -> Self:
        problems = rule_problems(self.limits, self.forced)
        if problems:
            raise ValueError("; ".join(map(str, problems)))
        return self


class ProjectRules(UserRules, SpecRules):
    """Bounds, guarantee and weight of one project, and rules for its specs."""

    workers: _Count | None = Field(None, description="guaranteed workers; idle ones are lent")
    gpus: _Count | None = Field(None, description="guaranteed GPUs; idle ones are lent")
    weight: Annotated[float, Field(ge=0.01, le=100.0)] = Field(1.0, description="share relative to other projects")


class ClusterRules(SpecRules):
    """How the whole queue is run, and rules for all specs."""

    preempt_for_priority: bool = Field(False, description="jobs of higher priority may stop lower ones")
    preempt_to_reclaim: bool = Field(False, description="projects within their guarantee may stop borrowers")
    min_run: Duration = Field("10m", description="no attempt makes room before it has run so long")
    grace: Duration = Field("2m", description="time to write a checkpoint before it is stopped")
    half_life: Duration = Field(f"{int(HALF_LIFE_S) // 86_400}d", description="age at which use counts half")
    entry_penalty: Duration = Field("10m", description="use counted at each start of a job")
    max_overtaken: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        50, description="later jobs of its priority that may start before a job that could have"
    )


_RULES: dict[str, type[Section]] = {"cluster": ClusterRules, "project": ProjectRules, "user": UserRules}


def check_rules(scope: str, name: str, rules: Document) -> Document:
    """Rules that can be stored: what is given, without what is null.

    Raises:
        SpecError: unknown scope or field, or a value out of range.
    """
    model = _RULES.get(scope)
    if model is None:
        raise SpecError([Problem("scope", f"{scope!r} is unknown", f"use {', '.join(_RULES)}")])
    if (scope == CLUSTER and name != CLUSTER) or not JOB_NAME.fullmatch(name):
        raise SpecError([Problem("name", f"{name!r} cannot name a {scope}")])
    given = {field: value for field, value in rules.items() if value is not None}
    try:
        model.model_validate(given)
    except ValidationError as error:
        problems = [Problem(".".join(map(str, e["loc"])), e["msg"]) for e in error.errors(include_url=False)]
        raise SpecError(problems) from error
    return given


def difference(before: Document, after: Document) -> str:
    """What a change of rules changes, for the audit log: `max_workers: 8 -> 16`; null: not set."""
    names = [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
    shown = {name: [json.dumps(rules.get(name)) for rules in (before, after)] for name in names}
    return "; ".join(f"{name}: {old} -> {new}" for name, (old, new) in shown.items()) or "nothing changed"


def policy_of(stored: Iterable[tuple[str, str, Document]]) -> tuple[Policy, float]:
    """What the scheduler obeys, and the half-life of use in seconds.

    Args:
        stored: (scope, name, rules) that `check_rules` has passed.
    """
    rules = {(scope, name): _RULES[scope].model_validate(document) for scope, name, document in stored}
    cluster = rules.get((CLUSTER, CLUSTER), ClusterRules.model_validate({}))
    assert isinstance(cluster, ClusterRules)
    projects = {name: rule for (_, name), rule in rules.items() if isinstance(rule, ProjectRules)}
    users = {name: rule for (scope, name), rule in rules.items() if scope == "user"}
    policy = Policy(
        projects={name: _quota(rule) for name, rule in projects.items()},
        users={name: _quota(rule) for name, rule in users.items()},
        weights={name: rule.weight for name, rule in projects.items()},
        preempts_for_priority=cluster.preempt_for_priority,
        preempts_to_reclaim=cluster.preempt_to_reclaim,
        min_run_s=duration_s(cluster.min_run),
        grace_s=duration_s(cluster.grace),
        entry_penalty_s=duration_s(cluster.entry_penalty),
        max_overtaken=cluster.max_overtaken,
    )
    return policy, float(duration_s(cluster.half_life))


def force(stored: Iterable[tuple[str, str, Document]], document: Document) -> tuple[Document, tuple[str, ...]]:
    """A user's document with the values that its project and, above it, the cluster force.

    Returns:
        The document, and the paths at which it was changed.
    """
    queue = document.get("queue")
    project = queue.get("project", DEFAULT_PROJECT) if isinstance(queue, dict) else DEFAULT_PROJECT
    changed: tuple[str, ...] = ()
    for _, rules in _spec_rules(stored, project):
        document, more = with_forced(document, rules.get("forced", {}))
        changed += more
    return document, tuple(dict.fromkeys(changed))


def is_forced(stored: Iterable[tuple[str, str, Document]], project: str, path: str) -> bool:
    """Whether the project or the cluster fixes a field for the project's jobs."""
    return any(path in leaves(rules.get("forced", {})) for _, rules in _spec_rules(stored, project))


def beyond_limits(stored: Iterable[tuple[str, str, Document]], spec: Document) -> list[Problem]:
    """Where a resolved spec is beyond what its project or the cluster allows."""
    found: list[Problem] = []
    for whose, rules in _spec_rules(stored, spec["queue"]["project"]):
        found += limit_problems(spec, rules.get("limits", {}), whose)
    return found


def _spec_rules(stored: Iterable[tuple[str, str, Document]], project: object) -> list[tuple[str, Document]]:
    """The project's, then the cluster's: what is applied later wins."""
    rules = {(scope, name): document for scope, name, document in stored}
    own = rules.get(("project", project), {}) if isinstance(project, str) else {}
    return [(f"project {project}", own), ("the cluster", rules.get((CLUSTER, CLUSTER), {}))]


def _quota(rule: Section) -> Quota:
    fields: dict[str, Any] = rule.model_dump(exclude={"weight", "limits", "forced"})
    return Quota(**fields)
