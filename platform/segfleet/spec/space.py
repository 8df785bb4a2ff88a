"""Walking a search's space: its dimensions, how many combinations there are, and one choice after the other.

Nothing here knows whether a combination makes a possible training; that is `segfleet.spec.search`'s.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from segfleet.spec.fields import number_kind
from segfleet.spec.search_sections import CasesSpec, RangeSpec, SameSpec, Value

Params = dict[str, Value]
Answer = tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Interval:
    """All numbers from `low` to `high`.

    Attributes:
        is_whole: Only whole numbers.
        log: Evenly over the orders of magnitude.
        step: Distance between neighbours; None: none.
    """

    low: float
    high: float
    is_whole: bool
    log: bool
    step: float | None

    def values(self) -> tuple[Answer, ...] | None:
        """All of them, if they have a step and are not far too many."""
        last = self._last_place()
        if self.step is None or last >= _MOST_VALUES:
            return None
        return tuple((self.at(self.low + place * self.step),) for place in range(last + 1))

    def at(self, number: float) -> float:
        """The number as a trial gets it: a step's, within the bounds, whole or with 6 significant digits."""
        if self.step is not None:
            number = self.low + min(max(round((number - self.low) / self.step), 0), self._last_place()) * self.step
        rounded: float = round(number) if self.is_whole else float(f"{number:.6g}")
        return min(max(rounded, self.low), self.high)

    def _last_place(self) -> int:
        """How many steps lead at most from `low` to `high`."""
        return math.floor((self.high - self.low) / self.step + 1e-9) if self.step else 0


_MOST_VALUES = 10_000
Choices = tuple[Answer, ...] | Interval


@dataclass(frozen=True, slots=True)
class Question:
    """One choice that is to be made for a trial.

    Attributes:
        name: Differs between questions that have different choices.
        paths: What is chosen for; an answer has one value for each.
        choices: Answers, or an interval.
    """

    name: str
    paths: tuple[str, ...]
    choices: Choices


@dataclass(frozen=True, slots=True)
class Dimension:
    """Paths that are chosen together.

    Attributes:
        place: Key of the space.
        cases: Choices by the value of `given` as text; without `given`, under "".
        given: Path that decides which; None: none does.
    """

    place: str
    paths: tuple[str, ...]
    cases: Mapping[str, Choices]
    given: str | None = None

    def question(self, params: Params) -> Question | None:
        """What is to be chosen after the choices made so far; None: nothing in this case."""
        if self.given is None:
            return Question(self.place, self.paths, self.cases[""])
        case = case_of(params[self.given]) if self.given in params else None
        if case is None or case not in self.cases:
            return None
        return Question(f"{self.place} [{case}]", self.paths, self.cases[case])


def split_paths(key: str) -> tuple[str, ...]:
    """`a, b` as (a, b)."""
    return tuple(part.strip() for part in key.split(","))


def case_of(value: Value) -> str:
    """A value as the key of a case is written."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case _:
            return str(value)


def draw(space: Mapping[str, Any], ask: Callable[[Question], Answer]) -> Params:
    """One choice for every path, question by question.

    Args:
        space: A valid space of a search.
        ask: Answers a question with one value for each of its paths; for an interval any number, which is rounded.

    Returns:
        Value by path, in the order of the space.
    """
    params: Params = {}
    for dimension in dimensions(space):
        if (question := dimension.question(params)) is not None:
            answer = ask(question)
            if isinstance(question.choices, Interval):
                answer = (question.choices.at(_number(answer[0])),)
            params |= dict(zip(question.paths, answer, strict=True))
    return _ordered(space, params)


def every_choice(space: Mapping[str, Any]) -> Iterator[Params]:
    """All combinations of a space whose choices can be listed, the last path varying fastest."""
    yield from (_ordered(space, params) for params in _product(dimensions(space), {}))


def count_choices(space: Mapping[str, Any]) -> int | None:
    """Number of combinations; None: an interval without step, or of very many values, is not counted."""
    known = dimensions(space)
    try:
        return math.prod(_size(dimension, "", known) for dimension in known if dimension.given is None)
    except _EndlessError:
        return None


def values_of(space: Mapping[str, Any], path: str) -> tuple[Value, ...]:
    """Every value that the space can give to a path; of an interval, its bounds."""
    found: list[Value] = []
    wanted = _followers(space).get(path, path)
    for dimension in dimensions(space):
        if wanted in dimension.paths:
            place = dimension.paths.index(wanted)
            for choices in dimension.cases.values():
                if isinstance(choices, Interval):
                    found += [choices.low, choices.high]
                else:
                    found += [answer[place] for answer in choices]
    return tuple(found)


def dimensions(space: Mapping[str, Any]) -> tuple[Dimension, ...]:
    """What is chosen, each after what it depends on, else in the order of the space.

    Raises:
        ValueError: two depend on each other.
    """
    waiting = [_dimension(key, body) for key, body in space.items() if not isinstance(body, SameSpec)]
    ordered: list[Dimension] = []
    while waiting:
        chosen = {path for dimension in ordered for path in dimension.paths}
        ready = next((item for item in waiting if item.given is None or item.given in chosen), None)
        if ready is None:
            raise ValueError(f"{waiting[0].place!r} depends on itself")
        waiting.remove(ready)
        ordered.append(ready)
    return tuple(ordered)


def _dimension(key: str, body: Any) -> Dimension:
    paths = split_paths(key)
    if isinstance(body, CasesSpec):
        return Dimension(key, paths, {case: _choices(paths, each) for case, each in body.cases.items()}, body.given)
    return Dimension(key, paths, {"": _choices(paths, body)})


def _choices(paths: tuple[str, ...], choices: Any) -> Choices:
    if isinstance(choices, RangeSpec):
        is_whole = number_kind(paths[0]) is int
        step = 1 if is_whole and choices.step is None and not choices.log else choices.step
        return Interval(choices.min, choices.max, is_whole, choices.log, step)
    return tuple(option if isinstance(option, tuple) else (option,) for option in choices)


class _EndlessError(Exception):
    """An interval has no number of values."""


def _listed(choices: Choices) -> tuple[Answer, ...]:
    answers = choices.values() if isinstance(choices, Interval) else choices
    if answers is None:
        raise _EndlessError
    return answers


def _size(dimension: Dimension, case: str, known: Sequence[Dimension]) -> int:
    """Combinations of a dimension in one case with all that depends on it."""
    if case not in dimension.cases:
        return 1
    total = 0
    dependent = [other for other in known if other.given in dimension.paths]
    for answer in _listed(dimension.cases[case]):
        params = dict(zip(dimension.paths, answer, strict=True))
        total += math.prod(_size(other, case_of(params[str(other.given)]), known) for other in dependent)
    return total


def _product(left: tuple[Dimension, ...], params: Params) -> Iterator[Params]:
    if not left:
        yield params
        return
    question = left[0].question(params)
    if question is None:
        yield from _product(left[1:], params)
        return
    for answer in _listed(question.choices):
        yield from _product(left[1:], params | dict(zip(question.paths, answer, strict=True)))


def _followers(space: Mapping[str, Any]) -> dict[str, str]:
    """Paths that take the value of another one, and which."""
    return {split_paths(key)[0]: body.same_as for key, body in space.items() if isinstance(body, SameSpec)}


def _ordered(space: Mapping[str, Any], params: Params) -> Params:
    full = dict(params)
    for path, other in _followers(space).items():
        if other in params:
            full[path] = params[other]
    return {path: full[path] for key in space for path in split_paths(key) if path in full}


def _number(value: Value) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r} is no number")
    return value
