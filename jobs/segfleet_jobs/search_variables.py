"""What differs between the trials of a search, as a person would name it.

Fields that follow another one say nothing of their own and are left out: the second of two paths that always change
together, a case with one choice only. A variant of model and patch size is two variables.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from segfleet.spec.kinds import SearchSpec
from segfleet.spec.space import Dimension, Interval, dimensions

# So many different values still make rows of a map.
MOST_ROWS = 12
_LONGEST = 34
_VARIANT = re.compile(r"([a-z0-9-]+)/([1-9][0-9]*)")
Value = bool | int | float | str | None


@dataclass(frozen=True, slots=True)
class Variable:
    """One thing that differs.

    Attributes:
        name: For people.
        values: One for each trial; None where a trial has no such choice, or chose null.
        levels: The different values: numbers ascending, then words in the order in which they came.
    """

    name: str
    values: tuple[Value, ...]
    levels: tuple[Value, ...]

    @property
    def is_number(self) -> bool:
        """Whether all values are numbers."""
        return all(isinstance(level, int | float) and not isinstance(level, bool) for level in self.levels)

    @property
    def is_few(self) -> bool:
        """Whether the values are few enough for the rows of a map."""
        return len(self.levels) <= MOST_ROWS


def variables(spec: SearchSpec, params: Sequence[Mapping[str, Any]]) -> tuple[Variable, ...]:
    """The variables of which the trials have at least two values.

    Args:
        spec: The search.
        params: Value by path of each trial.
    """
    found: list[Variable] = []
    for dimension in dimensions(spec.space):
        for path in _own_paths(dimension):
            found += _variables_of(path, [one.get(path) for one in params])
    return tuple(variable for variable in found if len(variable.levels) > 1)


def label(value: Value) -> str:
    """A value as text."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def cut(text: str) -> str:
    """A text short enough for a chart."""
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def short_params(shown: Sequence[Variable], place: int) -> str:
    """What one trial chose of the variables, in few words.

    Args:
        shown: The variables.
        place: Of the trial among those the variables were made of.
    """
    return ", ".join(label(variable.values[place]) for variable in shown if variable.values[place] is not None)


def _own_paths(dimension: Dimension) -> Iterable[str]:
    """The paths of a dimension that do not follow from an earlier one of it, or from what it depends on."""
    choices = list(dimension.cases.values())
    if dimension.given is not None and all(not isinstance(one, Interval) and len(one) == 1 for one in choices):
        return
    answers = [answer for one in choices if not isinstance(one, Interval) for answer in one]
    kept: list[int] = []
    for place, path in enumerate(dimension.paths):
        if not any(_decides([(answer[other], answer[place]) for answer in answers]) for other in kept):
            kept.append(place)
            yield path


def _decides(pairs: Sequence[tuple[Value, Value]]) -> bool:
    """Whether the first of each pair leaves no choice of the second."""
    return len(set(map(str, pairs))) == len({str(first) for first, _ in pairs})


def _variables_of(path: str, values: Sequence[Any]) -> list[Variable]:
    matches = [_VARIANT.fullmatch(value) if isinstance(value, str) else None for value in values]
    if path == "model.variant" and matches and None not in matches:
        parts = [(match[1], int(match[2])) for match in matches if match is not None]
        model, patch = (tuple(part[i] for part in parts) for i in (0, 1))
        if len(set(patch)) > 1 and len(set(model)) < len(set(parts)):
            return [Variable("model", model, _levels(model)), Variable("patch size", patch, _levels(patch))]
    return [Variable(path, tuple(values), _levels(values))]


def _levels(values: Iterable[Any]) -> tuple[Value, ...]:
    known = [value for value in dict.fromkeys(values) if value is not None]
    numbers = [value for value in known if isinstance(value, int | float)]
    words = [value for value in known if not isinstance(value, int | float)]
    return (*sorted(numbers), *words)
