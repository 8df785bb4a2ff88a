"""The rules of a search, as pure functions of its recorded trials: what runs next, what ends it, which one is best."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from segfleet.spec.search_sections import SearchSection

# A trial as the service has stored it.
Trial = Mapping[str, Any]

ENDED = frozenset({"succeeded", "stopped", "failed"})
_SECONDS_AN_HOUR = 3600.0
_FEWEST_FAILURES = 3


def own_trials(trials: Sequence[Trial]) -> list[Trial]:
    """The trials without the final training, by number."""
    return sorted((trial for trial in trials if trial["kind"] == "trial"), key=lambda trial: int(trial["number"]))


def unfinished(trials: Sequence[Trial]) -> list[int]:
    """Numbers of the trials that an earlier attempt has begun and not ended."""
    return [trial["number"] for trial in own_trials(trials) if trial["state"] not in ENDED]


def is_better(value: float, than: float, mode: str) -> bool:
    """Whether a value beats another."""
    return value > than if mode == "max" else value < than


def best_of(trials: Sequence[Trial], mode: str) -> Trial | None:
    """The trial with the best recorded value; a trial that was stopped early counts, a failed one does not.

    Args:
        trials: Of a search, in any order.
        mode: max or min.

    Returns:
        Of equals the one with the lowest number; None if no trial has a value.
    """
    best: Trial | None = None
    for trial in own_trials(trials):
        value = trial["best_value"]
        if trial["state"] != "failed" and value is not None:
            best = trial if best is None or is_better(value, best["best_value"], mode) else best
    return best


def allowed_failures(search: SearchSection, num_trials: int) -> int:
    """How many trials may fail before the search does: a quarter, but always some."""
    if search.max_failures is not None:
        return search.max_failures
    return max(_FEWEST_FAILURES, math.ceil(num_trials / 4))


def too_many_failures(trials: Sequence[Trial], allowed: int) -> str | None:
    """Why the search has failed; None: it has not.

    Args:
        trials: As recorded.
        allowed: How many may fail.
    """
    failed = [trial for trial in own_trials(trials) if trial["state"] == "failed"]
    if len(failed) <= allowed:
        return None
    numbers = ", ".join(str(trial["number"]) for trial in failed)
    return (
        f"{len(failed)} trials have failed ({numbers}) and {allowed} may; the last one: {failed[-1]['why']}; correct "
        "the space or the base, or raise search.max_failures, and submit the search again"
    )


def why_ended(search: SearchSection, trials: Sequence[Trial], num_trials: int) -> str | None:
    """Why no further trial is begun; None: there may be one.

    Args:
        search: The search.
        trials: As recorded.
        num_trials: How many there are to be.
    """
    own = own_trials(trials)
    if len(own) >= num_trials:
        return f"all {num_trials} trials are done"
    spent = sum(trial["worker_seconds"] for trial in own)
    limit = search.max_worker_hours
    if limit is not None and spent >= limit * _SECONDS_AN_HOUR:
        return f"the budget of {limit:g} worker-hours is used up"
    return None


def why_stalled(search: SearchSection, trials: Sequence[Trial]) -> str | None:
    """Why nothing better is to be expected; None: too few trials have ended since the best one.

    A trial that still runs may change it.
    """
    own = own_trials(trials)
    best = best_of(own, search.mode)
    if search.patience is None or best is None:
        return None
    after = [t for t in own if t["number"] > best["number"] and t["state"] in ("succeeded", "stopped")]
    if len(after) < search.patience:
        return None
    return f"{len(after)} trials after trial {best['number']} were no better"


def fits_budget(search: SearchSection, trials: Sequence[Trial], num_steps: int) -> bool:
    """Whether a further trial of this length keeps within the budget of steps, whatever becomes of those that run."""
    return search.max_steps is None or _steps_bound(trials) + num_steps <= search.max_steps


def _steps_bound(trials: Sequence[Trial]) -> int:
    return sum(trial["step" if trial["state"] in ENDED else "num_steps"] for trial in own_trials(trials))


def steps_done(trials: Sequence[Trial]) -> int:
    """Steps over all trials, the final training included."""
    return sum(trial["step"] for trial in trials)


def counts(trials: Sequence[Trial]) -> dict[str, int]:
    """How many trials are in each state."""
    return dict(sorted(Counter(str(trial["state"]) for trial in own_trials(trials)).items()))


def all_ended(trials: Sequence[Trial]) -> dict[str, Any]:
    """The progress of a search that has run all its trials."""
    own = own_trials(trials)
    return {"step": len(own), "num_steps": len(own), "eta_s": 0.0}


def progress(
    search: SearchSection, trials: Sequence[Trial], num_trials: int, running: int, workers: int, parallel: int
) -> dict[str, Any]:
    """What the search tells of itself while trials run.

    Args:
        search: The search.
        trials: As recorded.
        num_trials: How many there are to be.
        running: How many run now.
        workers: Of one trial.
        parallel: How many trials may run at a time.
    """
    own, best = own_trials(trials), best_of(trials, search.mode)
    ended = [trial for trial in own if trial["state"] in ENDED]
    document: dict[str, Any] = {
        "phase": f"searching, {running} running",
        "step": len(ended),
        "num_steps": num_trials,
        "trials": {"done": len(ended), "running": running, "of": num_trials, "by_state": counts(trials)},
    }
    if best is not None:
        figure = f"{search.metric.removeprefix('val/')} {best['best_value']:.4f}"
        document["phase"] += f", best so far: trial {best['number']} with {figure}"
        document["best"] = {"trial": best["number"], "value": best["best_value"]}
    if ended:
        each_s = sum(trial["worker_seconds"] for trial in ended) / len(ended) / workers
        document["eta_s"] = round((num_trials - len(ended)) * each_s / max(parallel, 1), 1)
    return document


def in_words(progress: Mapping[str, Any]) -> str:
    """The progress of a search as a part of a sentence."""
    trials, left = progress["trials"], progress.get("eta_s")
    time_left = "" if left is None or trials["done"] == trials["of"] else f", {_duration(left)} left"
    return f"{trials['done']} of {trials['of']} done, {progress['phase'].removeprefix('searching, ')}{time_left}"


def choice(trial: Trial) -> str:
    """What a trial varies, for the log."""
    return ", ".join(f"{path}={value}" for path, value in trial["params"].items())


def _duration(seconds: float) -> str:
    minutes = math.ceil(seconds / 60)
    return f"about {minutes} min" if minutes < 120 else f"about {minutes / 60:.0f} h"
