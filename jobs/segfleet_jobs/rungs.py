"""Asynchronous successive halving (https://arxiv.org/abs/1810.05934): which trials are behind and should end.

The bound is the one of Ray Tune's `AsyncHyperBandScheduler`. The verdicts are a pure function of the recorded
validations, taken in the order in which the service has stored them; so a new driver comes to the same ones, those
included that the driver before it did not live to carry out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Verdict:
    """That a trial should end.

    Attributes:
        validation: The one that has shown it, from 1.
        step: Of that validation.
        why: For people.
    """

    validation: int
    step: int
    why: str


class Rungs:
    """The rungs of a search, with what each trial had on them.

    Args:
        mode: max or min.
        grace: Validations before a trial may be ended; the number of the first rung's.
        reduction: One trial in so many goes on at each rung, and each rung is so many times as high.

    Attributes:
        verdicts: By number of the trial, the first that went against it.
    """

    def __init__(self, mode: str, grace: int, reduction: int) -> None:
        self._mode, self._grace, self._reduction = mode, grace, reduction
        self._on_rungs: dict[int, dict[int, float]] = {}
        self._taken: dict[int, int] = {}
        self.verdicts: dict[int, Verdict] = {}

    def take(self, trials: Sequence[Mapping[str, Any]]) -> None:
        """Take in what is new of the recorded validations of all trials."""
        new = [
            (report.get("at", 0.0), trial["number"], report["validation"], report)
            for trial in trials
            for report in trial["reports"][self._taken.get(trial["number"], 0) :]
        ]
        for _, number, validation, report in sorted(new, key=lambda item: item[:3]):
            self._taken[number] = validation
            why = self.judge(number, validation, report["value"])
            if why is not None:
                self.verdicts.setdefault(number, Verdict(validation, report["step"], why))

    def judge(self, number: int, validation: int, value: float | None) -> str | None:
        """Take one validation in.

        Args:
            number: Of the trial.
            validation: From 1.
            value: None: the trial had none, and goes on.

        Returns:
            Why the trial should end; None: it goes on.
        """
        rung = self._rung(validation)
        others = self._on_rungs.setdefault(rung, {})
        if value is None or rung == 0 or number in others:
            return None
        why = self._why(validation, value, list(others.values())) if others else None
        others[number] = value
        return why

    def _rung(self, validation: int) -> int:
        """The highest rung that a validation has reached, by the number of its own validation; 0: none yet."""
        rung, above = 0, self._grace
        while above <= validation:
            rung, above = above, above * self._reduction
        return rung

    def _why(self, validation: int, value: float, others: list[float]) -> str | None:
        share = 100 / self._reduction
        bound = float(np.percentile(others, 100 - share if self._mode == "max" else share))
        if value >= bound if self._mode == "max" else value <= bound:
            return None
        side = "below" if self._mode == "max" else "above"
        return (
            f"ended by asha at validation {validation}: {value:.4f} is {side} {bound:.4f}, the bound of the best "
            f"{share:.0f}% of {len(others)} trials"
        )
