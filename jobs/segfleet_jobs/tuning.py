"""Trials side by side; the only module that knows Ray Tune.

Tune starts the trials' drivers and carries their reports; what to start, what a report means and when to end is decided
by a `Director`. Tune's own state is never restored. A trial's driver takes no CPU: its workers are placed by Ray Train,
so there may be no more trials than the attempt has workers for.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.progress_reporter import ProgressReporter
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
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

    def ended(self, number: int, outcome: Mapping[str, Any] | None, why: str = "") -> None:
        """A trial's driver has returned this; None: it was lost or has failed too often, the last time for `why`."""

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
    # No files of results: they are the service's. Tune's newer reporter prints tables at any verbosity.
    os.environ.update(TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1", TUNE_MAX_PENDING_TRIALS_PG="1", RAY_AIR_NEW_OUTPUT="0")
    # It misses the files of results that nobody has asked for.
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)
    reports = _Reports(director)
    # Not by a Tuner: that writes all it is given to the storage, the director's secrets too.
    tune.run(
        tune.with_resources(tune.with_parameters(_run, run=trainable, shared=dict(shared)), _DRIVER_RESOURCES),
        name="tune",
        storage_path=storage,
        search_alg=_Proposals(director, reports.losses),
        scheduler=reports,
        stop=_End(director),
        num_samples=-1,
        max_concurrent_trials=parallel,
        max_failures=_DRIVER_LOSSES,
        raise_on_failed_trial=False,
        trial_dirname_creator=lambda trial: f"trial-{trial.config['number']}",
        verbose=0,
        progress_reporter=_Silent(),
    )


def _run(config: dict[str, Any], run: Trainable, shared: dict[str, Any]) -> None:
    """In the trial's own process."""
    tune.report(dict(run(config["number"], [TuneReportCallback()], **shared)))


def last_words(text: str) -> str:
    """The sentence of the last failure in one of Tune's files of errors: a traceback's last line, else the first."""
    lines = [line.strip() for line in text.rpartition("Failure #")[2].splitlines()[1:] if line.strip()]
    if not lines:
        return ""
    if "ray::" not in lines[0] and not lines[0].startswith("Traceback"):
        return lines[0]
    kind, colon, words = lines[-1].partition(": ")
    return f"{kind.rpartition('.')[2]}{colon}{words}"


class _Silent(ProgressReporter):  # type: ignore[misc]
    """How the search goes is said by its director."""

    def should_report(self, trials: list[Any], done: bool = False) -> bool:  # noqa: ARG002
        return False


class _Unsaved:
    """Tune writes down its own state and whatever hangs on it; the director and its secrets are left out."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Proposals(_Unsaved, Searcher):  # type: ignore[misc]
    """Tune asks here for the next trial, and tells here that one has ended."""

    def __init__(self, director: Director, losses: Mapping[str, str]) -> None:
        super().__init__()
        self._director, self._losses = director, losses
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
        number, why = self._numbers.pop(trial_id), self._losses.get(trial_id, "")
        self._director.ended(number, None if error else result, why)

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Nothing: the trials are in the service's database."""


class _Reports(_Unsaved, FIFOScheduler):  # type: ignore[misc]
    """Tune brings the reports here.

    No trial is ended by Tune itself, which would kill its driver and leave the workers' places to Ray's cleaner, for
    which the next trial had to wait: the director asks the trial to end.

    Attributes:
        losses: By Tune's name of a trial, what its driver was lost by last.
    """

    def __init__(self, director: Director) -> None:
        super().__init__()
        self._director = director
        self.losses: dict[str, str] = {}

    def on_trial_result(self, _tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if "validation" in result:
            self._director.reported(int(trial.config["number"]), int(result["validation"]))
        return str(TrialScheduler.CONTINUE)

    def on_trial_error(self, _tune_controller: Any, trial: Any) -> None:
        if trial.error_file:
            self.losses[trial.trial_id] = last_words(Path(trial.error_file).read_text(encoding="utf-8"))


class _End(_Unsaved, tune.Stopper):  # type: ignore[misc]
    def __init__(self, director: Director) -> None:
        self._director = director

    def __call__(self, _trial_id: str, _result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._director.must_end()
