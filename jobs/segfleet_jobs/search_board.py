"""The driver's side of a search while trials run: starts them, hears them, ends them, and writes down what became of
them. What it decides by are the recorded trials alone, so that a new driver goes on where this one was."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from segfleet.errors import ServiceError
from segfleet.spec.kinds import SearchSpec
from segfleet.spec.search import num_trials, propose, trial_spec
from segfleet_jobs import search_rules as rules
from segfleet_jobs.attempt import AttemptClient, Grant, Heart
from segfleet_jobs.rungs import Rungs, Verdict
from segfleet_jobs.tpe import propose_tpe
from segfleet_jobs.trial_task import stop_sign, trial_folder, validation_of

_LOOK_EVERY_S = 0.5


class Board:
    """The director of a search's trials.

    Args:
        grant: Of the attempt.
        spec: The search.
        client: The attempt's.
        heart: Hears whether the attempt has to make room, and tells how the search goes.
        parallel: How many trials run at a time.
        clock: Seconds that only rise.

    Attributes:
        why: Why no further trial was begun; empty while there may be more.
        failure: Why the search has failed; None: it has not.
    """

    def __init__(
        self,
        grant: Grant,
        spec: SearchSpec,
        client: AttemptClient,
        heart: Heart,
        parallel: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._grant, self._spec, self._client, self._heart = grant, spec, client, heart
        self._parallel, self._clock = parallel, clock
        self._num_trials = num_trials(spec)
        # When a trial was begun here, and what it had cost before.
        self._running: dict[int, tuple[float, float]] = {}
        self._makes_room = False
        # Since when a trial that is to be stopped has yet to write its checkpoint; None: none has.
        self._waits_since: float | None = None
        self.why = ""
        self._refresh()
        self._again = rules.unfinished(self._trials)
        search = spec.search
        self._rungs = None if search.scheduler == "none" else Rungs(search.mode, search.grace, search.reduction)

    @property
    def trials(self) -> list[dict[str, Any]]:
        """As recorded."""
        return self._trials

    @property
    def failure(self) -> str | None:
        """Why the search has failed; None: it has not."""
        return rules.too_many_failures(self._trials, rules.allowed_failures(self._spec.search, self._num_trials))

    def next_trial(self) -> int | None:
        """Number of a trial to start: first those that were begun, then new ones, each recorded before it runs."""
        if self._makes_room or self._heart.must_yield or self.failure is not None:
            raise StopIteration
        # First what a driver before this one did not live to carry out.
        self._judge()
        self._again = [number for number in self._again if self._trial(number)["state"] not in rules.ENDED]
        if self._again:
            return self._begin(self._again.pop(0))
        why = rules.why_ended(self._spec.search, self._trials, self._num_trials)
        if why is not None:
            self._end(why)
        why = rules.why_stalled(self._spec.search, self._trials)
        if why is not None:
            if self._running:
                return None  # a trial that runs may be the better one
            self._end(why)
        number = max((trial["number"] for trial in rules.own_trials(self._trials)), default=0) + 1
        params = self._propose(number)
        if params is None:
            self._end("there is no further combination to try")
        steps = trial_spec(self._spec, params).train.steps
        if not rules.fits_budget(self._spec.search, self._trials, steps):
            if self._running:
                return None  # a trial that runs may be ended early and give steps back
            self._end(f"the budget of {self._spec.search.max_steps} steps is used up")
        self._client.add_trial(number, "trial", params, steps)
        return self._begin(number)

    def reported(self, number: int, validation: int) -> None:  # noqa: ARG002
        """A running trial has validated: whoever is behind is asked to end."""
        self._refresh()
        self._judge()
        self._tell()

    def ended(self, number: int, outcome: Mapping[str, Any] | None, why: str = "") -> None:
        """A trial has ended for now; one that was stopped is known as such already."""
        if outcome is None or "outcome" not in outcome:
            last = f", the last time: {why}" if why else ""
            outcome = {"outcome": "failed", "why": f"its driver was lost too often{last}", "worker_seconds": None}
        if outcome["outcome"] in ("succeeded", "failed"):
            self._move(number, outcome["outcome"], outcome["why"], outcome["worker_seconds"])
        elif outcome["outcome"] == "yielded":
            # Its worker has heard it before this process did.
            self._makes_room = True
        self._running.pop(number, None)
        self._refresh()
        self._judge()
        trial = self._trial(number)
        self._say(f"trial {number} {trial['state']}{trial['why'] and ': '}{trial['why']}; {self._tell()}")

    def must_end(self) -> bool:
        """Whether too many trials have failed; asked all the time, so this is also where a late checkpoint is seen."""
        if self._waits_since is not None and self._clock() - self._waits_since >= _LOOK_EVERY_S:
            self._refresh()
            self._judge()
        return self.failure is not None

    def _judge(self) -> None:
        """Stop whoever is behind, once what it has shown is durable: its best checkpoint may be the search's."""
        self._waits_since = None
        if self._rungs is None:
            return
        self._rungs.take(rules.own_trials(self._trials))
        for number, verdict in self._rungs.verdicts.items():
            trial = self._trial(number)
            if trial["state"] != "running" or not self._is_early(trial, verdict):
                continue
            if (trial["checkpoint"] or {"step": 0})["step"] >= verdict.step:
                self._stop(number, verdict.why)
            elif number in self._running:
                self._waits_since = self._clock()

    def _is_early(self, trial: rules.Trial, verdict: Verdict) -> bool:
        """Whether the trial has more to do: its last validation ends no trial."""
        loop = trial_spec(self._spec, trial["params"]).train
        return verdict.validation < validation_of(loop.steps, loop.validate_every)

    def _propose(self, number: int) -> dict[str, Any] | None:
        if self._spec.search.algorithm == "optuna":
            return propose_tpe(self._spec, rules.own_trials(self._trials), number)
        return propose(self._spec, self._trials, number)

    def _begin(self, number: int) -> int:
        # What the database does not know as stopped was never stopped: the sign's driver died before it said so, or
        # the sign is of a life before a retry from the start.
        stop_sign(trial_folder(self._grant, number)).unlink(missing_ok=True)
        self._refresh()
        trial = self._trial(number)
        self._running[number] = self._clock(), trial["worker_seconds"]
        verb = "begins" if trial["state"] == "waiting" else f"goes on from step {trial['step']}"
        self._say(f"trial {number} of {self._num_trials} {verb}: {rules.choice(trial)}")
        self._tell()
        return number

    def _end(self, why: str) -> NoReturn:
        self.why = why
        raise StopIteration

    def _stop(self, number: int, why: str) -> None:
        sign = stop_sign(trial_folder(self._grant, number))
        sign.parent.mkdir(parents=True, exist_ok=True)
        sign.touch()
        spent = None
        if number in self._running:
            begun, before = self._running[number]
            spent = before + self._spec.base.resources.min_workers * (self._clock() - begun)
        self._move(number, "stopped", why, spent)
        self._refresh()

    def _move(self, number: int, state: str, why: str, worker_seconds: float | None) -> None:
        try:
            self._client.trial(number).state(state, why=why, worker_seconds=worker_seconds)
        except ServiceError:
            self._refresh()
            if self._trial(number)["state"] not in rules.ENDED:
                raise

    def _trial(self, number: int) -> dict[str, Any]:
        return next(trial for trial in self._trials if trial["number"] == number)

    def _refresh(self) -> None:
        self._trials = self._client.trials()

    def _tell(self) -> str:
        """Tell the service how the search goes; the same for people."""
        workers = self._spec.base.resources.min_workers
        progress = rules.progress(
            self._spec.search, self._trials, self._num_trials, len(self._running), workers, self._parallel
        )
        self._heart.progress(progress)
        return rules.in_words(progress)

    def _say(self, sentence: str) -> None:
        print(f"segfleet: {sentence}", flush=True)
