"""Where the loop is, how fast it goes, where its time went and how much is left."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from segfleet.spec.sections import LoopSpec
from segfleet_jobs.account import Account

WINDOW_STEPS = 50
# Parts whose begin is worth telling: they may take longer than a heartbeat.
_LONG = ("validation", "checkpoint")


class Progress:
    """The account of one attempt; `tell` gets a document after each step.

    Its clock starts when it is made; what comes before `start` is loading.
    """

    def __init__(
        self, loop: LoopSpec, tell: Callable[[dict[str, Any]], None], clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._loop, self._tell, self._clock = loop, tell, clock
        self._account = Account(clock)
        self._recent: deque[float] = deque(maxlen=WINDOW_STEPS)
        self._pending_s = 0.0
        self._validations: list[float] = []
        self._document: dict[str, Any] = {"num_steps": loop.steps}

    @property
    def seconds(self) -> dict[str, float]:
        """Time so far in load, data, step, validation, checkpoint, mlflow and all the rest."""
        return self._account.seconds

    @property
    def samples_per_s(self) -> float:
        """Training speed over the last steps, data and step time only."""
        return self._loop.global_batch * len(self._recent) / sum(self._recent) if self._recent else 0.0

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Add the block's time to a part of the account."""
        begin = self._clock()
        with self._account.timed(part):
            if part in _LONG:
                self._update()
            yield
        elapsed = self._clock() - begin
        if part in ("data", "step"):
            self._pending_s += elapsed
        elif part == "validation":
            self._validations.append(elapsed)

    def start(self, step: int, scores: dict[str, Any] | None) -> None:
        """The loop begins, or goes on, after `step` steps."""
        self._account.started(step)
        self._update(step=step, phase="train", miou=scores["miou"] if scores else None)

    def stepped(self, done: int, loss: float, lr: float) -> None:
        """`done` steps are done."""
        self._recent.append(self._pending_s)
        self._pending_s = 0.0
        self._account.stepped(done)
        self._update(
            step=done,
            phase="train",
            loss=loss,
            lr=lr,
            samples_per_s=round(self.samples_per_s, 3),
            eta_s=round(self._eta_s(done), 1),
            time={part: round(value, 3) for part, value in self.seconds.items()},
        )

    def validating(self, num_samples: int) -> None:
        """`num_samples` of this rank's validation samples are done."""
        self._update(phase="validate", validated=num_samples)

    def validated(self, miou: float) -> None:
        """A validation is done."""
        self._update(phase="train", miou=miou, validated=None)

    def saved(self, step: int) -> None:
        """A checkpoint holds all up to this step."""
        self._account.saved(step)

    def skipped(self, steps: int, ranks: Sequence[int]) -> None:
        """So many steps were skipped as not finite; the latest arose on these ranks, if that is known."""
        self._document = {**self._document, "skipped_steps": steps, "nonfinite_ranks": list(ranks)}

    def _eta_s(self, done: int) -> float:
        left = self._loop.steps - done
        training_s = left * sum(self._recent) / len(self._recent)
        validations_left = -(-self._loop.steps // self._loop.validate_every) - done // self._loop.validate_every
        mean_validation_s = sum(self._validations) / len(self._validations) if self._validations else 0.0
        return training_s + validations_left * mean_validation_s

    def _update(self, **changes: Any) -> None:
        self._document = {**self._document, **changes}
        self._tell({**self._document, "account": self._account.to_document()})


class SplitProgress:
    """How far an evaluation is, as rank 0 sees it: all ranks have about the same to do.

    Args:
        num_samples: Of the split.
        world_size: Ranks that share it.
        tell: Gets a document after each of this rank's samples; None: nobody is told.
        clock: Seconds.
    """

    def __init__(
        self,
        num_samples: int,
        world_size: int,
        tell: Callable[[dict[str, Any]], None] | None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._num_samples, self._world_size, self._tell, self._clock = num_samples, world_size, tell, clock
        self._begin, self._own = clock(), 0

    def done(self) -> None:
        """One more of this rank's samples is done."""
        self._own += 1
        if self._tell is None:
            return
        done = min(self._own * self._world_size, self._num_samples)
        speed = done / max(self._clock() - self._begin, 1e-9)
        self._tell(
            {
                "phase": "evaluate",
                "step": done,
                "num_steps": self._num_samples,
                "samples_per_s": round(speed, 3),
                "eta_s": round((self._num_samples - done) / speed, 1),
            }
        )
