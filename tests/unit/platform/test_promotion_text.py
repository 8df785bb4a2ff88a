from __future__ import annotations

import json
from typing import Any

from segfleet.cli.model_text import comparison, comparison_rows, lineage


def version(number: str, miou: float, spec: dict[str, Any], **tags: str) -> dict[str, Any]:
    named = {f"segfleet.{name}": text for name, text in {"spec": json.dumps(spec), **tags}.items()}
    metrics = {"eval/boxes-val-0/ss/miou": miou, **({"only": 1.0} if number == "1" else {})}
    return {"name": "seg", "version": number, "job": "job-aaaaaaaa", "run_id": "r1", "metrics": metrics, "tags": named}


def test_two_versions_side_by_side() -> None:
    one = version("1", 0.5, {"model": {"patch_size": 16}, "train": {"steps": 9}}, parameters="100", dataset="boxes")
    two = version("2", 0.75, {"model": {"patch_size": 8}, "train": {"steps": 9}}, parameters="120", dataset="boxes")
    found = comparison(one, two)
    assert found["figures"]["eval/boxes-val-0/ss/miou"] == {"a": 0.5, "b": 0.75, "difference": 0.25}
    assert found["figures"]["only"]["difference"] is None
    assert found["spec"] == {"model.patch_size": {"a": 16, "b": 8}}
    rows = {row[0]: row[1:] for row in comparison_rows(found)}
    assert rows["eval/boxes-val-0/ss/miou"] == ("0.5", "0.75", "+0.25")
    assert rows["parameters"] == ("100", "120", "differs")
    assert rows["dataset"] == ("boxes", "boxes", "")
    assert "content_id" not in rows


def test_an_unreadable_spec_leaves_the_rest() -> None:
    one, two = version("1", 0.5, {}), version("2", 0.5, {"a": 1})
    two["tags"]["segfleet.spec"] = "{"
    assert comparison(one, two)["spec"] == {}


def test_the_lineage_of_a_searchs_model() -> None:
    tags = {
        "step": "40",
        "trial": "7",
        "parent_trial": "3",
        "dataset": "boxes",
        "content_id": "c" * 64,
        "base": "vit_tiny of timm",
        "code_version": "0.6+git.abc",
        "licence.weights": "apache-2.0",
    }
    assert lineage(version("3", 0.5, {}, **tags)) == [
        "seg/3",
        "├─ job job-aaaaaaaa at step 40",
        "│  └─ trial 7 of the search, with the parameters of trial 3",
        "├─ dataset boxes",
        "│  └─ content cccccccccccc",
        "├─ weights vit_tiny of timm",
        "├─ MLflow run r1",
        "├─ code 0.6+git.abc",
        "└─ licences",
        "   ├─ data: unknown",
        "   └─ weights: apache-2.0",
    ]


def test_the_lineage_of_an_import() -> None:
    imported = version("1", 0.5, {}, file="checkpoint.pth", format="reference", content_digest="d" * 64)
    lines = lineage({**imported, "job": None})
    assert lines[1:3] == ["├─ file checkpoint.pth (reference code)", "│  └─ dddddddddddd"]
