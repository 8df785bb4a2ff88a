"""The specs that ship with the project: each is valid, and is what its name says."""

from __future__ import annotations

from pathlib import Path

import pytest

from segfleet.spec.document import apply_overrides, read_document
from segfleet.spec.kinds import TrainSpec
from segfleet.spec.resolve import resolve_spec, to_document

FOLDER = Path(__file__).parents[3] / "jobs" / "specs"
SPECS = sorted(FOLDER.glob("*.yaml"))


def resolved(path: Path) -> TrainSpec:
    spec = resolve_spec(read_document(path), path.name)
    assert isinstance(spec, TrainSpec)
    return spec


def test_the_promised_specs_are_there() -> None:
    assert {path.stem for path in SPECS} >= {
        "ade20k-seg-s-mask-16",
        "camvid-seg-s-linear-14",
        "camvid-seg-s-mask-14",
        "cityscapes-seg-l-mask-16",
        "demo",
        "pascal_context-seg-l-mask-16",
    }
    assert [path.name for path in FOLDER.iterdir() if path not in SPECS] == []


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_spec_resolves_and_is_named_after_its_file(path: Path) -> None:
    spec = resolved(path)
    assert spec.name == path.stem
    assert resolve_spec(to_document(spec)) == spec
    assert spec.register_ is not None


@pytest.mark.parametrize("path", [p for p in SPECS if p.stem != "demo"], ids=lambda path: path.stem)
def test_name_tells_recipe_and_model(path: Path) -> None:
    recipe, _, rest = path.stem.partition("-")
    model, _, patch = rest.replace("-linear", "").rpartition("-")
    spec = resolved(path)
    assert (spec.recipe, spec.model.variant) == (recipe, f"{model}/{patch}")


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_paths_are_replaced_from_the_command_line(path: Path) -> None:
    changes = ["data.shards=/elsewhere", "model.pretrained=/weights.safetensors"]
    spec = resolve_spec(apply_overrides(read_document(path), changes))
    assert isinstance(spec, TrainSpec)
    assert (spec.data.shards, spec.model.pretrained) == ("/elsewhere", "/weights.safetensors")


@pytest.mark.parametrize("stem", ["demo", "camvid-seg-s-linear-14", "camvid-seg-s-mask-14"])
def test_specs_for_a_small_machine_need_two_cpus_and_no_network(stem: str) -> None:
    spec = resolved(FOLDER / f"{stem}.yaml")
    assert (spec.resources.workers, spec.resources.cpus_per_worker, spec.resources.gpus_per_worker) == (2, 1, 0)
    assert spec.model.pretrained is not True
