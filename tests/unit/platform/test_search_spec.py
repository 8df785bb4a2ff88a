"""Searches as users write them: what is filled in, what is refused, and what each trial trains."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from searching import search_document, search_spec
from segfleet.errors import SpecError
from segfleet.queue.limits import limit_problems, with_forced
from segfleet.queue.model import gang_of
from segfleet.server.inputs import require_inputs
from segfleet.spec.absolute import with_absolute_paths
from segfleet.spec.kinds import SearchSpec, TrainSpec
from segfleet.spec.resolve import resolve_spec, to_document
from segfleet.spec.search import combinations, final_spec, trial_spec


def by_hand(document: dict[str, Any], params: dict[str, Any]) -> TrainSpec:
    """The train spec that a user would write for a trial."""
    written = {"kind": "train", "name": document["name"], **copy.deepcopy(document["base"])}
    for path, value in params.items():
        section, field = path.split(".")
        written.setdefault(section, {})[field] = value
    spec = resolve_spec(written)
    assert isinstance(spec, TrainSpec)
    return spec


def problems(**changes: Any) -> list[str]:
    with pytest.raises(SpecError) as caught:
        resolve_spec(search_document(**changes))
    return [str(problem) for problem in caught.value.problems]


def test_a_resolved_search_is_full_and_resolves_to_itself() -> None:
    spec = search_spec()
    assert (spec.base.optim.name, spec.base.train.checkpoint_every) == ("adamw", 1000)
    assert "optim.name" not in spec.written
    assert {"recipe", "data.shards", "model.variant", "train.crop"} <= set(spec.written)
    document = to_document(spec)
    assert resolve_spec(document) == spec
    assert {"queue", "kind", "name"}.isdisjoint(document["base"])


SPACES: list[dict[str, Any]] = [
    {"model.variant": ["seg-ti-mask/16", "seg-s/16", "seg-b/8", "seg-b-deit/16", "setr-s-mla/16"]},
    {"model.patch_size": [8, 32], "model.decoder": ["mask", "linear"]},
    {
        "model.arch, model.backbone, model.patch_size, model.decoder, model.variant": [
            ["unet", "resnet18", None, None, None]
        ]
    },
    {"model.decoder_norm": ["none", "batch"], "model.decoder": ["linear"]},
    {"optim.lr": [0.1], "train.crop": [64, 128], "eval.window": {"same_as": "train.crop"}, "eval.stride": [32]},
]


@pytest.mark.parametrize("space", SPACES, ids=str)
@pytest.mark.parametrize("is_stored", [False, True])
def test_a_trial_is_what_a_train_spec_written_by_hand_would_be(space: dict[str, Any], is_stored: bool) -> None:
    document = search_document(space=space)
    spec = search_spec(space=space)
    if is_stored:
        stored = resolve_spec(to_document(spec))
        assert isinstance(stored, SearchSpec)
        spec = stored
    grid = combinations(spec)
    assert grid is not None
    assert grid.possible
    for params in grid.possible:
        assert trial_spec(spec, params) == by_hand(document, params)


def test_a_default_variant_gives_way_to_own_fields_as_in_a_train_spec() -> None:
    document = search_document(
        base={"data": {"shards": "/d"}},
        space={"model.backbone, model.patch_size, model.decoder": [["vit_tiny_patch16_384", 8, "linear"]]},
    )
    spec = resolve_spec(document)
    assert isinstance(spec, SearchSpec)
    assert spec.base.model.variant == "seg-s-mask/16"
    params = {"model.backbone": "vit_tiny_patch16_384", "model.patch_size": 8, "model.decoder": "linear"}
    trial = trial_spec(spec, params)
    assert trial.model.variant is None
    assert trial == by_hand(document, params)


def test_what_params_do_not_touch_stays_as_it_was_resolved() -> None:
    # As of a version whose recipes said something else.
    document = to_document(search_spec())
    document["base"]["optim"]["lr"] = 0.123
    stored = resolve_spec(document)
    assert isinstance(stored, SearchSpec)
    assert trial_spec(stored, {"model.patch_size": 8}).optim.lr == 0.123


def test_a_trial_has_the_searchs_line_and_registers_nothing() -> None:
    spec = search_spec(queue={"priority": 7}, register={"model": "mine"})
    trial = trial_spec(spec, {"train.crop": 96})
    assert (trial.name, trial.queue.priority, trial.register_, trial.train.crop) == ("patches", 7, None, 96)


def test_the_final_training_is_the_trial_with_its_own_length_and_changes() -> None:
    final = {"steps": 400, "set": {"train.validate_every": 100, "train.crop": 128}}
    spec = search_spec(final=final, register={"model": "mine"})
    found = final_spec(spec, {"train.crop": 96, "model.patch_size": 8})
    assert found is not None
    assert (found.train.steps, found.train.validate_every, found.train.crop) == (400, 100, 128)
    assert (found.model.patch_size, found.register_ is not None and found.register_.model) == (8, "mine")
    assert final_spec(search_spec(), {}) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": {}}, "space: "),
        ({"space": {"optim.lrr": [1]}}, "did you mean 'optim.lr'?"),
        ({"space": {"resources.workers": [1, 2]}}, "'resources' is the same for all trials"),
        ({"space": {"queue.priority": [1, 2]}}, "write SECTION.FIELD of"),
        ({"space": {"model": ["x"]}}, "'model' is no field of a training"),
        ({"space": {"optim.lr": ["0.1"]}}, "space.optim.lr[0]: '0.1': input should be a valid number"),
        ({"space": {"train.crop": [64, 8]}}, "space.train.crop[1]: 8: input should be greater than or equal to 16"),
        ({"space": {"train.crop": [64, 64.0]}}, "input should be a valid integer"),
        ({"space": {"optim.lr": [1, 1.0]}}, "space.optim.lr[1]: 1.0 is there twice"),
        ({"space": {"optim.lr": []}}, "space.optim.lr: no values to choose from"),
        ({"space": {"optim.lr": {"min": 1.0, "max": 0.1}}}, "min 1 is not below max 0.1"),
        ({"space": {"optim.lr": {"min": 0, "max": 0.1, "log": True}}}, "a logarithmic range needs"),
        ({"space": {"optim.lr": {"min": 0.01, "max": 0.1, "stepp": 1}}}, "did you mean 'step'?"),
        ({"space": {"optim.lr": {"min": 0.01, "max": 100, "step": 10}}}, "less than or equal to 10"),
        ({"space": {"optim.lr": {"min": 0.01, "max": 0.1, "log": True}}}, "cannot list a range without step"),
        ({"space": {"optim.lr": {"min": 0.001, "max": 1.0, "step": 0.0001}}}, "9,991 combinations"),
        ({"space": {"optim.lr": {"min": 0.001, "max": 0.1, "step": 5e-324}}}, "step 4.94066e-324 is too small"),
        ({"space": {"optim.lr": {"min": 0.001, "max": 0.1, "step": 10**400}}}, "a number must be at most 1e+15"),
        ({"space": {"optim.lr": {"min": 10**401, "max": 10**400}}}, "a number must be at most 1e+15"),
        ({"space": {"optim.lr": {"min": 0.01, "max": 0.02, "step": 5}}}, "step 5 leads from min beyond max at once"),
        ({"space": {"optim.lr": {"min": float("nan"), "max": 0.02}}}, "input should be a finite number"),
        ({"space": {"train.seed": {"min": 0, "max": 20_000}}}, "or with more than 10,000 values"),
        ({"space": {"train.seed": [1, True]}}, "space.train.seed[1]: True: input should be a valid integer"),
        ({"space": {"train.crop": {"min": 16, "max": 64, "step": 0.5}}}, "takes whole numbers only"),
        ({"space": {"optim.name": {"min": 1, "max": 2}}}, "takes no numbers"),
        (
            {"space": {"train.crop, eval.window": [[64, 64], [96]]}},
            "write [train.crop, eval.window], one value for each",
        ),
        ({"space": {"train.crop": [[64, 64]]}}, "write a single value"),
        ({"space": {"train.crop": [64], "eval.window, train.crop": [[64, 64]]}}, "is varied by 'train.crop' already"),
        ({"space": {"eval.window": {"same_as": "train.crop"}}}, "no path that the space itself chooses"),
        ({"space": {"optim.lr": {"given": "optim.name", "cases": {"sgd": [1]}}}}, "no path that the space itself"),
        (
            {"space": {"optim.name": ["sgd"], "optim.lr": {"given": "optim.name", "cases": {"sdg": [1]}}}},
            "cases.sdg: optim.name never has this value (it takes sgd)",
        ),
        (
            {
                "space": {
                    "optim.name": {"given": "loss.ignore", "cases": {"1": ["sgd"]}},
                }
            },
            "space.optim.name.given: 'loss.ignore' is no path",
        ),
        (
            {
                "space": {
                    "optim.lr": {"given": "optim.momentum", "cases": {"0.5": [0.1]}},
                    "optim.momentum": {"given": "optim.lr", "cases": {"0.1": [0.5]}},
                }
            },
            "depends on itself",
        ),
        ({"space": {"model.variant": ["seg-s/16", "seg-x/16"]}}, "is impossible in every combination"),
        ({"space": {"train.crop": [16, 24]}, "base": None}, "base"),
        (
            {"space": {"train.global_batch": [3]}, "base": {"data": {"shards": "/d"}, "resources": {"workers": 2}}},
            "3 is",
        ),
        ({"search": {"algorithm": "random"}}, "search.trials: missing"),
        ({"search": {"algorithm": "magic"}}, "search.algorithm: 'magic'"),
        ({"search": {"trials": 1001}}, "search.trials: 1001"),
        ({"search": {"metric": "train/loss"}}, "search.metric: 'train/loss'"),
        ({"search": {"tirals": 3}}, "did you mean 'trials'?"),
        ({"final": {"set": {"train.stepz": 1}}}, "final.set.train.stepz: 'train.stepz' is no field of a training"),
        ({"final": {"set": {"train.steps": "many"}}}, "final.set.train.steps: 'many'"),
        ({"final": {"set": {"eval.stride": 4000}}}, "in the final training"),
        ({"base": {"data": {"shards": "/d"}, "queue": {}}}, "base.queue: unknown key"),
        (
            {"base": {"data": {"shards": "/d"}, "model": {"variant": "seg-x/16"}}},
            "base.model.variant: 'seg-x/16' is not",
        ),
        (
            {"base": {"data": {"shards": "/d"}, "train": {"precision": "fp16"}}},
            "base.train.precision: fp16 needs a GPU",
        ),
    ],
)
def test_mistakes_are_named_with_what_to_do(changes: dict[str, Any], message: str) -> None:
    assert message in "\n".join(problems(**changes))


def test_one_mistake_is_told_once() -> None:
    (found,) = problems(space={"optim.lr": [0.1, {"deep": 1}]})
    assert found == "space.optim.lr.1: {'deep': 1} is no single value; write a word, a number, true, false or null"


def test_a_space_whose_combinations_are_too_many_to_count_out_is_refused_at_once() -> None:
    fields = ["lr", "momentum", "weight_decay", "min_lr", "encoder_lr_scale"]
    values = [round(0.001 * number, 6) for number in range(1, 101)]
    found = problems(space={f"optim.{field}": values for field in fields})
    assert found == [
        "space: 10,000,000,000 combinations; a grid has at most 1,000 (take values out, or use random or optuna)"
    ]


def test_impossible_combinations_are_left_out_and_named() -> None:
    spec = search_spec(space={"model.patch_size": [8, 32], "train.crop": [64, 24]})
    grid = combinations(spec)
    assert grid is not None
    assert [params["train.crop"] for params in grid.possible] == [64, 24, 64]
    (left_out,) = grid.impossible
    assert left_out.params == {"model.patch_size": 32, "train.crop": 24}
    assert left_out.reason == "train.crop: 24 is smaller than one patch of 32 pixels"


@pytest.mark.parametrize(
    ("search", "most"),
    [({}, 2), ({"max_parallel": 3}, 6), ({"max_parallel": 9, "trials": 4}, 8), ({"max_parallel": 60}, 12)],
)
def test_a_search_asks_for_one_trials_workers_and_takes_those_of_several(search: dict[str, Any], most: int) -> None:
    base = {**search_document()["base"], "resources": {"workers": 2, "cpus_per_worker": 3}}
    gang = gang_of(to_document(search_spec(base=base, search=search)))
    assert (gang.workers, gang.max_workers, gang.cpus, gang.gpus) == (2, most, 3, 0)


def test_operators_bounds_hold_for_every_trial_and_for_the_final_training() -> None:
    space = {"train.steps": [40, 80], "train.global_batch": {"min": 2, "max": 64}}
    search = {"algorithm": "random", "trials": 3, "max_parallel": 3}
    document = to_document(search_spec(space=space, search=search, final={"steps": 900}))
    limits = {"train": {"steps": 50, "global_batch": 32}, "search": {"trials": 2}, "resources": {"workers": 2}}
    found = [problem.path for problem in limit_problems(document, limits, "the cluster")]
    assert found == [
        "space.train.steps",
        "final.steps",
        "space.train.global_batch",
        "search.trials",
        "search.max_parallel times base.resources.workers",
    ]
    assert limit_problems(document, {"train": {"steps": 900}}, "the cluster") == []


def test_an_operators_value_is_forced_upon_the_base_and_no_trial_undoes_it() -> None:
    forced = {"train": {"precision": "bf16"}, "queue": {"max_retries": 1}, "base": "/elsewhere"}
    result, changed = with_forced(search_document(), forced)
    assert changed == ("base.train.precision", "queue.max_retries")
    spec = resolve_spec(result)
    assert isinstance(spec, SearchSpec)
    assert trial_spec(spec, {"model.patch_size": 8}).train.precision == "bf16"
    again, _ = with_forced(to_document(search_spec()), {"model": {"decoder_dropout": 0.3}})
    stored = resolve_spec(again)
    assert isinstance(stored, SearchSpec)
    assert trial_spec(stored, {"model.decoder": "linear"}).model.decoder_dropout == 0.3
    for varied in (
        {"space": {"train.precision": ["fp32", "bf16"]}},
        {"space": {"train.crop, train.precision": [[64, "fp32"]]}},
        {"final": {"set": {"train.precision": "fp32"}}},
    ):
        with pytest.raises(SpecError, match="the operator has fixed this field"):
            with_forced(search_document(**varied), forced)


def test_relative_paths_mean_the_callers_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    document = search_document(
        base={"data": {"shards": "a", "mix": [{"shards": "b"}]}, "model": {"pretrained": "w.safetensors"}},
        space={
            "data.shards": ["a", "s3://bucket/x"],
            "data.train, model.pretrained": [["train", True], ["small", "w.safetensors"]],
            "train.steps": {"given": "data.shards", "cases": {"a": [1]}},
            "train.crop": {"given": "model.pretrained", "cases": {"true": [64], "w.safetensors": [96]}},
        },
        final={"set": {"data.shards": "c"}},
    )
    before = copy.deepcopy(document)
    found = with_absolute_paths(document)
    here = str(tmp_path)
    assert found["base"]["data"] == {"shards": f"{here}/a", "mix": [{"shards": f"{here}/b"}]}
    assert found["base"]["model"]["pretrained"] == f"{here}/w.safetensors"
    assert found["space"]["data.shards"] == [f"{here}/a", "s3://bucket/x"]
    pairs = found["space"]["data.train, model.pretrained"]
    assert pairs == [["train", True], ["small", f"{here}/w.safetensors"]]
    assert found["space"]["train.steps"]["cases"] == {f"{here}/a": [1]}
    assert found["space"]["train.crop"]["cases"] == {"true": [64], f"{here}/w.safetensors": [96]}
    assert found["final"]["set"] == {"data.shards": f"{here}/c"}
    assert document == before
    resolve_spec(found)


def test_every_dataset_and_weights_file_of_a_search_must_be_there(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    base = {**search_document()["base"], "data": {"shards": str(tmp_path)}}
    space = {"data.shards": [str(tmp_path), "/nowhere"], "model.pretrained": [False, "/no/weights"]}
    require_inputs(search_spec(base=base))
    with pytest.raises(SpecError) as caught:
        require_inputs(search_spec(base=base, space=space))
    assert [problem.path for problem in caught.value.problems] == ["space.data.shards", "space.model.pretrained"]
    after = {"after": ["job-aaaaaaaa"]}
    with pytest.raises(SpecError, match="no file '/no/weights'"):
        require_inputs(search_spec(base=base, space=space, queue=after))
