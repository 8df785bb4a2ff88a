"""Optuna asked with a study made of recorded trials: the same question, the same answer."""

from __future__ import annotations

from typing import Any

import pytest

from searched import make_search, trial
from segfleet_jobs.tpe import propose_tpe

SPACE: dict[str, Any] = {
    "optim.lr": {"min": 1e-5, "max": 1e-1, "log": True},
    "train.crop": {"min": 32, "max": 96, "step": 16},
    "model.decoder": ["mask", "linear"],
    "model.decoder_layers": {"given": "model.decoder", "cases": {"mask": [1, 2, 3]}},
    "train.seed": {"min": 0, "max": 1_000_000},
    "eval.window": {"same_as": "train.crop"},
    "eval.stride": {"same_as": "train.crop"},
}


def run(space: dict[str, Any], count: int, **search: Any) -> list[dict[str, Any]]:
    """A search of trials one after the other; a low learning rate is good."""
    spec = make_search(space, algorithm="optuna", trials=50, **search)
    trials: list[dict[str, Any]] = []
    for number in range(1, count + 1):
        params = propose_tpe(spec, trials, number)
        assert params is not None
        value = 1.0 - params.get("optim.lr", 0.0)
        state = ("succeeded", "stopped", "failed")[number % 3]
        trials.append(trial(number, state, (value / 2, value), params=params))
    return trials


def test_a_restarted_search_asks_for_the_same_trials() -> None:
    trials = run(SPACE, 14)
    spec = make_search(SPACE, algorithm="optuna", trials=50)
    for known in (3, 9, 13):
        assert propose_tpe(spec, trials[:known], known + 1) == trials[known]["params"]
    other = make_search(SPACE, algorithm="optuna", trials=50, seed=1)
    assert propose_tpe(other, trials[:9], 10) != trials[9]["params"]


def test_parameters_keep_to_the_space_its_conditions_and_its_copies() -> None:
    for found in run(SPACE, 12):
        params = found["params"]
        assert 1e-5 <= params["optim.lr"] <= 1e-1
        assert params["train.crop"] in (32, 48, 64, 80, 96)
        assert params["eval.window"] == params["eval.stride"] == params["train.crop"]
        assert ("model.decoder_layers" in params) == (params["model.decoder"] == "mask")
        assert isinstance(params["train.seed"], int)


def test_it_learns_from_the_trials_before() -> None:
    space = {"optim.lr": {"min": 1e-5, "max": 1e-1, "log": True}}
    late = [found["params"]["optim.lr"] for found in run(space, 24)[12:]]
    assert sum(lr < 1e-2 for lr in late) >= 9, "by lot it were three in four"


def test_what_was_tried_or_is_impossible_is_passed_over_until_nothing_is_left() -> None:
    # A window below the patch makes no training.
    space = {"eval.window, eval.stride": [[16, 16], [48, 48], [64, 48]], "model.patch_size": [16, 32]}
    spec = make_search(space, algorithm="optuna", trials=50)
    trials: list[dict[str, Any]] = []
    while (params := propose_tpe(spec, trials, len(trials) + 1)) is not None:
        trials.append(trial(len(trials) + 1, "running", params=params))
    assert len(trials) == 5
    assert all(found["params"]["eval.window"] >= found["params"]["model.patch_size"] for found in trials)


@pytest.mark.parametrize("mode", ["max", "min"])
def test_trials_without_a_value_teach_nothing_and_hurt_nothing(mode: str) -> None:
    spec = make_search(SPACE, algorithm="optuna", trials=50, mode=mode)
    first = run(SPACE, 2)
    odd = [trial(3, "succeeded", (None,), params=first[0]["params"]), trial(4, "stopped", params=first[1]["params"])]
    assert propose_tpe(spec, [*first, *odd], 5) is not None
