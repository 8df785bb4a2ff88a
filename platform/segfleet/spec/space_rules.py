"""What can be wrong with a search's space, whatever combination is looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from segfleet.errors import Problem
from segfleet.spec.fields import number_kind, path_problem, value_trouble
from segfleet.spec.search_sections import CasesSpec, RangeSpec, SameSpec
from segfleet.spec.space import case_of, dimensions, split_paths


def space_problems(space: Mapping[str, Any]) -> list[Problem]:
    """Everything that is wrong with a space, whatever combination is looked at."""
    found: list[Problem] = []
    seen: dict[str, str] = {}
    for key in space:
        for path in split_paths(key):
            place = f"space.{key}"
            if unknown := path_problem(place, path):
                found.append(unknown)
            elif path in seen:
                found.append(Problem(place, f"{path!r} is varied by {seen[path]!r} already"))
            seen[path] = key
    if found:
        return found
    for key, body in space.items():
        found += _body_problems(key, body, space, seen)
    if not found:
        try:
            dimensions(space)
        except ValueError as error:
            found.append(Problem("space", str(error), "let no two paths be given by each other"))
    return found


def _body_problems(key: str, body: Any, space: Mapping[str, Any], owners: Mapping[str, str]) -> list[Problem]:
    place, paths = f"space.{key}", split_paths(key)
    match body:
        case SameSpec():
            other = body.same_as
            if len(paths) > 1 or other not in owners or isinstance(space[owners[other]], SameSpec):
                return [Problem(place, f"same_as {other!r}: no path that the space itself chooses")]
            return []
        case CasesSpec():
            other = body.given
            if other not in owners or isinstance(space[owners[other]], SameSpec):
                return [Problem(f"{place}.given", f"{other!r} is no path that the space itself chooses")]
            found = []
            known = _texts(space[owners[other]], split_paths(owners[other]).index(other))
            for case, choices in body.cases.items():
                if case not in known:
                    hint = f"it takes {', '.join(sorted(known))}" if known else "give it a list of values"
                    found.append(Problem(f"{place}.cases.{case}", f"{other} never has this value", hint))
                found += _choice_problems(f"{place}.cases.{case}", paths, choices)
            return found
        case _:
            return _choice_problems(place, paths, body)


def _choice_problems(place: str, paths: Sequence[str], choices: Any) -> list[Problem]:
    if isinstance(choices, RangeSpec):
        if len(paths) > 1:
            return [Problem(place, "a range is of one path", "list the values that go together")]
        if (kind := number_kind(paths[0])) is None:
            return [Problem(place, f"{paths[0]} takes no numbers", "list its values")]
        given = [value for value in (choices.min, choices.max, choices.step) if value is not None]
        if kind is int and not all(isinstance(value, int) for value in given):
            return [Problem(place, f"{paths[0]} takes whole numbers only")]
        troubles = [value_trouble(paths[0], value) for value in (choices.min, choices.max)]
        return [Problem(place, trouble) for trouble in troubles if trouble]
    if not choices:
        return [Problem(place, "no values to choose from")]
    found, seen = [], set()
    for number, option in enumerate(choices):
        where = f"{place}[{number}]"
        answer = option if isinstance(option, tuple) else (option,)
        shown = list(option) if isinstance(option, tuple) else option
        if len(answer) != len(paths) or (len(paths) == 1 and isinstance(option, tuple)):
            wanted = f"[{', '.join(paths)}], one value for each" if len(paths) > 1 else "a single value"
            found.append(Problem(where, f"{shown!r} is not what is asked for", f"write {wanted}"))
            continue
        # True is 1 for Python, and 1.0 is 1 for everybody.
        if (same := tuple((isinstance(value, bool), value) for value in answer)) in seen:
            found.append(Problem(where, f"{shown!r} is there twice"))
        seen.add(same)
        troubles = [value_trouble(path, value) for path, value in zip(paths, answer, strict=True)]
        found += [Problem(where, trouble) for trouble in troubles if trouble]
    return found


def _texts(body: Any, place: int) -> set[str]:
    """The values of one path as text; of a range none, since no case can name them."""
    bodies = body.cases.values() if isinstance(body, CasesSpec) else [body]
    listed = [options for options in bodies if not isinstance(options, RangeSpec)]
    values = (option[place] if isinstance(option, tuple) else option for options in listed for option in options)
    return {case_of(value) for value in values}
