"""Checkpoints in a real S3 server on the loopback interface: whole or not there, checked, pruned, gone on from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
import torch

from s3_server import BUCKET, s3_server
from segfleet.errors import CheckpointError, DataError
from segfleet_jobs.checkpoint import FILES, CheckpointRecord
from segfleet_jobs.checkpoint_bucket import BucketStore, open_checkpoints
from segfleet_jobs.checkpoint_store import CheckpointStore, discard_earlier, find_step, load_latest, load_place, prune
from segfleet_jobs.checkpoint_writer import CheckpointWriter
from segfleet_jobs.loop import TrainingLoop
from segfleet_jobs.ranks import Ranks
from segfleet_pipelines.object_store import ObjectFiles
from segfleet_pipelines.object_tree import ObjectTree
from training import InterruptedTrainingError, RecordingLink, make_dataset, make_train_spec, run_alone

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def server() -> Iterator[dict[str, str]]:
    with s3_server() as environment:
        yield environment


@pytest.fixture
def job(server: dict[str, str], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    for name, value in server.items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/checkpoints/{request.node.name[:40].strip('[]')}"


def save(store: CheckpointStore, step: int, best_step: int | None = None) -> CheckpointRecord:
    best = None if best_step is None else {"step": best_step}
    return store.save(step, {"w": torch.full((4, 4), float(step))}, {"s": torch.arange(9)}, {"best": best})


def objects(job: str) -> list[str]:
    return ObjectTree(job).names()


def put(server: dict[str, str], job: str, name: str, content: bytes) -> None:
    client = boto3.client("s3", endpoint_url=server["AWS_ENDPOINT_URL"], region_name="us-east-1")
    client.put_object(Bucket=BUCKET, Key=f"{job.removeprefix(f's3://{BUCKET}/')}/{name}", Body=content)
    client.close()


def test_what_is_saved_is_loaded_and_old_ones_go(job: str) -> None:
    store = open_checkpoints(job, "job-a1")
    assert isinstance(store, BucketStore)
    assert store.places() == []
    for step in (10, 20, 30, 40):
        record = save(store, step, best_step=10)
        prune(store, record)
    assert record.path == f"{job}/job-a1/step-00000040"
    loaded = load_place(store, record.path, record.sha256)
    assert (loaded.step, loaded.address) == (40, record.path)
    assert torch.equal(loaded.model["w"], torch.full((4, 4), 40.0))
    assert sorted(place.step for place in store.places()) == [10, 30, 40]
    kept = {f"job-a1/step-{step:08d}/{name}" for step in (10, 30, 40) for name in FILES}
    assert set(objects(job)) == kept
    assert find_step(store, 10) == f"{job}/job-a1/step-00000010"
    later = open_checkpoints(job, "job-a2")
    discard_earlier(later)
    assert later.places() == []


def test_one_that_is_half_sent_is_none_and_is_swept(job: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_checkpoints(job, "job-a1")
    first = save(store, 10)
    real, sent = ObjectFiles.upload, []

    def cut(self: ObjectFiles, source: Path, name: str) -> None:
        if len(sent) == 2:
            raise DataError("the store refuses: No space left on device")
        sent.append(name)
        real(self, source, name)

    with monkeypatch.context() as patch:
        patch.setattr(ObjectFiles, "upload", cut)
        writer = CheckpointWriter(store, lambda _: None, lambda _: None, ())
        with writer:
            writer.start(20, {}, {}, {"best": None})
            with pytest.raises(CheckpointError, match=r"step 20 .*s3://.*No space left.*segfleet retry"):
                writer.collect(wait=True)
    assert [place.step for place in store.places()] == [10]
    assert len(objects(job)) == len(FILES) + 2
    prune(store, first)
    assert len(objects(job)) == len(FILES)


@pytest.mark.parametrize("name", FILES)
def test_damage_in_the_store_is_found_and_the_earlier_one_is_used(server: dict[str, str], job: str, name: str) -> None:
    store = open_checkpoints(f"{job}-{name}", "job-a1")
    save(store, 10)
    record = save(store, 20)
    with store.opened(record.path) as folder:
        content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 4
    put(server, f"{job}-{name}", f"job-a1/step-00000020/{name}", bytes(content))
    found, damaged = load_latest(store, record)
    assert found is not None
    assert found.step == 10
    assert record.path in damaged[0]
    put(server, f"{job}-{name}", "job-a1/step-00000010/state.safetensors", b"cut")
    with pytest.raises(CheckpointError, match="no whole checkpoint is left"):
        load_latest(store, record)


def test_pruning_keeps_two_of_the_right_size(server: dict[str, str], job: str) -> None:
    store = open_checkpoints(job, "job-a1")
    save(store, 10)
    save(store, 20)
    put(server, job, "job-a1/step-00000020/model.safetensors", b"cut")
    damaged = prune(store, save(store, 30))
    assert len(damaged) == 1
    assert "step-00000020': model.safetensors is damaged" in damaged[0]
    assert sorted(place.step for place in store.places()) == [10, 30]


def test_a_training_goes_on_from_s3_bit_for_bit(job: str, tmp_path: Path) -> None:
    spec = make_train_spec(make_dataset(tmp_path))

    def train(link: RecordingLink, attempt: str) -> None:
        ranks, store = Ranks(0, 1, torch.device("cpu")), open_checkpoints(job, attempt)
        nowhere = tmp_path / "nowhere"
        TrainingLoop(spec, ranks, link, nowhere, nowhere / attempt, lambda *_: None, store=store).run()

    whole, first = RecordingLink(), RecordingLink(kill_after=5)
    run_alone(spec, tmp_path / "whole", whole)
    with pytest.raises(InterruptedTrainingError):
        train(first, "job-a1")
    second = RecordingLink(pointer=first.pointer)
    train(second, "job-a2")
    assert not (tmp_path / "nowhere").exists()
    expected = load_place(open_checkpoints(tmp_path / "whole", "a1"), whole.records[-1].path)
    found = load_place(open_checkpoints(job, "job-a2"), second.records[-1].path)
    assert found.meta["files"] == expected.meta["files"]


def test_an_address_that_is_no_store_is_refused() -> None:
    with pytest.raises(DataError, match="not in an object store"):
        open_checkpoints("https://example.org/x", "job-a1")
    with pytest.raises(CheckpointError, match="SEGFLEET_CHECKPOINTS"):
        load_place(open_checkpoints(Path("/x"), "a1"), "s3://bucket/c")


def test_a_group_that_wakes_up_touches_nothing_that_the_next_one_has_sent_or_sends(
    job: str, server: dict[str, str]
) -> None:
    first, second = open_checkpoints(job, "job-a1"), open_checkpoints(job, "job-a1", 2)
    pointer = save(first, 10)
    record = save(second, 20)
    assert record.path == f"{job}/job-a1/step-00000020.2"
    put(server, job, "job-a1/step-00000030.2/model.safetensors", b"half")
    put(server, job, "job-a1/step-00000020/model.safetensors", b"half")
    prune(first, pointer)
    names = {name.rpartition("/")[0] for name in objects(job)}
    assert names == {"job-a1/step-00000010", "job-a1/step-00000020.2", "job-a1/step-00000030.2"}
    assert [place.writer for place in second.places() if place.step == 20] == [(1, 2)]
    prune(second, record, latest=1)
    assert {name.rpartition("/")[0] for name in objects(job)} == {"job-a1/step-00000020.2"}
