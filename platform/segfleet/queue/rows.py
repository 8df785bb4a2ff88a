"""From rows of the queue's tables to its values."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from sqlalchemy import Row

from segfleet.queue.model import Attempt, Event, Job
from segfleet.queue.scheduling.values import Gang
from segfleet.queue.states import AttemptState, JobState, StopFor


def job_of(row: Row[Any]) -> Job:
    """A job from its row."""
    fields = dict(row._mapping)
    for name in ("workers", "max_workers", "cpus", "gpus", "sizes", "lane"):
        fields.pop(name)
    stop_for = None if row.stop_for is None else StopFor(row.stop_for)
    return Job(**{**fields, "state": JobState(row.state), "gang": gang_of_row(row), "stop_for": stop_for})


def gang_of_row(row: Row[Any]) -> Gang:
    """What a job asks of the cluster, from its row or a part of it."""
    return Gang(row.workers, row.cpus, row.gpus, row.max_workers, tuple(row.sizes or ()))


def attempt_of(row: Row[Any]) -> Attempt:
    """An attempt from its row, without the digests of its secrets."""
    fields = {name: value for name, value in row._mapping.items() if not name.endswith("_hash")}
    told = {"lives": tuple(row.lives or ()), "groups": dict(row.groups or {})}
    return Attempt(**{**fields, **told, "state": AttemptState(row.state)})


def event_of(row: Row[Any]) -> Event:
    """A line of history from its row, which may hold more."""
    values = {one.name: row._mapping[one.name] for one in fields(Event)}
    states = {name: None if values[name] is None else JobState(values[name]) for name in ("source", "target")}
    return Event(**{**values, **states})
