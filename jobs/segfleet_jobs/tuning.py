"""Trials side by side; the only module that knows Ray Tune.

Tune starts the trials' drivers and carries their reports; what to start, what a report means and when to end is decided
by a `Director`. Tune's own state is never restored. A trial's driver takes no CPU: its workers are placed by Ray Train,
so there may be no more trials than the attempt has workers for.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

# Losses of a trial's driver, as when its node dies; those of its workers are the trial's own business.
_DRIVER_LOSSES = 3
# Tune wants some resource to place by, and a byte of memory is there on every node.
_DRIVER_RESOURCES = {"CPU": 0, "memory": 1}

Trainable = Callable[..., Mapping[str, Any]]


class Director(Protocol):
    """Decides; all calls come from one thread of this process, one after the other."""

    def next_trial(self) -> int | None:
        """Number of a trial to start now; None: not now.

        Raises:
            StopIteration: none will ever be started again.
        """

    def reported(self, number: int, validation: int) -> None:
        """A running trial has validated."""

    def ended(self, number: int, outcome: Mapping[str, Any] | None) -> None:
        """A trial's driver has returned this; None: it was lost too often."""

    def must_end(self) -> bool:
        """Whether everything is to end now, whatever runs."""


def run_trials(
    trainable: Trainable, shared: Mapping[str, Any], director: Director, parallel: int, storage: str
) -> None:
    """Run trials until the director has no more.

    Args:
        trainable: Runs one trial in a process of its own, given its number, callbacks for its group of workers, and
            `shared` by name; importable by its name.
        shared: The same for all trials; unlike a trial's number it is not written to the storage.
        director: Decides.
        parallel: How many trials run at a time.
        storage: An empty folder that all nodes share, for what Tune writes; of no use afterwards.
    """
    # Neither tables of trials on the terminal nor files of results: both are the service's.
    os.environ.update(TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1", TUNE_MAX_PENDING_TRIALS_PG="1")
    # It misses the files of results that nobody has asked for.
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)
    # Not by a Tuner: that writes all it is given to the storage, the director's secrets too.
    tune.run(
        tune.with_resources(tune.with_parameters(_run, run=trainable, shared=dict(shared)), _DRIVER_RESOURCES),
        name="tune",
        storage_path=storage,
        search_alg=_Proposals(director),
        scheduler=_Reports(director),
        stop=_End(director),
        num_samples=-1,
        max_concurrent_trials=parallel,
        max_failures=_DRIVER_LOSSES,
        raise_on_failed_trial=False,
        trial_dirname_creator=lambda trial: f"trial-{trial.config['number']}",
        verbose=0,
    )


def _run(config: dict[str, Any], run: Trainable, shared: dict[str, Any]) -> None:
    """In the trial's own process."""
    tune.report(dict(run(config["number"], [TuneReportCallback()], **shared)))


class _Unsaved:
    """Tune writes down its own state and whatever hangs on it; the director and its secrets are left out."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Proposals(_Unsaved, Searcher):  # type: ignore[misc]
    """Tune asks here for the next trial, and tells here that one has ended."""

    def __init__(self, director: Director) -> None:
        super().__init__()
        self._director = director
        self._numbers: dict[str, int] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        try:
            number = self._director.next_trial()
        except StopIteration:
            return str(Searcher.FINISHED)
        if number is None:
            return None
        self._numbers[trial_id] = number
        return {"number": number}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if self._director.must_end() or trial_id not in self._numbers:
            return  # stopped by Tune at our word: the trial itself has not ended
        self._director.ended(self._numbers.pop(trial_id), None if error else result)

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Nothing: the trials are in the service's database."""


class _Reports(_Unsaved, FIFOScheduler):  # type: ignore[misc]
    """Tune brings the reports here.

    No trial is ended by Tune itself, which would kill its driver and leave the workers' places to Ray's cleaner, for
    which the next trial had to wait: the director asks the trial to end.
    """

    def __init__(self, director: Director) -> None:
        super().__init__()
        self._director = director

    def on_trial_result(self, _tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if "validation" in result:
            self._director.reported(int(trial.config["number"]), int(result["validation"]))
        return str(TrialScheduler.CONTINUE)


class _End(_Unsaved, tune.Stopper):  # type: ignore[misc]
    def __init__(self, director: Director) -> None:
        self._director = director

    def __call__(self, _trial_id: str, _result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._director.must_end()


@dataclass(frozen=True, slots=True)
class _Known:
    """A trial as Tune's scheduler knows it."""

    trial_id: str


class Rungs:
    """Which trials go on: asynchronous successive halving (https://arxiv.org/abs/1810.05934) by Tune's scheduler.

    It lives in the driver's memory only. A new driver tells it all recorded validations, and so has the same rungs; a
    decision depends on what stands on the rung, not on the order in which it came.

    Args:
        mode: max or min.
        grace: Validations before a trial may be ended.
        reduction: One trial in so many goes on at each rung.
        most: Validations of a trial of full length.
    """

    def __init__(self, mode: str, grace: int, reduction: int, most: int) -> None:
        self._mode, self._grace, self._reduction = mode, grace, reduction
        self._scheduler = AsyncHyperBandScheduler(
            time_attr="validation",
            metric="value",
            mode=mode,
            max_t=max(most, grace),
            grace_period=grace,
            reduction_factor=reduction,
            stop_last_trials=False,
        )
        # What the scheduler keeps to itself, for the sentence about a trial's end.
        self._on_rungs: dict[int, dict[int, float]] = {}
        self._known: set[int] = set()

    def judge(self, number: int, validation: int, value: float | None) -> str | None:
        """Take a validation in.

        Args:
            number: Of the trial.
            validation: From 1; each that is taken in must be told, in the trial's order.
            value: None: the trial had none, and goes on.

        Returns:
            Why the trial should end; None: it goes on.
        """
        if value is None:
            return None
        trial = _Known(str(number))
        if number not in self._known:
            self._known.add(number)
            self._scheduler.on_trial_add(None, trial)
        action = self._scheduler.on_trial_result(None, trial, {"validation": validation, "value": value})
        rung = self._on_rungs.setdefault(self._rung(validation), {})
        why = self._why(validation, value, list(rung.values())) if action == TrialScheduler.STOP else None
        rung.setdefault(number, value)
        return why

    def replay(self, trials: Sequence[Mapping[str, Any]]) -> None:
        """Take in all that was recorded; what was to be decided then has been decided."""
        for trial in trials:
            for report in trial["reports"]:
                self.judge(trial["number"], report["validation"], report["value"])

    def _rung(self, validation: int) -> int:
        """The highest rung that a validation has reached, by the number of its own validation; 0: none yet."""
        rung, above = 0, self._grace
        while above <= validation:
            rung, above = above, above * self._reduction
        return rung

    def _why(self, validation: int, value: float, others: list[float]) -> str:
        share = 100 / self._reduction
        cutoff = float(np.percentile(others, 100 - share if self._mode == "max" else share))
        side = "below" if self._mode == "max" else "above"
        return (
            f"ended by asha at validation {validation}: {value:.4f} is {side} {cutoff:.4f}, the bound of the best "
            f"{share:.0f}% of {len(others)} trials"
        )
