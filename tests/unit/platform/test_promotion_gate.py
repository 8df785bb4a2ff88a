from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from segfleet.promotion.gate import Figures, Gate, decide, figures_of

HOLDER = Figures("job-hhhhhhhh", "c1", "val", "reference-ss-0", 0.70, 10.0)


def gate(**rules: Any) -> Gate:
    return Gate.model_validate({"shards": "/data", **rules})


def candidate(value: float | None, speed: float | None = 10.0) -> Figures:
    return replace(HOLDER, job="job-cccccccc", value=value, images_per_s=speed)


@pytest.mark.parametrize(
    ("rules", "value", "speed", "passed"),
    [
        ({}, 0.7001, 1.0, True),
        ({}, 0.70, 99.0, False),
        ({}, 0.69, 99.0, False),
        ({"margin": 0.02}, 0.719999, 10.0, False),
        # 0.72 - 0.70 is a little below 0.02 in binary.
        ({"margin": 0.02}, 0.72, 10.0, True),
        ({"tolerance": 0.005, "faster": 1.2}, 0.695, 12.0, True),
        ({"tolerance": 0.005, "faster": 1.2}, 0.6949, 12.0, False),
        ({"tolerance": 0.005, "faster": 1.2}, 0.695, 11.9, False),
        ({"tolerance": 0.005, "faster": 1.2}, 0.695, None, False),
        ({"tolerance": 0.005, "faster": 1.2}, 0.71, 0.1, True),
        ({"tolerance": 0.0, "faster": 2.0}, 0.70, 20.0, True),
        ({"margin": 0.05, "tolerance": 0.0, "faster": 2.0}, 0.72, 20.0, True),
    ],
)
def test_who_is_better_or_as_good_and_faster_passes(
    rules: dict[str, Any], value: float, speed: float | None, passed: bool
) -> None:
    verdict = decide(gate(**rules), candidate(value, speed), HOLDER)
    assert verdict.passed == passed, verdict.why
    assert f"miou {value:.4f} against 0.7000" in verdict.why


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"content_id": "c2"}, "different data"),
        ({"split": "test"}, "different data"),
        ({"protocol": "reference-ms6-1"}, "give the gate an eval section"),
        ({"value": None}, "has no miou"),
    ],
)
def test_what_did_not_measure_the_same_is_not_compared(change: dict[str, Any], words: str) -> None:
    for ours, theirs in ((replace(candidate(0.9), **change), HOLDER), (candidate(0.9), replace(HOLDER, **change))):
        verdict = decide(gate(), ours, theirs)
        assert not verdict.passed
        assert words in verdict.why


def test_where_nobody_holds_the_alias_a_scored_candidate_passes() -> None:
    assert decide(gate(margin=0.5), candidate(0.1), None).passed
    assert not decide(gate(), candidate(None), None).passed


@pytest.mark.parametrize(
    "rules",
    [
        {"tolerance": 0.01},
        {"faster": 1.2},
        {"margin": -0.1},
        {"margin": float("nan")},
        {"faster": 1.0, "tolerance": 0.1},
        {"metric": "loss"},
        {"shards": "ftp://x/y"},
        {"odd": 1},
    ],
)
def test_a_rule_without_sense_is_refused(rules: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        gate(**rules)


def test_figures_come_from_an_evaluations_result() -> None:
    result = {
        "content_id": "c1",
        "split": "val",
        "protocol": {"label": "reference-ss-0", "window": 32},
        "miou": 0.5,
        "mean_accuracy": float("nan"),
        "samples_per_s": 4,
    }
    assert figures_of("job-a", result, "miou") == Figures("job-a", "c1", "val", "reference-ss-0", 0.5, 4.0)
    assert figures_of("job-a", result, "mean_accuracy").value is None
    assert figures_of("job-a", {}, "miou").value is None
