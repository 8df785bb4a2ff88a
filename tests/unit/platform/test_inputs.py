from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from segfleet.errors import SpecError
from segfleet.server.inputs import require_inputs
from segfleet.spec.resolve import resolve_spec


def train(shards: str, **data: Any) -> Any:
    return resolve_spec({"kind": "train", "name": "x", "recipe": "camvid", "data": {"shards": shards, **data}})


def prepare(**fields: Any) -> Any:
    return resolve_spec({"kind": "prepare", "name": "x", "dataset": "ade20k", "out": "s3://bucket/x", **fields})


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "manifest.json").write_text("{}")
    return tmp_path / "data"


def test_datasets_on_this_file_system_must_be_there(dataset: Path, tmp_path: Path) -> None:
    require_inputs(train(str(dataset)))
    require_inputs(train(dataset.as_uri()))
    with pytest.raises(SpecError, match=r"data\.shards: no prepared dataset in .*prepare it first"):
        require_inputs(train(str(tmp_path)))
    with pytest.raises(SpecError, match=r"data\.mix\.1\.shards") as caught:
        require_inputs(train(str(dataset), mix=[{"shards": str(dataset)}, {"shards": "/nothing/here"}]))
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize("address", ["s3://bucket/x", "gs://bucket/x", "http://169.254.169.254/x", "https://host/x"])
def test_the_service_asks_no_other_machine(dataset: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise AssertionError("asked")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setattr(socket.socket, "connect", no_network)
    require_inputs(train(address))
    require_inputs(train(str(dataset), mix=[{"shards": address}]))
    require_inputs(prepare(raw=str(dataset), base=address))


def test_raw_data_are_a_folder_or_a_zip_file(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "raw.zip").touch()
    require_inputs(prepare(raw=str(dataset)))
    require_inputs(prepare(raw=str(tmp_path / "raw.zip")))
    with pytest.raises(SpecError, match="raw: no folder or file '/nothing/here'"):
        require_inputs(prepare(raw="/nothing/here"))
    with pytest.raises(SpecError, match="base: no prepared dataset"):
        require_inputs(prepare(raw=str(dataset), base=str(tmp_path)))


def test_what_a_job_follows_may_still_have_to_make_its_data(tmp_path: Path) -> None:
    spec = {"kind": "train", "name": "x", "data": {"shards": str(tmp_path)}, "queue": {"after": ["job-aaaaaaaa"]}}
    require_inputs(resolve_spec(spec))


def test_the_service_waits_for_no_pipe_and_reads_nothing_huge(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "manifest.json")
    with pytest.raises(SpecError, match="no prepared dataset"):
        require_inputs(train(str(tmp_path)))
    (tmp_path / "manifest.json").unlink()
    with (tmp_path / "manifest.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(SpecError, match="no prepared dataset"):
        require_inputs(train(str(tmp_path)))
