"""Checkpoints: whole or not there, checked before use, never lost to a newer broken one."""

from __future__ import annotations

import errno
import resource
from pathlib import Path

import pytest
import torch
from torch import nn

from segfleet.errors import CheckpointError
from segfleet_jobs import checkpoint as module
from segfleet_jobs.checkpoint import CheckpointRecord, load_checkpoint, optimizer_tensors, restore_optimizer
from segfleet_jobs.checkpoint_store import FolderStore, discard_earlier, find_step, load_latest, prune


def store_of(job_folder: Path, attempt: str = "a9") -> FolderStore:
    return FolderStore(job_folder, job_folder / attempt)


def save(folder: Path, step: int, *, best_step: int | None = None) -> CheckpointRecord:
    model = {"w": torch.full((4, 4), float(step))}
    state = {"random/cpu/0": torch.arange(5, dtype=torch.uint8)}
    best = None if best_step is None else {"step": best_step}
    return FolderStore(folder.parent, folder).save(step, model, state, {"best": best})


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    record = save(tmp_path / "a1", 7)
    loaded = load_checkpoint(Path(record.path), record.sha256)
    assert loaded.step == 7
    assert torch.equal(loaded.model["w"], torch.full((4, 4), 7.0))
    assert loaded.state["random/cpu/0"].tolist() == [0, 1, 2, 3, 4]
    assert CheckpointRecord.from_dict(record.to_dict()) == record
    assert record.bytes == sum(path.stat().st_size for path in Path(record.path).iterdir())


@pytest.mark.parametrize("name", ["model.safetensors", "state.safetensors", "meta.json", "meta.sha256"])
def test_a_flipped_byte_anywhere_is_found(tmp_path: Path, name: str) -> None:
    record = save(tmp_path / "a1", 1)
    path = Path(record.path) / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x01
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        load_checkpoint(Path(record.path), record.sha256)


def test_a_damaged_latest_falls_back_to_the_older_one_and_says_so(tmp_path: Path) -> None:
    save(tmp_path / "a1", 10)
    record = save(tmp_path / "a2", 20)
    (Path(record.path) / "model.safetensors").write_bytes(b"cut")
    found, damaged = load_latest(store_of(tmp_path), record)
    assert found is not None
    assert found.step == 10
    assert len(damaged) == 1
    assert "model.safetensors" in damaged[0]


def test_training_never_starts_over_when_every_checkpoint_is_damaged(tmp_path: Path) -> None:
    record = save(tmp_path / "a1", 10)
    (Path(record.path) / "meta.json").unlink()
    with pytest.raises(CheckpointError, match="from-start"):
        load_latest(store_of(tmp_path), record)


def test_a_job_without_a_pointer_starts_fresh_even_beside_stray_folders(tmp_path: Path) -> None:
    save(tmp_path / "a1", 10)
    assert load_latest(store_of(tmp_path), None) == (None, [])


def test_a_checkpoint_newer_than_the_pointer_is_not_used(tmp_path: Path) -> None:
    pointer = save(tmp_path / "a1", 10)
    save(tmp_path / "a1", 20)  # durable, but the attempt lost the job before it could move the pointer
    (Path(pointer.path) / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(CheckpointError):
        load_latest(store_of(tmp_path), pointer)


def test_a_full_disk_leaves_the_old_checkpoint_and_no_rubbish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = save(tmp_path / "a1", 10)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        save(tmp_path / "a1", 20)
    assert [path.name for path in (tmp_path / "a1").iterdir()] == ["step-00000010"]
    assert load_checkpoint(Path(record.path), record.sha256).step == 10


def test_prune_keeps_the_latest_two_and_the_best_over_all_attempts(tmp_path: Path) -> None:
    for attempt, step in (("a1", 10), ("a1", 20), ("a1", 30), ("a2", 40), ("a2", 50)):
        record = save(tmp_path / attempt, step, best_step=20)
    (tmp_path / "a1" / ".writing-00000060-1").mkdir()
    prune(store_of(tmp_path, "a2"), record)
    kept = sorted(path.name for path in tmp_path.glob("*/*"))
    assert kept == ["step-00000020", "step-00000040", "step-00000050"]
    assert find_step(store_of(tmp_path), 20) == str(tmp_path / "a1" / "step-00000020")
    assert find_step(store_of(tmp_path), 30) is None


def test_a_file_that_cannot_grow_is_an_error_of_the_system(tmp_path: Path) -> None:
    record = save(tmp_path / "a1", 10)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError, match=r"os error 27|File too large"):
            store_of(tmp_path, "a1").save(20, {"w": torch.zeros(100_000)}, {}, {"best": None})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in (tmp_path / "a1").iterdir()] == ["step-00000010"]
    assert load_checkpoint(Path(record.path), record.sha256).step == 10


def test_prune_keeps_what_the_pointer_names_below_the_steps_of_a_discarded_attempt(tmp_path: Path) -> None:
    for step in (3000, 4000, 5000):
        save(tmp_path / "a1", step)
    record = save(tmp_path / "a2", 1000)
    prune(store_of(tmp_path, "a2"), record)
    assert load_checkpoint(Path(record.path), record.sha256).step == 1000


def test_prune_leaves_later_attempts_alone(tmp_path: Path) -> None:
    save(tmp_path / "job-x-a2", 50)
    save(tmp_path / "job-x-a2", 60)
    (tmp_path / "job-x-a2" / ".writing-00000070-1").mkdir()
    overtaken = save(tmp_path / "job-x-a1", 100)
    prune(store_of(tmp_path, "job-x-a1"), overtaken)
    kept = sorted(path.name for path in (tmp_path / "job-x-a2").iterdir())
    assert kept == [".writing-00000070-1", "step-00000050", "step-00000060"]


def test_a_job_that_begins_again_discards_what_earlier_attempts_left(tmp_path: Path) -> None:
    save(tmp_path / "job-x-a1", 10)
    save(tmp_path / "job-x-a3", 20)
    discard_earlier(store_of(tmp_path, "job-x-a2"))
    assert [path.name for path in tmp_path.glob("*/step-*")] == ["step-00000020"]


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_restored_optimiser_goes_on_with_the_same_bits(name: str) -> None:
    def make() -> tuple[nn.Linear, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Linear(6, 3)
        if name == "adamw":
            return model, torch.optim.AdamW(model.parameters(), lr=0.01)
        return model, torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True)

    def train(model: nn.Linear, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            inputs = torch.randn(4, 6, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            model(inputs).square().mean().backward()
            optimizer.step()

    whole, optimizer = make()
    train(whole, optimizer, range(6))
    first, first_optimizer = make()
    train(first, first_optimizer, range(3))
    second, second_optimizer = make()
    second.load_state_dict(first.state_dict())
    restore_optimizer(second, second_optimizer, optimizer_tensors(first, first_optimizer))
    train(second, second_optimizer, range(3, 6))
    assert torch.equal(second.weight, whole.weight)
    assert torch.equal(second.bias, whole.bias)


def test_state_of_an_unknown_parameter_is_refused() -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(CheckpointError, match="gone"):
        restore_optimizer(model, optimizer, {"optimizer/gone/momentum_buffer": torch.zeros(2)})
