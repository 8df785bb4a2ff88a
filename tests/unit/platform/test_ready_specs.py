"""The specs that ship with the project: each is valid, and is what its name says."""

from __future__ import annotations

from pathlib import Path

import pytest

from segfleet.spec.document import apply_overrides, read_document
from segfleet.spec.kinds import EvaluateSpec, SearchSpec, TrainSpec
from segfleet.spec.resolve import resolve_spec, to_document
from segfleet.spec.search import combinations, final_spec, trial_spec

FOLDER = Path(__file__).parents[3] / "jobs" / "specs"
ALL = sorted(FOLDER.glob("*.yaml"))
EVALUATIONS = [path for path in ALL if path.stem.startswith("evaluate-")]
SEARCHES = [path for path in ALL if path.stem.startswith("search-")]
SPECS = [path for path in ALL if path not in EVALUATIONS + SEARCHES]


def resolved(path: Path) -> TrainSpec:
    spec = resolve_spec(read_document(path), path.name)
    assert isinstance(spec, TrainSpec)
    return spec


def test_the_promised_specs_are_there() -> None:
    assert {path.stem for path in ALL} >= {
        "ade20k-deeplabv3plus-r101",
        "ade20k-dinov3-l-linear",
        "ade20k-seg-b-mask-14",
        "ade20k-seg-s-mask-16",
        "ade20k-setr-l-mla-16",
        "ade20k-upernet-swin-l",
        "camvid-seg-s-linear-14-frozen",
        "camvid-seg-s-linear-14",
        "camvid-seg-s-mask-14",
        "cityscapes-seg-l-mask-16",
        "cityscapes-setr-l-pup-16",
        "demo",
        "evaluate-camvid",
        "pascal_context-seg-l-mask-16",
        "search-camvid-patch-size",
    }
    assert [path.name for path in FOLDER.iterdir() if path not in ALL] == ["paper"]


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_spec_resolves_and_is_named_after_its_file(path: Path) -> None:
    spec = resolved(path)
    assert spec.name == path.stem
    assert resolve_spec(to_document(spec)) == spec
    assert spec.register_ is not None


@pytest.mark.parametrize("path", [p for p in SPECS if p.stem != "demo"], ids=lambda path: path.stem)
def test_name_tells_recipe_and_model(path: Path) -> None:
    recipe, _, rest = path.stem.partition("-")
    spec = resolved(path)
    if spec.model.variant is None:
        assert spec.recipe == recipe
        assert f"-{spec.model.decoder}" in rest
        return
    if spec.model.patch_size is None:
        assert (spec.recipe, spec.model.variant) == (recipe, rest)
        return
    model, _, patch = rest.replace("-linear", "").removesuffix("-frozen").rpartition("-")
    assert (spec.recipe, spec.model.variant) == (recipe, f"{model}/{patch}")


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_paths_are_replaced_from_the_command_line(path: Path) -> None:
    changes = ["data.shards=/elsewhere", "model.pretrained=/weights.safetensors"]
    spec = resolve_spec(apply_overrides(read_document(path), changes))
    assert isinstance(spec, TrainSpec)
    assert (spec.data.shards, spec.model.pretrained) == ("/elsewhere", "/weights.safetensors")


@pytest.mark.parametrize(
    "stem", ["demo", "camvid-seg-s-linear-14", "camvid-seg-s-linear-14-frozen", "camvid-seg-s-mask-14"]
)
def test_specs_for_a_small_machine_need_two_cpus_and_no_network(stem: str) -> None:
    spec = resolved(FOLDER / f"{stem}.yaml")
    assert (spec.resources.workers, spec.resources.cpus_per_worker, spec.resources.gpus_per_worker) == (2, 1, 0)
    assert spec.model.pretrained is not True


@pytest.mark.parametrize("path", EVALUATIONS, ids=lambda path: path.stem)
def test_evaluations_are_by_the_reference_s_multi_scale_protocol(path: Path) -> None:
    spec = resolve_spec(apply_overrides(read_document(path), ["data.shards=/elsewhere", "model=mine/3"]))
    assert isinstance(spec, EvaluateSpec)
    assert (spec.name, spec.model, spec.data.shards) == (path.stem, "mine/3", "/elsewhere")
    assert resolve_spec(to_document(spec)) == spec
    assert spec.eval is not None
    assert spec.eval.scales == (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    assert (spec.eval.flip, spec.eval.protocol) == (True, "reference")


def test_the_linear_probe_is_dinov3_s_recipe() -> None:
    spec = resolved(FOLDER / "ade20k-dinov3-l-linear.yaml")
    assert (spec.model.decoder, spec.model.decoder_norm, spec.model.decoder_dropout) == ("linear", "batch", 0.1)
    optim = spec.optim
    assert (optim.name, optim.lr, optim.weight_decay, optim.encoder_lr_scale) == ("adamw", 1e-3, 1e-3, 0.0)
    assert (optim.schedule, optim.warmup_steps) == ("cosine", 1500)
    assert (spec.train.steps, spec.train.global_batch, spec.train.crop) == (40_000, 16, 512)
    assert (spec.augment.scale_min, spec.augment.scale_max, spec.augment.flip) == (0.5, 2.0, 0.5)
    assert not spec.augment.photometric
    assert (spec.eval.window, spec.eval.stride) == (512, 341)


@pytest.mark.parametrize(
    ("stem", "encoder_lr", "lr"), [("ade20k-setr-l-mla-16", 1e-3, 1e-2), ("cityscapes-setr-l-pup-16", 1e-2, 1e-1)]
)
def test_setr_s_decoder_learns_ten_times_as_fast_as_its_encoder(stem: str, encoder_lr: float, lr: float) -> None:
    optim = resolved(FOLDER / f"{stem}.yaml").optim
    assert (optim.name, optim.lr, optim.nesterov, optim.weight_decay) == ("sgd", lr, False, 0.0)
    assert optim.lr * optim.encoder_lr_scale == pytest.approx(encoder_lr)


@pytest.mark.parametrize("stem", ["ade20k-deeplabv3plus-r101", "ade20k-upernet-swin-l"])
def test_mmsegmentation_s_convolutional_recipes_look_at_whole_pictures(stem: str) -> None:
    spec = resolved(FOLDER / f"{stem}.yaml")
    assert (spec.train.steps, spec.train.global_batch, spec.train.last_batch) == (160_000, 16, "wrap")
    assert spec.eval.protocol == "mmseg"
    assert spec.eval.short_side is not None
    assert spec.eval.window == spec.augment.max_ratio * spec.eval.short_side


@pytest.mark.parametrize("path", SEARCHES, ids=lambda path: path.stem)
def test_the_search_over_patch_and_model_size_fits_two_cpus_and_needs_no_network(path: Path) -> None:
    changes = ["base.data.shards=/elsewhere", "base.train.steps=40", "base.train.validate_every=10"]
    spec = resolve_spec(apply_overrides(read_document(path), changes))
    assert isinstance(spec, SearchSpec)
    assert resolve_spec(to_document(spec)) == spec
    assert (spec.name, spec.search.scheduler, spec.search.max_parallel) == (path.stem, "asha", 2)
    grid = combinations(spec)
    assert grid is not None
    assert grid.impossible == ()
    models = [trial_spec(spec, params).model for params in grid.possible]
    sizes = ["vit_tiny_patch16_384", "vit_small_patch16_384"]
    assert [(m.backbone, m.patch_size) for m in models] == [(size, patch) for size in sizes for patch in (8, 16, 32)]
    assert {(m.variant, m.pretrained) for m in models} == {(None, False)}
    final = final_spec(spec, grid.possible[0])
    assert final is not None
    assert (final.data.shards, final.train.steps, final.register_ is not None) == ("/elsewhere", 600, True)
    assert (spec.base.resources.workers, spec.base.resources.gpus_per_worker) == (1, 0)
