"""The training loop on real data, in real gloo processes: exact resume, the same loss for any number of workers."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from segfleet.errors import CheckpointError, DataError
from segfleet_jobs import checkpoint as checkpoint_module
from segfleet_jobs.attempt import Yielded
from segfleet_jobs.checkpoint import CheckpointRecord, load_checkpoint
from segfleet_jobs.checkpoint_writer import CheckpointWriter
from segfleet_jobs.failure import NonFiniteLossError
from segfleet_jobs.loop import TrainingLoop
from segfleet_jobs.ranks import Ranks
from training import (
    InterruptedTrainingError,
    RecordingLink,
    make_dataset,
    make_train_spec,
    poison_last_rank,
    run_alone,
    run_group,
    start_alone,
)

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_dataset(tmp_path_factory.mktemp("boxes"))


def equal_weights(left: CheckpointRecord, right: CheckpointRecord) -> bool:
    """All tensors of both checkpoints, model, optimiser and random states, bit for bit."""
    pairs = [
        (load_file(Path(left.path) / name), load_file(Path(right.path) / name))
        for name in ("model.safetensors", "state.safetensors")
    ]
    return all(a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a) for a, b in pairs)


def losses(link: RecordingLink) -> dict[int, float]:
    return {step: values["train/loss"] for step, values in link.curves.items()}


@pytest.mark.parametrize("kill_after", [1, 3, 5])
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(shards: str, tmp_path: Path, kill_after: int) -> None:
    spec = make_train_spec(shards)
    whole = RecordingLink()
    expected = run_alone(spec, tmp_path / "whole", whole)
    first = RecordingLink(kill_after=kill_after)
    with pytest.raises(InterruptedTrainingError):
        run_alone(spec, tmp_path / "resumed", first)
    second = RecordingLink(pointer=first.pointer)
    result = run_alone(spec, tmp_path / "resumed", second, attempt="a2")
    assert equal_weights(whole.records[-1], second.records[-1])
    redone = losses(second)
    assert redone == {step: loss for step, loss in losses(whole).items() if step in redone}
    assert min(redone) == (first.pointer.step if first.pointer else 0) + 1
    assert {key: result[key] for key in ("miou", "best_step", "iou")} == {
        key: expected[key] for key in ("miou", "best_step", "iou")
    }


@pytest.mark.parametrize("yield_in", [1, 3, 5])
def test_a_run_that_made_room_goes_on_bit_for_bit(shards: str, tmp_path: Path, yield_in: int) -> None:
    spec = make_train_spec(shards)
    whole = RecordingLink()
    run_alone(spec, tmp_path / "whole", whole)
    first = RecordingLink(yield_in=yield_in)
    assert start_alone(spec, tmp_path / "yielded", first) == Yielded(yield_in)
    assert first.pointer is not None
    assert first.pointer.step == yield_in
    second = RecordingLink(pointer=first.pointer)
    run_alone(spec, tmp_path / "yielded", second, attempt="a2")
    assert equal_weights(whole.records[-1], second.records[-1])
    assert losses(first) | losses(second) == losses(whole)


def test_asked_in_its_last_step_a_run_ends_as_usual(shards: str, tmp_path: Path) -> None:
    link = RecordingLink(yield_in=6)
    assert run_alone(make_train_spec(shards), tmp_path, link)["step"] == 6


def test_several_workers_make_room_after_the_same_step(shards: str, tmp_path: Path) -> None:
    spec = make_train_spec(shards, "resources.workers=2")
    whole = run_group(spec, tmp_path / "whole", 2)
    first = run_group(spec, tmp_path / "yielded", 2, yield_in=3)
    assert first.pointer is not None
    assert first.pointer.step == 3
    second = run_group(spec, tmp_path / "yielded", 2, pointer=first.pointer, attempt="a2")
    assert equal_weights(whole.records[-1], second.records[-1])


@pytest.mark.parametrize("world_size", [2, 3])
def test_several_workers_resume_bit_for_bit(shards: str, tmp_path: Path, world_size: int) -> None:
    # With three ranks the order of the all-reduce decides the last bits.
    spec = make_train_spec(shards, "train.global_batch=6", f"resources.workers={world_size}")
    whole = run_group(spec, tmp_path / "whole", world_size)
    first = run_group(spec, tmp_path / "resumed", world_size, kill_after=5)
    assert first.pointer is not None
    assert first.pointer.step == 4
    second = run_group(spec, tmp_path / "resumed", world_size, pointer=first.pointer, attempt="a2")
    assert equal_weights(whole.records[-1], second.records[-1])


def test_a_resumed_run_leaves_out_the_same_samples_of_the_same_mixed_data(shards: str, tmp_path: Path) -> None:
    other = make_dataset(tmp_path / "other", num_samples=12, seed=3)
    spec = make_train_spec(shards, f'data.mix=[{{"shards": "{other}", "weight": 2.0}}]')
    skips = (frozenset({0, 5, 7}), frozenset({1, 2}))
    whole, first = RecordingLink(), RecordingLink(kill_after=3)
    expected = run_alone(spec, tmp_path / "whole", whole, skips=skips)
    assert expected["skipped_samples"] > 0
    with pytest.raises(InterruptedTrainingError):
        run_alone(spec, tmp_path / "resumed", first, skips=skips)
    # Some have been mended since.
    second = RecordingLink(pointer=first.pointer)
    result = run_alone(spec, tmp_path / "resumed", second, attempt="a2", skips=(frozenset({5}), frozenset()))
    assert equal_weights(whole.records[-1], second.records[-1])
    assert result["skipped_samples"] == expected["skipped_samples"]
    assert whole.curves[6]["train/skipped_samples"] == expected["skipped_samples"]
    with pytest.raises(CheckpointError, match="damaged since the checkpoint"):
        run_alone(spec, tmp_path / "resumed", second, attempt="a3", skips=(frozenset({4}), frozenset()))
    shutil.rmtree(other)
    make_dataset(tmp_path / "again", num_samples=12, seed=4)
    shutil.copytree(tmp_path / "again" / "shards", other)
    with pytest.raises(CheckpointError, match=f"content id .*{other}"):
        run_alone(spec, tmp_path / "resumed", second, attempt="a3", skips=skips)


@pytest.mark.parametrize("last_batch", ["wrap", "short"])
def test_one_and_two_workers_have_the_same_loss(shards: str, tmp_path: Path, last_batch: str) -> None:
    # Dropout and stochastic depth draw from a stream a rank; without them nothing depends on the number of ranks.
    quiet = ("model.dropout=0.0", "model.drop_path=0.0", "model.decoder_dropout=0.0")
    # 13 samples: the short batch of an epoch is one, and the second rank has nothing but empty slots.
    spec = make_train_spec(shards, *quiet, f"train.last_batch={last_batch}")
    alone = RecordingLink()
    run_alone(spec, tmp_path / "one", alone)
    pair = run_group(spec, tmp_path / "two", 2)
    assert alone.curves.keys() == pair.curves.keys()
    for step, values in alone.curves.items():
        assert pair.curves[step]["train/loss"] == pytest.approx(values["train/loss"], rel=1e-5)
        assert pair.curves[step]["train/valid_pixels"] == values["train/valid_pixels"]
    validated = [values["val/miou"] for values in alone.curves.values() if "val/miou" in values]
    assert [v["val/miou"] for v in pair.curves.values() if "val/miou" in v] == pytest.approx(validated, abs=1e-3)


def test_a_nan_on_one_rank_skips_the_step_on_all_and_fails_in_the_end(shards: str, tmp_path: Path) -> None:
    spec = make_train_spec(shards, "train.max_nonfinite_steps=2")
    with pytest.raises(Exception, match=r"not finite in 2 steps in a row up to step 1"):
        run_group(spec, tmp_path, 2, before=poison_last_rank)


def test_a_skipped_step_changes_nothing_and_is_counted(
    shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_train_spec(shards, "train.steps=3", "train.max_nonfinite_steps=3", "train.checkpoint_every=1")
    link = RecordingLink()
    monkeypatch.setattr(torch.nn.utils, "get_total_norm", lambda _: torch.tensor(float("inf")))
    with pytest.raises(NonFiniteLossError, match="3 steps in a row"):
        run_alone(spec, tmp_path, link)
    first, second = (load_checkpoint(Path(record.path)) for record in link.records)
    assert (first.meta["skipped_steps"], second.meta["skipped_steps"]) == (1, 2)
    assert all(torch.equal(first.model[name], second.model[name]) for name in first.model)


def test_a_disk_that_fills_up_keeps_the_old_checkpoint_and_says_what_to_do(
    shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_train_spec(shards)
    link = RecordingLink()
    real = checkpoint_module.save_file

    def full(tensors: dict[str, torch.Tensor], path: Path) -> None:
        if "00000004" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(tensors, path)

    monkeypatch.setattr(checkpoint_module, "save_file", full)
    monkeypatch.setattr(CheckpointWriter.__init__, "__defaults__", ((0.0,),))
    with pytest.raises(CheckpointError, match=r"step 4 .*No space left.*segfleet retry"):
        run_alone(spec, tmp_path, link)
    assert link.pointer is not None
    assert load_checkpoint(Path(link.pointer.path), link.pointer.sha256).step == 3
    assert len(link.damages) == 1
    assert "tried again" in link.damages[0]
    monkeypatch.undo()
    again = RecordingLink(pointer=link.pointer)
    assert run_alone(spec, tmp_path, again, attempt="a2")["step"] == 6


def test_bf16_trains_like_fp32(shards: str, tmp_path: Path) -> None:
    full, half = RecordingLink(), RecordingLink()
    run_alone(make_train_spec(shards), tmp_path / "fp32", full)
    run_alone(make_train_spec(shards, "train.precision=bf16"), tmp_path / "bf16", half)
    assert losses(half) == pytest.approx(losses(full), rel=0.05)
    assert losses(half) != losses(full)
    weights = load_checkpoint(Path(half.records[-1].path)).model
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


def test_every_validation_sample_is_counted_once_and_sheets_are_spread(shards: str, tmp_path: Path) -> None:
    link = RecordingLink()
    result = run_alone(make_train_spec(shards), tmp_path, link)
    assert result["num_samples"] == 5
    assert link.sheets == [3, 6]
    assert run_group(make_train_spec(shards), tmp_path / "two", 2).sheets == [3, 6]


def test_a_changed_spec_does_not_continue_a_checkpoint(shards: str, tmp_path: Path) -> None:
    link = RecordingLink()
    run_alone(make_train_spec(shards), tmp_path, link)
    with pytest.raises(CheckpointError, match="optim"):
        run_alone(make_train_spec(shards, "optim.lr=0.01"), tmp_path, RecordingLink(pointer=link.pointer))


def test_other_data_does_not_continue_a_checkpoint(shards: str, tmp_path: Path) -> None:
    link = RecordingLink()
    run_alone(make_train_spec(shards), tmp_path / "job", link)
    other = make_dataset(tmp_path, seed=1)
    shutil.copytree(other, tmp_path / "copy")
    spec = make_train_spec(shards)
    moved = spec.model_copy(update={"data": spec.data.model_copy(update={"shards": str(tmp_path / "copy")})})
    meta = Path(link.records[-1].path) / "meta.json"
    document = json.loads(meta.read_text())
    document["spec"]["data"]["shards"] = moved.data.shards
    text = json.dumps(document)
    meta.write_text(text)
    digest = hashlib.sha256(text.encode()).hexdigest()
    (meta.parent / "meta.sha256").write_text(f"{digest}  meta.json\n")
    pointer = replace(link.records[-1], sha256=digest)
    with pytest.raises(CheckpointError, match="content id"):
        run_alone(moved, tmp_path / "job", RecordingLink(pointer=pointer), attempt="a2")


def test_a_job_that_is_done_only_reports_its_result_again(shards: str, tmp_path: Path) -> None:
    spec = make_train_spec(shards)
    first = RecordingLink()
    result = run_alone(spec, tmp_path, first)
    again = RecordingLink(pointer=first.pointer)
    repeated = run_alone(spec, tmp_path, again, attempt="a2")
    assert {**repeated, "seconds": None} == {**result, "seconds": None}
    assert again.records == []


def test_data_exchanged_as_a_whole_in_mid_run_are_not_validated_on(shards: str, tmp_path: Path) -> None:
    here, other = Path(shutil.copytree(shards, tmp_path / "here")), make_dataset(tmp_path / "other", seed=1)

    class Exchanging(RecordingLink):
        def metrics(self, step: int, values: dict[str, float]) -> None:
            if step == 2:
                # The training goes on with the shard that it has open.
                here.rename(tmp_path / "away")
                shutil.copytree(other, here)

    with pytest.raises(DataError, match=f"{here} has content id"):
        run_alone(make_train_spec(str(here)), tmp_path / "job", Exchanging())


def test_ranks_train_on_what_was_checked(shards: str, tmp_path: Path) -> None:
    ranks = Ranks(0, 1, torch.device("cpu"))
    folders = tmp_path, tmp_path / "a1"
    loop = TrainingLoop(
        make_train_spec(shards), ranks, RecordingLink(), *folders, lambda *_: None, content_ids=("0" * 64,)
    )
    with pytest.raises(DataError, match=r"has content id .*, the job began on 000000000000"):
        loop.run()
