from __future__ import annotations

from typing import Any

import pytest

from segfleet.errors import SpecError
from segfleet.spec.kinds import PrepareSpec, TrainSpec
from segfleet.spec.recipes import RECIPES, variant_fields
from segfleet.spec.resolve import resolve_spec, to_document


def short(**changes: Any) -> dict[str, Any]:
    """The shortest train spec, with whole sections replaced."""
    return {"kind": "train", "name": "a", "data": {"shards": "/data/x"}, **changes}


def train(**changes: Any) -> TrainSpec:
    spec = resolve_spec(short(**changes))
    assert isinstance(spec, TrainSpec)
    return spec


def problems(document: dict[str, Any]) -> dict[str, str]:
    """Path of each problem -> its message and hint."""
    with pytest.raises(SpecError) as caught:
        resolve_spec(document)
    return {problem.path: f"{problem.message} | {problem.hint}" for problem in caught.value.problems}


def test_a_three_line_spec_is_enough() -> None:
    spec = train()
    assert spec.recipe == "none"
    assert (spec.model.backbone, spec.model.patch_size, spec.model.decoder) == ("vit_small_patch16_384", 16, "mask")
    assert (spec.optim.name, spec.optim.lr, spec.optim.nesterov) == ("sgd", 0.001, True)
    assert (spec.train.crop, spec.eval.window, spec.eval.stride) == (512, 512, 480)
    assert spec.resources.workers == 1
    assert spec.register_ is None


def test_the_resolved_document_resolves_to_itself() -> None:
    spec = train(recipe="cityscapes", register={"model": "m"}, queue={"time_limit": "48h"})
    document = to_document(spec)
    assert document["register"] == {"model": "m", "alias": "candidate"}
    assert resolve_spec(document) == spec
    assert to_document(resolve_spec(document)) == document


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ("ade20k", {"steps": 160_000, "batch": 8, "crop": 512, "lr": 1e-3, "window": 512, "stride": 480, "layers": 2}),
        (
            "pascal_context",
            {"steps": 80_000, "batch": 16, "crop": 480, "lr": 1e-3, "window": 480, "stride": 448, "layers": 2},
        ),
        (
            "cityscapes",
            {"steps": 80_000, "batch": 8, "crop": 768, "lr": 1e-2, "window": 768, "stride": 736, "layers": 1},
        ),
    ],
)
def test_recipes_hold_the_papers_figures(recipe: str, expected: dict[str, float]) -> None:
    spec = train(recipe=recipe)
    assert expected == {
        "steps": spec.train.steps,
        "batch": spec.train.global_batch,
        "crop": spec.train.crop,
        "lr": spec.optim.lr,
        "window": spec.eval.window,
        "stride": spec.eval.stride,
        "layers": spec.model.decoder_layers,
    }
    assert (spec.optim.name, spec.optim.momentum, spec.optim.weight_decay) == ("sgd", 0.9, 0.0)
    assert (spec.optim.schedule, spec.optim.power, spec.optim.min_lr) == ("poly", 0.9, 1e-5)


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_every_recipe_makes_a_valid_spec(recipe: str) -> None:
    assert train(recipe=recipe).recipe == recipe


def test_what_is_written_wins_over_the_recipe_field_by_field() -> None:
    spec = train(recipe="cityscapes", train={"steps": 7}, model={"decoder_layers": 3}, optim={"lr": 0.5})
    assert (spec.train.steps, spec.train.crop) == (7, 768)
    assert (spec.model.decoder_layers, spec.model.backbone) == (3, "vit_small_patch16_384")
    assert (spec.optim.lr, spec.optim.momentum) == (0.5, 0.9)


VARIANTS = {
    "seg-ti/16": ("vit_tiny_patch16_384", 16, "linear"),
    "seg-ti-mask/16": ("vit_tiny_patch16_384", 16, "mask"),
    "seg-ti-mask/8": ("vit_tiny_patch16_384", 8, "mask"),
    "seg-s/32": ("vit_small_patch32_384", 32, "linear"),
    "seg-s-mask/16": ("vit_small_patch16_384", 16, "mask"),
    "seg-s/14": ("vit_small_patch14_dinov2", 14, "linear"),
    "seg-b/8": ("vit_base_patch8_224.augreg_in21k_ft_in1k", 8, "linear"),
    "seg-b-mask/14": ("vit_base_patch14_dinov2", 14, "mask"),
    "seg-b-mask/32": ("vit_base_patch32_384", 32, "mask"),
    "seg-b-deit/16": ("deit_base_distilled_patch16_384", 16, "linear"),
    "seg-b-deit-mask/16": ("deit_base_distilled_patch16_384", 16, "mask"),
    "seg-l-mask/16": ("vit_large_patch16_384", 16, "mask"),
    "seg-l/14": ("vit_large_patch14_dinov2", 14, "linear"),
}


@pytest.mark.parametrize(("variant", "fields"), VARIANTS.items())
def test_variant_stands_for_its_fields(variant: str, fields: tuple[str, int, str]) -> None:
    assert tuple(variant_fields(variant).values()) == fields
    model = train(model={"variant": variant}, train={"crop": 512}).model
    assert (model.backbone, model.patch_size, model.decoder) == fields


@pytest.mark.parametrize(
    "variant", ["seg-m/16", "seg-s/12", "seg-s-mask", "seg-b-deit/8", "seg-ti/14", "SEG-S/16", " seg-s/16", ""]
)
def test_unknown_variant_lists_the_known_ones(variant: str) -> None:
    found = problems(short(model={"variant": variant}))
    assert list(found) == ["model.variant"]
    assert "write seg-{ti,s,b,l}[-mask]/{8,14,16,32}" in found["model.variant"]


def test_single_fields_win_over_the_variant() -> None:
    model = train(model={"variant": "seg-b-mask/16", "patch_size": 8}).model
    assert (model.variant, model.backbone, model.patch_size) == ("seg-b-mask/16", "vit_base_patch16_384", 8)


def test_own_fields_leave_no_variant_behind() -> None:
    model = train(model={"backbone": "vit_tiny_patch16_384", "patch_size": 8, "decoder": "linear"}).model
    assert model.variant is None


@pytest.mark.parametrize(
    ("document", "path", "suggestion"),
    [
        (short(optm={"lr": 1}), "optm", "did you mean 'optim'?"),
        (short(regster={"model": "m"}), "regster", "did you mean 'register'?"),
        (short(optim={"larning_rate": 1}), "optim.larning_rate", "known here: clip_grad_norm, encoder_lr_scale, layer"),
        (short(train={"step": 1}), "train.step", "did you mean 'steps'?"),
        (short(data={"shards": "/x", "shard": "/y"}), "data.shard", "did you mean 'shards'?"),
        (short(register={"model": "m", "alais": "x"}), "register.alais", "did you mean 'alias'?"),
    ],
)
def test_unknown_key_suggests_the_nearest(document: dict[str, Any], path: str, suggestion: str) -> None:
    found = problems(document)
    assert list(found) == [path]
    assert found[path].startswith("unknown key | ")
    assert suggestion in found[path]


@pytest.mark.parametrize("kind", ["trian", 3, ["train"], {"a": 1}])
def test_unknown_kind_lists_the_known_ones(kind: Any) -> None:
    assert problems(short(kind=kind)) == {
        "kind": f"unknown kind {kind!r} | use one of evaluate, prepare, search, train"
    }


def test_missing_kind() -> None:
    assert problems({"name": "a"}) == {"kind": "missing | use one of evaluate, prepare, search, train"}


def test_unknown_recipe_is_one_problem() -> None:
    assert list(problems(short(recipe="imagenet"))) == ["recipe"]


def test_all_problems_are_told_at_once() -> None:
    found = problems(
        {
            "kind": "train",
            "name": "Not A Name",
            "data": {"train": 3},
            "model": {"variant": "seg-x/16"},
            "optim": {"lr": -1, "momentun": 0.5},
            "train": {"steps": "many"},
            "extra": 1,
        }
    )
    assert set(found) == {
        "name",
        "data.shards",
        "data.train",
        "model.variant",
        "optim.lr",
        "optim.momentun",
        "train.steps",
        "extra",
    }
    assert found["data.shards"] == "missing | "
    assert found["optim.lr"].startswith("-1: ")
    assert found["train.steps"].startswith("'many': ")


@pytest.mark.parametrize(
    "section", ["data", "model", "optim", "augment", "train", "eval", "resources", "queue", "register"]
)
@pytest.mark.parametrize("value", [3, "text", [1], True])
def test_section_of_the_wrong_type_is_named(section: str, value: Any) -> None:
    assert list(problems(short(**{section: value}))) == [section]


def test_long_values_are_cut_in_messages() -> None:
    assert len(problems(short(train={"steps": "9" * 5000}))["train.steps"]) < 200


def test_what_is_no_plain_data_is_refused() -> None:
    assert "not plain data" in problems(short(optim={"lr": object()}))[""]


@pytest.mark.parametrize(
    ("changes", "path", "message"),
    [
        (
            {"train": {"global_batch": 7}, "resources": {"workers": 2}},
            "train.global_batch",
            "7 is not divisible by 2 workers | use 6 or",
        ),
        (
            {"train": {"global_batch": 2}, "resources": {"workers": 4}},
            "train.global_batch",
            "2 is not divisible by 4 workers | use 4 or",
        ),
        ({"train": {"crop": 16}, "model": {"patch_size": 32}}, "train.crop", "16 is smaller than one patch of 32"),
        (
            {"eval": {"window": 16, "stride": 16}, "model": {"patch_size": 32}},
            "eval.window",
            "16 is smaller than one patch of 32",
        ),
        ({"train": {"precision": "fp16"}}, "train.precision", "fp16 needs a GPU | use bf16 or fp32"),
        *(
            (
                {"data": {"shards": "/a", "mix": [{"shards": "/b"}]}, "train": {"last_batch": how}},
                "train.last_batch",
                f"'{how}' has no meaning with data.mix, whose datasets end their epochs apart | use wrap",
            )
            for how in ("short", "drop")
        ),
    ],
)
def test_sections_must_fit_together(changes: dict[str, Any], path: str, message: str) -> None:
    found = problems(short(**changes))
    assert list(found) == [path]
    assert message in found[path]


def test_fp16_is_fine_on_a_gpu() -> None:
    assert train(train={"precision": "fp16"}, resources={"gpus_per_worker": 1}).train.precision == "fp16"


def test_crop_need_not_be_a_multiple_of_the_patch() -> None:
    assert train(train={"crop": 100}).train.crop == 100


def prepare(**changes: Any) -> dict[str, Any]:
    return {"kind": "prepare", "name": "p", "dataset": "folder", "raw": "/raw", "out": "/out", **changes}


def test_prepare_spec_resolves() -> None:
    spec = resolve_spec(prepare())
    assert isinstance(spec, PrepareSpec)
    assert (spec.processes, spec.val_share, spec.queue.priority) == (2, 0.2, 50)
    assert resolve_spec(to_document(spec)) == spec


def test_prepare_needs_raw_unless_synthetic() -> None:
    assert "missing; dataset 'folder' is read from a folder" in problems(prepare(raw=None))["raw"]
    assert "leave raw out" in problems(prepare(dataset="synthetic"))["raw"]
    assert isinstance(resolve_spec(prepare(dataset="synthetic", raw=None)), PrepareSpec)


def test_prepare_knows_no_training_sections() -> None:
    assert list(problems(prepare(model={"variant": "seg-s/16"}))) == ["model"]


@pytest.mark.parametrize(
    ("variant", "arch", "backbone", "decoder"),
    [
        ("setr-l-pup/16", "setr", "vit_large_patch16_384", "pup"),
        ("deeplabv3plus-r101", "deeplabv3plus", "resnet101", None),
        ("fcn-r50", "fcn", "resnet50", None),
        ("unet-r18", "unet", "resnet18", None),
        ("upernet-swin-l", "upernet", "swin_large_patch4_window12_384", None),
    ],
)
def test_a_variant_says_all_of_a_baseline(variant: str, arch: str, backbone: str, decoder: str | None) -> None:
    model = {"variant": variant}
    spec = resolve_spec({"kind": "train", "name": "x", "recipe": "ade20k", "data": {"shards": "/d"}, "model": model})
    assert isinstance(spec, TrainSpec)
    assert (spec.model.arch, spec.model.backbone, spec.model.decoder) == (arch, backbone, decoder)
    assert spec.model.decoder_dropout == (0.0 if arch == "setr" else 0.1)
    # Batch normalisation and a recipe's short last batch do not go together.
    assert spec.train.last_batch == "wrap"
    assert resolve_spec(to_document(spec)) == spec


@pytest.mark.parametrize(
    ("changes", "path", "message"),
    [
        ({"model": {"arch": "fcn"}}, "model.backbone", "missing"),
        ({"model": {"arch": "fcn", "backbone": "resnet18", "decoder": "mask"}}, "model", "has no decoder 'mask'"),
        ({"model": {"arch": "setr", "backbone": "test_vit", "decoder": "mla"}}, "model", "patch_size is None"),
        (
            {"model": {"variant": "unet-r18", "dropout": 0.1}},
            "model",
            "dropout and decoder_drop_path are",
        ),
        ({"model": {"variant": "unet-r18"}, "train": {"last_batch": "short"}}, "train.last_batch", "use wrap"),
        ({"model": {"variant": "deeplabv3plus-r18"}, "train": {"global_batch": 1}}, "train.global_batch", "at least 2"),
        ({"model": {"variant": "unet-r18"}, "train": {"checkpoint_activations": True}}, "train.checkpoint_", "cannot"),
        ({"model": {"variant": "seg-s/16", "decoder_norm": "layer"}}, "model.decoder_norm", "batch"),
        ({"model": {"variant": "seg-s-mask/16", "decoder_norm": "batch"}}, "model", "for the linear decoder"),
        ({"model": {"variant": "pspnet-r50"}}, "model.variant", "upernet-swin"),
    ],
)
def test_what_does_not_go_together_in_a_model_is_said(changes: dict[str, Any], path: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        resolve_spec({"kind": "train", "name": "x", "data": {"shards": "/d"}, **changes})
    found = [problem for problem in caught.value.problems if problem.path.startswith(path) and message in str(problem)]
    assert found, str(caught.value)


def test_an_arch_of_segmenter_alone_keeps_the_default_variant() -> None:
    spec = resolve_spec({"kind": "train", "name": "x", "data": {"shards": "/d"}, "model": {"arch": "segmenter"}})
    assert isinstance(spec, TrainSpec)
    assert (spec.model.variant, spec.model.decoder_dropout) == ("seg-s-mask/16", 0.1)


def test_a_linear_decoder_of_a_spec_resolved_by_an_earlier_version_has_no_dropout() -> None:
    document = {"kind": "train", "name": "x", "data": {"shards": "/d"}, "model": {"variant": "seg-s/16"}}
    full = to_document(resolve_spec(document))
    new_fields = ("arch", "decoder_norm")
    old = {**full, "model": {k: v for k, v in full["model"].items() if k not in new_fields} | {"decoder_dropout": 0.1}}
    spec = resolve_spec(old)
    assert isinstance(spec, TrainSpec)
    assert spec.model.decoder_dropout == 0.0
    wished = resolve_spec({**document, "model": {"variant": "seg-s/16", "decoder_dropout": 0.1}})
    assert isinstance(wished, TrainSpec)
    assert wished.model.decoder_dropout == 0.1
