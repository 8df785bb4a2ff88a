"""From a search to its trials: which there can be, what each trains, and which comes next by grid or by lot.

Everything here is a pure function of the spec (and the trials so far), so that a search that was interrupted goes on
with the same trials.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any

from pydantic import ValidationError

from segfleet.errors import Problem, SpecError
from segfleet.spec import space
from segfleet.spec.explaining import explain
from segfleet.spec.filling import fill_training, leaves
from segfleet.spec.kinds import SearchSpec, TrainSpec
from segfleet.spec.search_sections import MAX_COMBINATIONS, MAX_TRIALS, Value
from segfleet.spec.space import Answer, Interval, Params, Question, count_choices, draw, every_choice

# So many draws without a possible new one end a search by lot.
_MOST_DRAWS = 200


@dataclass(frozen=True, slots=True)
class Impossible:
    """A combination that is no training, and why."""

    params: Params
    reason: str


@dataclass(frozen=True, slots=True)
class Grid:
    """All combinations of a space."""

    possible: tuple[Params, ...]
    impossible: tuple[Impossible, ...]


def trial_spec(spec: SearchSpec, params: Mapping[str, Any]) -> TrainSpec:
    """What a trial trains: as if the user had written these values into the base of the search.

    What the recipe fills in follows the trial's values (a variant's backbone, a decoder's dropout); all else is as in
    the resolved base.

    Args:
        spec: The search.
        params: Value by path.

    Raises:
        SpecError: this combination is no training.
    """
    base = spec.base.model_dump(mode="json")
    written = {path: value for path, value in leaves(base).items() if path in spec.written}
    problems: list[Problem] = []
    before = leaves(fill_training(_nested(written), []))
    after = leaves(fill_training(_nested({**written, **params}), problems))
    for path in before.keys() | after.keys():
        if path not in after:
            _remove(base, path)
        elif path not in before or before[path] != after[path]:
            _put(base, path, after[path])
    return _checked({"name": spec.name, **base, "queue": spec.queue.model_dump(mode="json")}, problems)


def final_spec(spec: SearchSpec, params: Mapping[str, Any]) -> TrainSpec | None:
    """What the best trial's retraining trains; None: the search has none.

    Raises:
        SpecError: with the changes of `final` this is no training.
    """
    if spec.final is None:
        return None
    changes = dict(spec.final.set)
    if spec.final.steps is not None:
        changes["train.steps"] = spec.final.steps
    found = trial_spec(spec, {**params, **changes})
    return found.model_copy(update={"register_": spec.register_})


def combinations(spec: SearchSpec) -> Grid | None:
    """All combinations of the space, sorted into possible and impossible ones.

    Returns:
        None for a space that cannot be listed: more than 1,000 combinations, or an interval without step.
    """
    return _combinations(spec.model_dump_json(by_alias=True))


def num_trials(spec: SearchSpec) -> int:
    """How many trials there will be at most."""
    grid = combinations(spec)
    wanted = spec.search.trials or MAX_TRIALS
    return wanted if grid is None else min(wanted, len(grid.possible))


def planned_steps(spec: SearchSpec) -> int:
    """Steps of all trials together if none ends early; what cannot be listed counts with its longest trial."""
    grid, count = combinations(spec), num_trials(spec)
    if grid is not None and (spec.search.algorithm == "grid" or count == len(grid.possible)):
        return sum(trial_spec(spec, params).train.steps for params in grid.possible[:count])
    varied = [value for value in space.values_of(spec.space, "train.steps") if isinstance(value, int)]
    always = any("train.steps" in each.paths and each.given is None for each in space.dimensions(spec.space))
    return count * max(varied if always else [*varied, spec.base.train.steps])


def most_parallel(document: Mapping[str, Any]) -> int:
    """How many trials of a resolved search, as plain data, can ever run at a time."""
    spec = SearchSpec.model_validate_json(json.dumps(document))
    return min(spec.search.max_parallel, num_trials(spec))


def values_of(document: Mapping[str, Any], path: str) -> list[tuple[str, Value]]:
    """(place, value) of all that a search sets a field to, its base apart; of a range its ends.

    Args:
        document: The resolved search as plain data.
        path: Of the field.
    """
    spec = SearchSpec.model_validate_json(json.dumps(document))
    found = [(f"space.{path}", value) for value in space.values_of(spec.space, path)]
    if spec.final is not None:
        found += [(f"final.set.{at}", value) for at, value in spec.final.set.items() if at == path]
        if spec.final.steps is not None and path == "train.steps":
            found.append(("final.steps", spec.final.steps))
    return found


def propose(spec: SearchSpec, trials: Iterable[Mapping[str, Any]], number: int) -> Params | None:
    """The parameters of a trial of a search by grid or by lot; None: there is no such trial.

    A grid's trials are its possible combinations in order. By lot, what a trial with a lower number has tried already
    is passed over, and so is what is impossible.

    Args:
        spec: The search.
        trials: Documents of the trials so far.
        number: Of the trial, from 1.
    """
    grid = combinations(spec)
    if number > num_trials(spec):
        return None
    if spec.search.algorithm == "grid":
        return None if grid is None else dict(grid.possible[number - 1])
    tried = {_key(trial["params"]) for trial in trials if trial["kind"] == "trial" and trial["number"] < number}
    seed = f"{spec.search.seed}:{number}"
    if grid is not None:
        left = [params for params in grid.possible if _key(params) not in tried]
        return dict(_lot(seed).choice(left)) if left else None
    for turn in range(_MOST_DRAWS):
        params = draw(spec.space, by_lot(f"{seed}:{turn}"))
        if _key(params) not in tried and not trouble(spec, params):
            return params
    return None


def trouble(spec: SearchSpec, params: Mapping[str, Any]) -> str:
    """Why a combination is impossible, as trial or as final retraining; empty: it is possible."""
    try:
        trial_spec(spec, params)
    except SpecError as error:
        return "; ".join(map(str, error.problems))
    try:
        final_spec(spec, params)
    except SpecError as error:
        return "in the final training: " + "; ".join(map(str, error.problems))
    return ""


def by_lot(seed: str) -> Any:
    """Answers to the questions of a space, decided by a seed alone."""
    lot = _lot(seed)

    def ask(question: Question) -> Answer:
        choices = question.choices
        if not isinstance(choices, Interval):
            return lot.choice(choices)
        if (values := choices.values()) is not None:
            return lot.choice(values)
        if choices.log:
            return (math.exp(lot.uniform(math.log(choices.low), math.log(choices.high))),)
        return (lot.uniform(choices.low, choices.high),)

    return ask


def _lot(seed: str) -> random.Random:
    return random.Random(seed)  # noqa: S311 - no secret: the same seed shall give the same trials


def plan_problems(spec: SearchSpec) -> list[Problem]:
    """What only the combinations show.

    A combination that is impossible is left out of the search; but a value that is impossible in all its combinations
    is a mistake, and so is a space without any possible one.
    """
    grid = combinations(spec)
    if grid is None:
        if spec.search.algorithm == "grid":
            count = count_choices(spec.space)
            if count is None:
                what = "a range without step, or with more than 10,000 values"
                return [Problem("space", f"a grid cannot list {what}", "give a larger step, or list the values")]
            hint = "take values out, or use random or optuna"
            return [Problem("space", f"{count:,} combinations; a grid has at most {MAX_COMBINATIONS:,}", hint)]
        if propose(spec, [], 1) is None:
            return [Problem("space", f"none of {_MOST_DRAWS} draws is possible: {_first_trouble(spec)}")]
        return []
    if not grid.possible:
        return [Problem("space", f"no combination is possible: {grid.impossible[0].reason}")]
    return _useless(grid)


def _first_trouble(spec: SearchSpec) -> str:
    return trouble(spec, draw(spec.space, by_lot(f"{spec.search.seed}:1:0")))


def _useless(grid: Grid) -> list[Problem]:
    """Values that stand in impossible combinations only."""
    used = {(path, _key(value)) for params in grid.possible for path, value in params.items()}
    found: dict[tuple[str, str], str] = {}
    for impossible in grid.impossible:
        for path, value in impossible.params.items():
            if (path, _key(value)) not in used:
                found.setdefault((path, _key(value)), impossible.reason)
    return [
        Problem(f"space.{path}", f"{value} is impossible in every combination: {why}")
        for (path, value), why in found.items()
    ]


@lru_cache(maxsize=8)
def _combinations(text: str) -> Grid | None:
    spec = SearchSpec.model_validate_json(text)
    count = count_choices(spec.space)
    if count is None or count > MAX_COMBINATIONS:
        return None
    possible, impossible = [], []
    for params in islice(every_choice(spec.space), MAX_COMBINATIONS):
        if reason := trouble(spec, params):
            impossible.append(Impossible(params, reason))
        else:
            possible.append(params)
    return Grid(tuple(possible), tuple(impossible))


def _checked(document: dict[str, Any], problems: list[Problem]) -> TrainSpec:
    try:
        found = TrainSpec.model_validate_json(json.dumps(document))
    except ValidationError as error:
        raise SpecError([*problems, *explain(error, TrainSpec)], "trial") from error
    problems = [*problems, *found.problems()]
    if problems:
        raise SpecError(problems, "trial")
    return found


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for path, value in flat.items():
        _put(document, path, value)
    return document


def _put(document: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for part in parents:
        document = document.setdefault(part, {})
    document[last] = value


def _remove(document: dict[str, Any], path: str) -> None:
    *parents, last = path.split(".")
    for part in parents:
        document = document.get(part, {})
    document.pop(last, None)
