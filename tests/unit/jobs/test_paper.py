"""The paper's figures: complete, and set beside ours only where the same thing was scored."""

from __future__ import annotations

from dataclasses import replace

import pytest

from segfleet.spec.recipes import variant_fields
from segfleet_jobs.paper import Scored, compare

SIX = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


def model(variant: str, layers: int = 2) -> dict[str, object]:
    regularised = {"dropout": 0.0, "drop_path": 0.1}
    return {"arch": "segmenter", "decoder_layers": layers, **regularised, **variant_fields(variant)}


OURS = Scored("ade20k", 2000, model("seg-s/16"), 512, (1.0,), flip=False, miou=0.4512)


def test_the_same_thing_is_compared() -> None:
    rows, reason = compare(OURS)
    assert [row.table for row in rows] == ["table 2", "table 3", "table 5"]
    assert {(round(row.ours, 6), row.paper) for row in rows} == {(45.12, 45.37)}
    assert reason == ""
    assert rows[0].difference == pytest.approx(-0.25)


def test_dropout_stochastic_depth_and_share_tell_rows_apart() -> None:
    dropped = replace(OURS, model=model("seg-s/16") | {"dropout": 0.1, "drop_path": 0.2})
    assert [(row.table, row.paper) for row in compare(dropped)[0]] == [("table 2", 41.14)]
    assert [(row.table, row.paper) for row in compare(replace(OURS, share=0.2))[0]] == [("table 5", 38.31)]
    assert compare(replace(OURS, share=0.3))[0] == []


def test_the_crop_tells_the_two_large_models_apart() -> None:
    large = replace(OURS, model=model("seg-l-mask/16"))
    assert [(row.table, row.paper) for row in compare(large)[0]] == [("table 4", 51.30)]
    assert [(row.table, row.paper) for row in compare(replace(large, crop=640))[0]] == [("table 6", 51.82)]
    many = replace(large, crop=640, scales=SIX, flip=True)
    assert [(row.table, row.paper) for row in compare(many)[0]] == [("table 6", 53.63), ("figure 4", 53.6)]


def test_cityscapes_has_one_decoder_layer() -> None:
    ours = Scored("cityscapes", 500, model("seg-l-mask/16", 1), 768, SIX, flip=True, miou=0.8)
    assert [row.paper for row in compare(ours)[0]] == [81.3]
    assert compare(replace(ours, model=model("seg-l-mask/16", 2)))[0] == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dataset": "camvid"}, "the paper has no figures for 'camvid'"),
        ({"num_samples": 26}, "scored on 26 pictures, the paper's figures for ade20k are of 2000"),
        ({"scales": (1.0, 1.5)}, "no other-scale figure"),
        ({"flip": True}, "no other-scale figure"),
        ({"crop": 224}, "no single-scale figure of this model and crop on ade20k"),
        ({"model": model("seg-s/16") | {"arch": "setr"}}, "no single-scale figure"),
        ({"model": model("seg-s/14")}, "no single-scale figure"),
    ],
)
def test_what_is_not_the_same_is_not_compared(change: dict[str, object], reason: str) -> None:
    rows, why = compare(replace(OURS, **change))
    assert rows == []
    assert reason in why
