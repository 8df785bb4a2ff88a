"""Jobs that run with as many workers as are free: what may be written, and what it asks of the cluster."""

from __future__ import annotations

from typing import Any

import pytest

from factories import train_document
from segfleet.cli.job_text import plan_of
from segfleet.errors import SpecError
from segfleet.queue.limits import limit_problems
from segfleet.queue.model import gang_of
from segfleet.queue.scheduling.values import Gang
from segfleet.spec.resolve import resolve_spec, to_document


def elastic(workers: Any, batch: int = 8, **more: Any) -> dict[str, Any]:
    document = {
        "kind": "train",
        "name": "shapes",
        "data": {"shards": "/data/shapes"},
        "train": {"global_batch": batch},
        "resources": {"workers": workers},
        **more,
    }
    return to_document(resolve_spec(document))


def evaluation(workers: Any) -> dict[str, Any]:
    document = {"kind": "evaluate", "name": "e", "model": "m/1", "data": {"shards": "/d"}}
    return to_document(resolve_spec({**document, "resources": {"workers": workers}}))


def test_a_number_stays_a_number_and_a_range_a_range() -> None:
    assert elastic(2)["resources"]["workers"] == 2
    spec = elastic({"min": 2, "max": 8})
    assert spec["resources"]["workers"] == {"min": 2, "max": 8}
    assert to_document(resolve_spec(spec)) == spec
    assert "2 to 8 workers" in plan_of(spec)
    assert "1 worker with" in plan_of(elastic(1))


@pytest.mark.parametrize(
    ("workers", "said"),
    [
        ({"min": 4, "max": 2}, "resources.workers: min 4 is above max 2"),
        ({"min": 0, "max": 2}, "resources.workers.min: 0: input should be greater than or equal to 1"),
        ({"min": 1, "max": 5000}, "resources.workers.max: 5000"),
        ({"min": 1}, "resources.workers.max: missing"),
        ({"min": 1, "max": 2, "mox": 3}, "resources.workers.mox: unknown key"),
        ({"min": 5, "max": 7}, "train.global_batch: 8 is not divisible by any number from 5 to 7 workers"),
        (3, "train.global_batch: 8 is not divisible by 3 workers"),
        ("two", "resources.workers: 'two': input should be a valid integer"),
    ],
)
def test_what_no_job_can_have_is_refused_once_and_by_its_path(workers: Any, said: str) -> None:
    with pytest.raises(SpecError) as caught:
        elastic(workers)
    assert [said in str(problem) for problem in caught.value.problems] == [True]


def test_batch_norm_needs_a_number_that_leaves_two_samples_a_worker() -> None:
    model = {"arch": "deeplabv3plus", "backbone": "resnet18", "pretrained": False}
    assert gang_of(elastic({"min": 2, "max": 8}, model=model)).sizes == (2, 4)
    with pytest.raises(SpecError, match="two a worker"):
        elastic({"min": 5, "max": 8}, model=model)
    with pytest.raises(SpecError, match="two a worker"):
        elastic({"min": 3, "max": 7}, batch=7, model=model)


def test_a_training_asks_for_the_numbers_that_divide_its_batch() -> None:
    assert gang_of(elastic({"min": 2, "max": 7}, batch=12)) == Gang(2, 1, 0, 6, (2, 3, 4, 6))
    assert gang_of(elastic({"min": 5, "max": 7}, batch=12)) == Gang(6, 1, 0, 6, (6,))
    assert gang_of(evaluation({"min": 2, "max": 7})) == Gang(2, 1, 0, 7)
    assert gang_of(elastic(4)) == Gang(4, 1, 0)


@pytest.mark.parametrize(("free", "usable"), [(1, 0), (2, 2), (4, 3), (5, 3), (6, 6), (9, 6)])
def test_of_what_is_free_it_uses_the_largest_number_it_can(free: int, usable: int) -> None:
    assert Gang(2, 1, 0, 6, (2, 3, 6)).usable(free) == usable


def test_a_limit_bounds_the_most_workers() -> None:
    spec = elastic({"min": 2, "max": 8})
    assert limit_problems(spec, {"resources": {"workers": 8}}, "the cluster") == []
    problems = limit_problems(spec, {"resources": {"workers": 4}}, "the cluster")
    assert [str(problem.path) for problem in problems] == ["resources.workers.max"]
    assert limit_problems(train_document(workers=4), {"resources": {"workers": 4}}, "the cluster") == []


def test_trials_of_a_search_have_a_fixed_number() -> None:
    base = {"data": {"shards": "/d"}, "train": {"steps": 10}, "resources": {"workers": {"min": 1, "max": 2}}}
    search = {"kind": "search", "name": "s", "base": base, "space": {"train.crop": [256, 512]}}
    with pytest.raises(SpecError, match=r"base\.resources\.workers: trials have equally many workers"):
        resolve_spec(search)
