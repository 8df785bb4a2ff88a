"""The paper's tables as specs: each is valid at full and at toy size, and trains what the paper's rows say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from segfleet.spec.document import apply_overlay, read_document
from segfleet.spec.kinds import SearchSpec, TrainSpec
from segfleet.spec.resolve import resolve_spec, to_document
from segfleet.spec.search import combinations, trial_spec
from segfleet_jobs.paper import PaperTable, paper_document, paper_tables
from segfleet_jobs.paper_table import Data, differences, entry_of, tables_of

FOLDER = Path(__file__).parents[3] / "jobs" / "specs" / "paper"
TINY = FOLDER / "tiny.yaml"
SPECS = sorted(path for path in FOLDER.glob("*.yaml") if path != TINY)
TABLES = {table.place.replace(" ", ""): table for table in paper_tables()}
# Systems that the paper quotes and that this project does not have.
MULTI_SCALE = ("table6", "table7", "table8", "figure4")


def load(path: Path, overlay: bool = False) -> SearchSpec:
    document = read_document(path)
    spec = resolve_spec(apply_overlay(document, read_document(TINY)) if overlay else document, path.name)
    assert isinstance(spec, SearchSpec)
    return spec


def trials(spec: SearchSpec) -> list[TrainSpec]:
    grid = combinations(spec)
    assert grid is not None
    assert grid.impossible == ()
    return [trial_spec(spec, params) for params in grid.possible]


@pytest.fixture(scope="module", params=SPECS, ids=lambda path: path.stem)
def table(request: pytest.FixtureRequest) -> tuple[PaperTable, list[dict[str, Any]], list[dict[str, Any]]]:
    """A table of the paper with the trials of its spec, at full size and tiny."""
    path: Path = request.param
    full, tiny = (list(map(to_document, trials(load(path, overlay)))) for overlay in (False, True))
    return TABLES[path.stem], full, tiny


def test_every_table_has_a_spec_named_after_it() -> None:
    assert {path.stem for path in SPECS} == set(TABLES)
    assert [load(path).name for path in SPECS] == [f"paper-{path.stem}" for path in SPECS]


def test_every_row_with_a_model_of_ours_is_trained_once(table: Any) -> None:
    paper, *sizes = table
    wanted = [entry.model for entry in paper.entries if entry.variant is not None]
    for specs in sizes:
        places = [entry_of(paper, spec) for spec in specs]
        assert sorted(entry.model for entry in places if entry is not None) == sorted(wanted)
        assert len(places) == len(wanted)


def test_at_full_size_nothing_differs_from_the_paper_and_at_toy_size_much(table: Any) -> None:
    paper, full, tiny = table
    dataset = paper.entries[0].dataset
    data = Data(dataset, paper_document()["datasets"][dataset]["samples"][0])
    for spec in full:
        entry = entry_of(paper, spec)
        assert entry is not None
        assert differences(entry, spec, data) == ()
    for spec in tiny:
        entry = entry_of(paper, spec)
        assert entry is not None
        found = differences(entry, spec, data)
        assert "model.pretrained is false" in found
        assert any(text.startswith("train.steps is 6, not ") for text in found)


def test_a_search_is_recognised_as_its_own_table_alone(table: Any) -> None:
    paper, *sizes = table
    for specs in sizes:
        assert [found.place for found in tables_of(specs)] == [paper.place]


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_toy_size_is_for_two_cpus_without_network(path: Path) -> None:
    for spec in trials(load(path, overlay=True)):
        assert (spec.resources.workers, spec.resources.gpus_per_worker) == (1, 0)
        assert spec.model.pretrained is False
        assert max(spec.train.crop, spec.eval.window) == 64
        assert spec.train.global_batch * spec.train.steps <= 12


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_scores_are_of_the_paper_s_protocol(path: Path) -> None:
    for spec in trials(load(path)):
        assert spec.train.steps == (160_000 if spec.recipe == "ade20k" else 80_000)
        if path.stem in MULTI_SCALE:
            assert spec.eval.scales == (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
            assert spec.eval.flip
            assert spec.train.validate_every == spec.train.steps
        else:
            assert (spec.eval.scales, spec.eval.flip) == ((1.0,), False)


@pytest.mark.parametrize(
    ("stem", "variant", "wanted"),
    [
        ("table3", "seg-s/16", (0.001, 8, 512, 512, 480)),
        ("table6", "seg-l-mask/16", (0.001, 8, 640, 640, 608)),
        ("table7", "seg-l-mask/16", (0.001, 16, 480, 480, 448)),
        ("table8", "seg-l-mask/16", (0.01, 8, 768, 768, 736)),
        ("table6", "setr-l-mla/16", (0.01, 16, 512, 512, 341)),
        ("table8", "deeplabv3plus-s101", (0.01, 8, 768, 4096, 4096)),
    ],
)
def test_recipes_are_the_reference_s(stem: str, variant: str, wanted: tuple[float, ...]) -> None:
    (spec,) = [spec for spec in trials(load(FOLDER / f"{stem}.yaml")) if spec.model.variant == variant]
    found = (spec.optim.lr, spec.train.global_batch, spec.train.crop, spec.eval.window, spec.eval.stride)
    assert found == wanted
    if variant.startswith("seg-"):
        optim = spec.optim
        assert (optim.name, optim.momentum, optim.nesterov, optim.weight_decay) == ("sgd", 0.9, True, 0.0)
        assert (optim.schedule, optim.power, optim.min_lr, optim.warmup_steps) == ("poly", 0.9, 1e-5, 0)
        assert (spec.model.dropout, spec.model.drop_path, spec.model.pretrained) == (0.0, 0.1, True)
        assert spec.model.decoder_layers == (1 if spec.recipe == "cityscapes" else 2)


@pytest.mark.parametrize("stem", ["ade20k-deeplabv3plus-r101", "ade20k-setr-l-mla-16", "ade20k-upernet-swin-l"])
def test_other_people_s_systems_train_as_in_their_own_specs(stem: str) -> None:
    alone = resolve_spec(read_document(FOLDER.parent / f"{stem}.yaml"))
    assert isinstance(alone, TrainSpec)
    (beside,) = [spec for spec in trials(load(FOLDER / "table6.yaml")) if spec.model.variant == alone.model.variant]
    assert (beside.model, beside.optim, beside.augment, beside.loss) == (
        alone.model,
        alone.optim,
        alone.augment,
        alone.loss,
    )
    assert beside.train.model_copy(update={"validate_every": alone.train.validate_every}) == alone.train
