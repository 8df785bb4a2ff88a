"""Which trials a search has: all forms of a space, by grid and by lot, always the same ones."""

from __future__ import annotations

import json
from typing import Any

import pytest

from searching import recorded, search_spec
from segfleet.spec.search import combinations, num_trials, planned_steps, propose, trial_spec
from segfleet.spec.space import Answer, Interval, Question, count_choices, draw, values_of

CONDITIONAL: dict[str, Any] = {
    "optim.name": ["sgd", "adamw"],
    "optim.lr": {
        "given": "optim.name",
        "cases": {"sgd": [0.1, 0.01], "adamw": {"min": 1e-4, "max": 1e-2, "log": True}},
    },
    "optim.momentum": {"given": "optim.name", "cases": {"sgd": [0.8, 0.9]}},
}


def trials(spec: Any, count: int) -> list[dict[str, Any]]:
    """What a search proposes, one trial after the other."""
    found: list[dict[str, Any]] = []
    for number in range(1, count + 1):
        if (params := propose(spec, found, number)) is None:
            break
        found.append(recorded(number, params))
    return found


def test_a_grid_is_every_combination_in_order_the_last_path_varying_fastest() -> None:
    spec = search_spec()
    found = [trial["params"] for trial in trials(spec, 20)]
    assert found == [{"model.patch_size": p, "train.crop": c} for p in (8, 16, 32) for c in (64, 96)]
    assert (num_trials(spec), planned_steps(spec)) == (6, 240)


def test_a_grid_can_be_cut_short() -> None:
    spec = search_spec(search={"trials": 2})
    assert len(trials(spec, 20)) == num_trials(spec) == 2
    assert planned_steps(spec) == 80


def test_impossible_combinations_have_no_number() -> None:
    spec = search_spec(space={"train.crop": [24, 64], "model.patch_size": [8, 32]})
    assert [tuple(trial["params"].values()) for trial in trials(spec, 9)] == [(24, 8), (64, 8), (64, 32)]


def test_joint_paths_go_together_and_same_as_follows() -> None:
    space = {
        "eval.window": {"same_as": "train.crop"},
        "eval.stride": {"same_as": "train.crop"},
        "model.backbone, model.patch_size": [["vit_tiny_patch16_384", 16], ["vit_small_patch32_384", 32]],
        "train.crop": {"min": 64, "max": 128, "step": 32},
    }
    found = [trial["params"] for trial in trials(search_spec(space=space), 9)]
    assert len(found) == 6
    assert list(found[0]) == ["eval.window", "eval.stride", "model.backbone", "model.patch_size", "train.crop"]
    assert {(p["model.backbone"], p["model.patch_size"]) for p in found} == {
        ("vit_tiny_patch16_384", 16),
        ("vit_small_patch32_384", 32),
    }
    assert all(p["eval.window"] == p["train.crop"] for p in found)
    assert [p["train.crop"] for p in found[:3]] == [64, 96, 128]


def test_a_case_decides_what_is_chosen_from_and_whether_at_all() -> None:
    space = {**CONDITIONAL, "optim.lr": {"given": "optim.name", "cases": {"sgd": [0.1, 0.01], "adamw": [1e-3]}}}
    found = [trial["params"] for trial in trials(search_spec(space=space), 9)]
    assert found == [
        {"optim.name": "sgd", "optim.lr": 0.1, "optim.momentum": 0.8},
        {"optim.name": "sgd", "optim.lr": 0.1, "optim.momentum": 0.9},
        {"optim.name": "sgd", "optim.lr": 0.01, "optim.momentum": 0.8},
        {"optim.name": "sgd", "optim.lr": 0.01, "optim.momentum": 0.9},
        {"optim.name": "adamw", "optim.lr": 1e-3},
    ]
    assert count_choices(search_spec(space=space).space) == 5


@pytest.mark.parametrize(
    ("given", "cases", "base"),
    [
        ("model.pretrained", {"false": [64], "true": [96]}, [False, True]),
        ("eval.short_side", {"null": [64], "512": [96]}, [None, 512]),
        ("optim.lr", {"0.001": [64], "1e-05": [96]}, [0.001, 1e-5]),
    ],
)
def test_cases_are_written_as_the_value_is(given: str, cases: dict[str, Any], base: list[Any]) -> None:
    # In a document a key is always text.
    space = {given: base, "train.crop": {"given": given, "cases": cases}}
    found = [trial["params"]["train.crop"] for trial in trials(search_spec(space=space), 9)]
    assert found == [64, 96]


def test_by_lot_the_same_seed_gives_the_same_trials_and_another_seed_others() -> None:
    def run(seed: int) -> list[Any]:
        search = {"algorithm": "random", "trials": 8, "seed": seed}
        return [trial["params"] for trial in trials(search_spec(space=CONDITIONAL, search=search), 20)]

    assert len(run(1)) == 8
    assert run(1) == run(1) != run(2)
    assert json.loads(json.dumps(run(1))) == run(1)


def test_by_lot_a_trial_depends_on_those_before_it_alone() -> None:
    spec = search_spec(search={"algorithm": "random", "trials": 5})
    found = trials(spec, 5)
    later = recorded(6, {"model.patch_size": 8, "train.crop": 64})
    final = recorded(3, found[0]["params"], kind="final")
    for number in range(1, 6):
        assert propose(spec, [later, *reversed(found), final], number) == found[number - 1]["params"]


def test_by_lot_a_finite_space_is_drawn_without_repeats_until_it_is_empty() -> None:
    spec = search_spec(search={"algorithm": "random", "trials": 100})
    grid = combinations(spec)
    assert grid is not None
    found = [trial["params"] for trial in trials(spec, 100)]
    assert len(found) == num_trials(spec) == 6
    assert sorted(map(str, found)) == sorted(map(str, grid.possible))


def test_by_lot_an_impossible_draw_is_passed_over() -> None:
    space = {"train.crop": {"min": 16, "max": 2000}, "model.patch_size": [16, 64]}
    spec = search_spec(space=space, search={"algorithm": "random", "trials": 40})
    found = trials(spec, 40)
    assert combinations(spec) is None
    assert len(found) == 40
    for trial in found:
        trial_spec(spec, trial["params"])


def test_numbers_are_within_their_range_and_whole_where_the_field_is() -> None:
    space = {"optim.lr": {"min": 1e-5, "max": 1, "log": True}, "train.crop": {"min": 64, "max": 512, "log": True}}
    spec = search_spec(space=space, search={"algorithm": "random", "trials": 60})
    found = [trial["params"] for trial in trials(spec, 60)]
    rates, crops = [p["optim.lr"] for p in found], [p["train.crop"] for p in found]
    assert all(isinstance(crop, int) and 64 <= crop <= 512 for crop in crops)
    assert all(1e-5 <= rate <= 1 for rate in rates)
    assert 15 < sum(rate < 3e-3 for rate in rates) < 45
    assert all(float(f"{rate:.6g}") == rate for rate in rates)


def test_a_range_with_a_step_is_counted_and_one_without_is_not() -> None:
    def count(**body: Any) -> int | None:
        spec = search_spec(space={"optim.lr": body}, search={"algorithm": "random", "trials": 3})
        return count_choices(spec.space)

    assert count(min=0.1, max=0.7, step=0.1) == 7
    assert count(min=0.1, max=0.65, step=0.1) == 6
    assert count(min=0.1, max=0.7) is None
    spec = search_spec(space={"train.crop": {"min": 64, "max": 67}})
    assert [trial["params"]["train.crop"] for trial in trials(spec, 9)] == [64, 65, 66, 67]


def test_a_space_without_a_possible_draw_is_refused() -> None:
    with pytest.raises(Exception, match=r"none of 200 draws is possible: train\.crop: "):
        search_spec(
            space={"train.crop": {"min": 16, "max": 31}, "optim.lr": {"min": 0.1, "max": 1.0}},
            base={"data": {"shards": "/d"}, "model": {"variant": "seg-b/32"}},
            search={"algorithm": "random", "trials": 3},
        )


def test_whoever_draws_is_asked_once_for_each_choice_with_names_that_tell_cases_apart() -> None:
    asked: list[Question] = []

    def ask(question: Question) -> Answer:
        asked.append(question)
        choices = question.choices
        return (0.00123456789,) if isinstance(choices, Interval) else choices[-1]

    spec = search_spec(space=CONDITIONAL, search={"algorithm": "optuna", "trials": 3})
    assert draw(spec.space, ask) == {"optim.name": "adamw", "optim.lr": 0.00123457}
    assert [question.name for question in asked] == ["optim.name", "optim.lr [adamw]"]


def test_all_values_of_a_path() -> None:
    space = search_spec(
        space={**CONDITIONAL, "eval.window": {"same_as": "train.crop"}, "train.crop": [240, 336]},
        search={"algorithm": "random", "trials": 3},
    ).space
    assert values_of(space, "optim.lr") == (0.1, 0.01, 1e-4, 1e-2)
    assert values_of(space, "eval.window") == (240, 336)
    assert values_of(space, "train.steps") == ()


@pytest.mark.parametrize("low", [0, 3])
def test_a_step_holds_where_there_are_too_many_values_to_list(low: int) -> None:
    space = {"train.seed": {"min": low, "max": 1_000_000, "step": 7}}
    spec = search_spec(space=space, search={"algorithm": "random", "trials": 30})
    seeds = [trial["params"]["train.seed"] for trial in trials(spec, 30)]
    assert len(seeds) == 30
    assert all(isinstance(seed, int) and low <= seed <= 1_000_000 and (seed - low) % 7 == 0 for seed in seeds)


def test_the_steps_of_what_cannot_be_listed_are_those_of_its_longest_trial() -> None:
    def steps(choices: Any) -> int:
        space = {"model.decoder": ["mask", "linear"], "train.steps": choices, "optim.lr": {"min": 0.01, "max": 0.1}}
        return planned_steps(search_spec(space=space, search={"algorithm": "random", "trials": 3}))

    assert steps([10, 20]) == 60
    assert steps({"given": "model.decoder", "cases": {"mask": [10, 20]}}) == 120, "else the base's 40"
