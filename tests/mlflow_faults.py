"""An MLflow server that is away, slow, answers 500, loses answers or cuts them off: by chance, or when told."""

from __future__ import annotations

import http.client
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from relay import Answer, Request, relay

FAULTS = ("away", "slow", "error", "lost", "cut")


@dataclass
class Faults:
    """What happens to requests; the test's to change.

    Attributes:
        rates: Chance of each of FAULTS, at each request.
        always: One of FAULTS that happens to every request now; or empty.
        once: Faults of the next requests whose method and path match: (pattern, fault), each used up once.
        slow_s: How long a slow answer takes.
        seen: Requests by fault; the empty one is none.
    """

    seed: int = 0
    rates: Mapping[str, float] = field(default_factory=dict)
    always: str = ""
    once: list[tuple[str, str]] = field(default_factory=list)
    slow_s: float = 0.2
    seen: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._rng, self._lock = random.Random(self.seed), threading.Lock()

    def next(self, request: str) -> str:
        with self._lock:
            fault = self.always or self._of_once(request) or self._by_chance()
            self.seen[fault] += 1
            return fault

    def _of_once(self, request: str) -> str:
        for number, (pattern, fault) in enumerate(self.once):
            if re.search(pattern, request):
                del self.once[number]
                return fault
        return ""

    def _by_chance(self) -> str:
        draw = self._rng.random()
        for fault, rate in self.rates.items():
            draw -= rate
            if draw < 0:
                return fault
        return ""


@contextmanager
def behind_faults(url: str, faults: Faults) -> Iterator[str]:
    """Address of the server with faults."""

    def handle(request: Request, body: bytes) -> None:
        fault = faults.next(f"{request.command} {request.path}")
        if fault == "away":
            request.close_connection = True
            return
        if fault == "error":
            request.answer(Answer(500, {}, b'{"error_code": "INTERNAL_ERROR", "message": "on fire"}'))
            return
        if fault == "slow":
            time.sleep(faults.slow_s)
        try:
            answer = request.forward(body)
        except (OSError, http.client.HTTPException):  # the server itself has been killed
            request.close_connection = True
            return
        if fault == "lost":
            request.close_connection = True
        elif fault == "cut":
            request.answer(answer, cut_to=len(answer.data) // 2)
        else:
            request.answer(answer)

    with relay(url, handle) as address:
        yield address
