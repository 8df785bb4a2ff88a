"""Promotions on a real queue and a registry of dictionaries, with evaluations that end as the test says."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factories import make_queue
from fakes import FakeClock
from segfleet.promotion.desk import Promotions
from segfleet.promotion.gate import Gate
from segfleet.promotion.values import Promotion
from segfleet.queue import lifecycle
from segfleet.queue.model import Job
from segfleet.queue.service import Queue
from serving import FakeRegistry

CONTENT = "c" * 64


def end_evaluation(queue: Queue, job_id: str, miou: float | None, speed: float = 10.0, **changes: Any) -> Job:
    """Let an evaluation end with a score, as its attempt would."""
    code = "code-of-the-evaluation"
    with queue.store.write() as tx:
        attempt = lifecycle.begin_attempt(tx, tx.job(job_id), 1, hashlib.sha256(code.encode()).hexdigest(), 1.0)
    grant = queue.claim(attempt.id, code, "0123456789abcdef")
    result = {
        "model_version": grant.spec["model"],
        "mlflow_run": "r" * 32,
        "content_id": CONTENT,
        "split": grant.spec["data"]["split"],
        "protocol": {"label": "reference-ss-0"},
        "miou": miou,
        "samples_per_s": speed,
        **changes,
    }
    queue.complete(attempt.id, grant.token, result)
    return queue.get(job_id)


@dataclass
class Stage:
    """A service's promotions; `restart` is a kill -9 of the service."""

    root: Path
    shards: str
    url: str | None = None

    def __post_init__(self) -> None:
        self.clock, self.registry = FakeClock(), FakeRegistry()
        self.registry.versions |= {"3", "4"}
        self.restart()

    def restart(self) -> None:
        self.queue = make_queue(self.root, self.clock, self.url)
        self.desk = Promotions(self.queue, self.registry)  # type: ignore[arg-type]

    def gate(self, **rules: Any) -> None:
        self.desk.set_gate("seg", "best", Gate.model_validate({"shards": self.shards, **rules}), "op")

    def ask(self, ref: str = "2", **more: Any) -> Promotion:
        return self.desk.ask("seg", "best", ref, **{"who": "ann", "project": "default", **more})

    def now(self, promotion: Promotion) -> Promotion:
        return self.desk.get("seg", promotion.id)

    def end(self, promotion: Promotion, candidate: float | None, holder: float | None, **more: Any) -> Promotion:
        """Let the evaluations of both sides end, and look."""
        for side, value in (("candidate", candidate), ("holder", holder)):
            end_evaluation(self.queue, self.now(promotion).evaluations[side], value, **more)
        self.desk.advance_all()
        return self.now(promotion)
