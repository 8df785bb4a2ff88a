"""Recorded trials and a service made of dictionaries: what the tests of searches without Ray work on."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from segfleet.errors import ServiceError
from segfleet.spec.kinds import SearchSpec
from segfleet.spec.resolve import resolve_spec
from segfleet_jobs.attempt import Credentials, Grant


def make_search(
    space: dict[str, Any] | None = None, base: dict[str, Any] | None = None, final: Any = None, **search: Any
) -> SearchSpec:
    """A search over four learning rates unless told otherwise, with four validations a trial."""
    document = {
        "kind": "search",
        "name": "tiny",
        "base": {
            "data": {"shards": "/data/shards"},
            "train": {"steps": 8, "validate_every": 2, "global_batch": 2, "crop": 32},
            "eval": {"window": 48, "stride": 48},
            **(base or {}),
        },
        "space": space or {"optim.lr": [0.001, 0.002, 0.003, 0.004]},
        "search": search,
        **({"final": final} if final else {}),
    }
    spec = resolve_spec(document)
    assert isinstance(spec, SearchSpec)
    return spec


def make_grant(folder: Path, workers: int = 1) -> Grant:
    return Grant(
        Credentials("http://127.0.0.1:1", "job-aaaaaaaa-a1", "secret"), "job-aaaaaaaa", {}, str(folder), workers
    )


def trial(
    number: int, state: str = "succeeded", values: tuple[float | None, ...] = (), **changes: Any
) -> dict[str, Any]:
    """A trial of 8 steps that has reported these values, one every two steps."""
    reports = [
        {"validation": i, "step": 2 * i, "value": value, "miou": value, "seconds": 10.0 * i, "at": float(i)}
        for i, value in enumerate(values, 1)
    ]
    found = [value for value in values if value is not None]
    return {
        "number": number,
        "kind": "trial",
        "params": {"optim.lr": number / 1000},
        "state": state,
        "why": "",
        "step": 2 * len(values),
        "num_steps": 8,
        "reports": reports,
        "best_value": max(found, default=None),
        "best_step": None,
        "parameters": None,
        "images_per_s": None,
        "peak_memory_mib": None,
        "worker_seconds": 0.0,
        "checkpoint": None,
        "mlflow_run": None,
        "attempt": 1,
        **changes,
    }


@dataclass
class FakeTrial:
    """The calls about one trial of a `FakeAttempt`."""

    attempt: FakeAttempt
    number: int

    @property
    def document(self) -> dict[str, Any]:
        return self.attempt.documents[self.number]

    def state(self, state: str, **changes: Any) -> dict[str, Any]:
        if self.document["state"] in ("succeeded", "stopped", "failed"):
            raise ServiceError(f"trial {self.number} is {self.document['state']}")
        given = {key: value for key, value in changes.items() if value is not None}
        self.document.update(state=state, **given)
        return self.document

    def report(self, validation: int, step: int, value: float | None, miou: float | None, seconds: float) -> Any:
        if self.document["state"] != "running":
            raise ServiceError(f"trial {self.number} is {self.document['state']}")
        report = {"validation": validation, "step": step, "value": value, "miou": miou, "seconds": seconds}
        report["at"] = next(self.attempt.clock)
        if validation > len(self.document["reports"]):
            self.document["reports"].append(report)
        self.document["step"] = max(self.document["step"], step)
        values = [each["value"] for each in self.document["reports"] if each["value"] is not None]
        self.document["best_value"] = max(values, default=None)
        return self.document

    def latest_checkpoint(self) -> dict[str, Any] | None:
        found: dict[str, Any] | None = self.document["checkpoint"]
        return found

    def set_checkpoint(self, record: Any) -> dict[str, Any]:
        if self.document["state"] != "running":
            raise ServiceError(f"trial {self.number} is {self.document['state']}")
        self.document["checkpoint"] = dict(record)
        return self.document


@dataclass
class FakeAttempt:
    """The service as a search's driver sees it."""

    documents: dict[int, dict[str, Any]] = field(default_factory=dict)
    clock: Iterator[float] = field(default_factory=lambda: count(100.0))

    def trials(self) -> list[dict[str, Any]]:
        return [deepcopy(self.documents[number]) for number in sorted(self.documents)]

    def add_trial(self, number: int, kind: str, params: Any, num_steps: int) -> dict[str, Any]:
        assert number not in self.documents, "recorded twice"
        self.documents[number] = trial(number, "waiting", kind=kind, params=dict(params), num_steps=num_steps)
        return self.documents[number]

    def trial(self, number: int) -> FakeTrial:
        return FakeTrial(self, number)


@dataclass
class FakeHeart:
    """Keeps what it is told."""

    must_yield: bool = False
    told: list[dict[str, Any]] = field(default_factory=list)

    def progress(self, document: Any) -> None:
        self.told.append(dict(document))
