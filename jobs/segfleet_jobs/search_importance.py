"""How much of the differences between trials each variable explains.

A forest of regression trees (scikit-learn) is fitted to the trials; a variable's importance is the share of the
variance that its splits take away. How far to trust it is told by trials that a tree has not seen (out of bag): with an
R² of nothing or less the forest explains nothing, and then no importance is given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestRegressor  # type: ignore[import-untyped]

from segfleet_jobs.search_variables import Value, Variable

# Fewer trials than this, or than so many for each variable, are no ground for a statement.
LEAST_TRIALS = 8
LEAST_A_VARIABLE = 3
_TREES = 100
_SEED = 0


@dataclass(frozen=True, slots=True)
class Importance:
    """What the variables explain.

    Attributes:
        shares: By variable, in the order given; they add up to 1. Empty if there is nothing to say.
        explained: R² on trials that a tree has not seen, at most 1.
        num_trials: How many it rests on.
        why: Why there is nothing to say; empty if there is.
    """

    shares: dict[str, float]
    explained: float
    num_trials: int
    why: str = ""


def importance(shown: Sequence[Variable], values: Sequence[float | None]) -> Importance:
    """The importance of each variable for the values.

    Args:
        shown: The variables.
        values: Of the trials; those without one are left out. They should have been trained equally long.
    """
    used = [i for i, value in enumerate(values) if value is not None and math.isfinite(value)]
    needed = max(LEAST_TRIALS, LEAST_A_VARIABLE * len(shown))
    if len(shown) < 2:
        return Importance({}, 0.0, len(used), "fewer than two variables differ between the trials")
    if len(used) < needed:
        what = f"{len(used)} trials have a comparable value; with {len(shown)} variables it takes at least {needed}"
        return Importance({}, 0.0, len(used), what)
    target = np.array([values[i] for i in used], np.float64)
    if float(np.ptp(target)) == 0.0:
        return Importance({}, 0.0, len(used), "all trials have the same value")
    columns = [_encoded(variable, used) for variable in shown]
    forest = RandomForestRegressor(_TREES, random_state=_SEED, oob_score=True, n_jobs=1)
    forest.fit(np.hstack(columns), target)
    explained = float(forest.oob_score_)
    if explained <= 0:
        what = f"a forest fitted to {len(used)} trials does not foretell trials it has not seen (R² {explained:.2f})"
        return Importance({}, explained, len(used), what)
    ends = np.cumsum([column.shape[1] for column in columns])
    shares = [float(part.sum()) for part in np.split(forest.feature_importances_, ends[:-1])]
    return Importance(dict(zip((v.name for v in shown), shares, strict=True)), explained, len(used))


def _encoded(variable: Variable, used: Sequence[int]) -> NDArray[np.float64]:
    """A variable as columns: a number as it is, one more column says where there is none; a word as one a level."""
    values: list[Value] = [variable.values[i] for i in used]
    if variable.is_number:
        middle = float(np.median([float(level) for level in variable.levels if isinstance(level, int | float)]))
        numbers = [[middle if value is None else float(value), float(value is None)] for value in values]
        return np.array(numbers, np.float64)
    return np.array([[float(value == level) for level in variable.levels] for value in values], np.float64)
