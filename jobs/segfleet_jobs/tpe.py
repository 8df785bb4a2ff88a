"""The next trial by Optuna's tree-structured Parzen estimator (https://papers.nips.cc/paper/4443), without a study.

The recorded trials are the study: it is built anew for each question, and the sampler's seed is a function of the
search's seed and the trial's number. So a restarted search asks the same and is answered the same.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from segfleet.spec.kinds import SearchSpec
from segfleet.spec.search import trouble
from segfleet.spec.space import Answer, Interval, Params, Question, draw

# Trials by lot before the estimator has something to go by.
_FIRST_BY_LOT = 8
_DRAWS = 200


def propose_tpe(spec: SearchSpec, trials: Sequence[Mapping[str, Any]], number: int) -> Params | None:
    """Parameters of a trial; what was tried and what is impossible is passed over.

    Args:
        spec: The search.
        trials: As recorded, with lower numbers; those that have not ended count only as tried.
        number: Of the trial.

    Returns:
        None: what can be drawn has been tried.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    by_lot = min(_FIRST_BY_LOT, max(2, number // 2))
    sampler = optuna.samplers.TPESampler(
        seed=random.Random(f"{spec.search.seed}/{number}").randrange(2**31),  # noqa: S311
        n_startup_trials=by_lot,
    )
    study = optuna.create_study(direction="maximize" if spec.search.mode == "max" else "minimize", sampler=sampler)
    study.add_trials([found for trial in trials if (found := _frozen(spec.space, trial)) is not None])
    tried = [dict(trial["params"]) for trial in trials]
    for _ in range(_DRAWS):
        asked = study.ask()
        params = draw(spec.space, lambda question, asked=asked: _suggest(asked, question))  # type: ignore[misc]
        if params not in tried and not trouble(spec, params):
            return params
        study.tell(asked, state=TrialState.FAIL)
    return None


def _suggest(trial: optuna.Trial, question: Question) -> Answer:
    choices, listed = question.choices, _listed(question)
    if isinstance(choices, Interval) and listed is not None:
        return listed[trial.suggest_int(question.name, 0, len(listed) - 1)]
    if isinstance(choices, Interval):
        return (trial.suggest_float(question.name, choices.low, choices.high, log=choices.log),)
    return choices[trial.suggest_categorical(question.name, range(len(choices)))]


def _as_asked(question: Question, answer: Answer) -> tuple[BaseDistribution, Any]:
    """What `_suggest` would have asked, and the answer to it."""
    choices, listed = question.choices, _listed(question)
    if isinstance(choices, Interval) and listed is not None:
        return IntDistribution(0, len(listed) - 1), listed.index(answer)
    if isinstance(choices, Interval):
        return FloatDistribution(choices.low, choices.high, choices.log), answer[0]
    return CategoricalDistribution(range(len(choices))), choices.index(answer)


def _listed(question: Question) -> tuple[Answer, ...] | None:
    """The values of an interval with a step, which are told apart by their place: rounded, they leave the step."""
    return question.choices.values() if isinstance(question.choices, Interval) else None


def _frozen(space: Mapping[str, Any], recorded: Mapping[str, Any]) -> FrozenTrial | None:
    """A recorded trial as Optuna knows one; None: it has not ended, or knows nothing that Optuna could learn from."""
    states = {"succeeded": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "failed": TrialState.FAIL}
    state, params = states.get(recorded["state"]), recorded["params"]
    if state is None or (state is TrialState.COMPLETE and recorded["best_value"] is None):
        return None
    distributions: dict[str, BaseDistribution] = {}
    values: dict[str, Any] = {}

    def answer(question: Question) -> Answer:
        given = tuple(params[path] for path in question.paths)
        distributions[question.name], values[question.name] = _as_asked(question, given)
        return given

    draw(space, answer)
    reports = {report["validation"]: report["value"] for report in recorded["reports"] if report["value"] is not None}
    return optuna.trial.create_trial(
        state=state,
        value=recorded["best_value"] if state is TrialState.COMPLETE else None,
        params=values,
        distributions=distributions,
        intermediate_values=reports,
    )
