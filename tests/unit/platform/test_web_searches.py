"""The page of a search: its leaderboard and how its trials compare."""

from __future__ import annotations

import re
from typing import Any

import pytest

from searches import trial_document
from searching import search_spec
from segfleet.leaderboard import leaderboard
from segfleet.spec.resolve import to_document
from segfleet.web.charts import Spot, curves, scatter
from segfleet.web.search_view import heat_map
from serving import Service, sign_in

HTML = {"Accept": "text/html"}
NAMES = {"model.patch_size": "patch_size", "train.crop": "crop", "optim.lr": "lr"}


def standings(*trials: dict[str, Any], mode: str = "max") -> Any:
    return leaderboard(trials, mode)


def pair(number: int, patch: int, crop: int, value: float | None, **changes: Any) -> dict[str, Any]:
    return trial_document(number, {"model.patch_size": patch, "train.crop": crop}, value, **changes)


def test_a_search_shows_its_trials(service: Service) -> None:
    job = service.queue.submit(to_document(search_spec()), owner="ann")[0]
    sign_in(service)
    assert "No trial has begun yet" in service.http.get(f"/jobs/{job.id}", headers=HTML).text
    attempt_id = service.start(job.id)
    token = service.claim(attempt_id).json()["token"]
    trials, who = service.queue.trials, (attempt_id, token)
    for number, (patch, crop) in enumerate(((8, 64), (16, 64), (16, 96)), start=1):
        trials.add(*who, number, "trial", {"model.patch_size": patch, "train.crop": crop}, 40)
        trials.move(*who, number, "running")
        report = {"validation": 1, "step": 10, "value": 0.1 * number, "miou": 0.1 * number, "seconds": 5.0}
        trials.report(*who, number, report)
        trials.measured(*who, number, {"parameters": 5_000_000, "images_per_s": 40.0 / number})
    trials.move(*who, 2, "failed", why="<script>alert(1)</script>")
    text = service.http.get(f"/jobs/{job.id}/live?part=trials", headers=HTML).text
    assert "0.3000" in text
    assert "patch_size 16, crop 96" in text
    assert "&lt;script&gt;" in text
    assert "<script>" not in text
    assert text.count('class="dot') == 2, "the failed one has no place"
    assert re.findall(r'class="num heat-(\d)">([0-9.]+)', text) == [("0", "0.1000"), ("9", "0.3000")]
    page = service.http.get(f"/jobs/{job.id}", headers=HTML).text
    assert text.strip() in page
    prepared = service.submit()["id"]
    assert service.http.get(f"/jobs/{prepared}/live?part=trials").status_code == 422


def test_a_map_has_the_best_of_each_pair() -> None:
    trials = (pair(1, 8, 64, 0.1), pair(2, 8, 64, 0.3), pair(3, 16, 128, 0.2), pair(4, 16, 96, None))
    found = heat_map(standings(*trials), NAMES, "max")
    assert found is not None
    assert found.down == ("patch_size", ["8", "16"])
    assert found.across == ("crop", ["64", "96", "128"])
    assert found.cells == {("8", "64"): (0.3, 2), ("16", "128"): (0.2, 3)}
    assert (found.share(0.2), found.share(0.3)) == (0.0, 1.0)
    least = heat_map(standings(*trials, mode="min"), NAMES, "min")
    assert least is not None
    assert least.cells["8", "64"] == (0.1, 1)


def test_one_variable_three_or_too_many_choices_make_no_map() -> None:
    assert heat_map(standings(), {}, "max") is None
    assert heat_map(standings(pair(1, 8, 64, 0.1), pair(2, 16, 64, 0.2)), NAMES, "max") is None
    third = [trial_document(n, {"model.patch_size": n, "train.crop": n, "optim.lr": n / 7}, 0.1) for n in (1, 2)]
    assert heat_map(standings(*third), NAMES, "max") is None
    many = [pair(n, 8 + n % 2, n, 0.1) for n in range(1, 15)]
    assert heat_map(standings(*many), NAMES, "max") is None
    assert heat_map(standings(pair(1, 8, 64, None), pair(2, 16, 96, None)), NAMES, "max") is None


@pytest.mark.parametrize("number", [1, 2, 5])
def test_drawings_stay_in_their_box_and_mark_what_leads(number: int) -> None:
    spots = [Spot(10.0 * i, 0.5 + i / 10, f"trial {i}", i < 2) for i in range(number)]
    drawn = str(scatter("value against speed", spots))
    assert drawn.count("<circle") == number
    assert drawn.count("dot front") == min(number, 2)
    assert ("front-line" in drawn) == (number > 1)
    lines = [([(float(step), step / (9 + i)) for step in range(1, 2 + i)], f"trial {i}", i == 0) for i in range(number)]
    drawn += str(curves("value by step", lines))
    assert drawn.count("line mark") == 1
    assert drawn.count("line pale") == number - 1
    assert "nan" not in drawn
    for x, y in re.findall(r"[ML]([0-9.-]+) ([0-9.-]+)", drawn) + re.findall(r'cx="([0-9.-]+)" cy="([0-9.-]+)"', drawn):
        assert 0 <= float(x) <= 460
        assert 0 <= float(y) <= 170
