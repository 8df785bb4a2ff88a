"""When a preparation takes what an equal one has left, and when it must not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from segfleet.errors import DataError
from segfleet.spec.kinds import PrepareSpec
from segfleet.spec.resolve import resolve_spec
from segfleet_jobs import prepare as module
from segfleet_jobs.attempt import Credentials, Grant
from segfleet_jobs.reuse import fingerprint
from segfleet_pipelines.manifest import Manifest
from training import make_dataset


class Silence:
    def progress(self, _: Any) -> None:
        pass


@pytest.fixture
def spec(tmp_path: Path) -> PrepareSpec:
    make_dataset(tmp_path, num_samples=6)
    document = {"kind": "prepare", "name": "boxes", "dataset": "folder", "raw": str(tmp_path / "raw"), "processes": 1}
    found = resolve_spec({**document, "out": str(tmp_path / "shards")})
    assert isinstance(found, PrepareSpec)
    return found


def run(spec: PrepareSpec, earlier: dict[str, Any] | None) -> dict[str, Any]:
    grant = Grant(Credentials("http://127.0.0.1:1", "job-b-a1", "t"), "job-b", {}, "/s", 1, earlier)
    return module.work(grant, spec, None, Silence())  # type: ignore[arg-type]


def earlier(spec: PrepareSpec) -> dict[str, Any]:
    content_id = Manifest.load(spec.out).content_id
    result = {"content_id": content_id, "samples": {"train": 1}, "out": spec.out, "inputs": fingerprint(spec)}
    return {"job_id": "job-a", "result": result}


def test_an_equal_preparation_takes_what_is_there(spec: PrepareSpec, capfd: pytest.CaptureFixture[str]) -> None:
    known = earlier(spec)
    before = {path: path.stat().st_mtime_ns for path in Path(spec.out).iterdir()}
    result = run(spec, known)
    assert result == {**known["result"], "reused_from": "job-a"}
    assert {path: path.stat().st_mtime_ns for path in Path(spec.out).iterdir()} == before
    assert "reused from job-a" in capfd.readouterr().out
    # It is told who has done the work, not who has passed it on.
    assert run(spec, {"job_id": "job-b", "result": result})["reused_from"] == "job-a"


def _rewrite(spec: PrepareSpec) -> None:
    path = next(Path(spec.raw or "").glob("images/*"))
    path.write_bytes(path.read_bytes())
    os.utime(path, ns=(1, 1))


def _add(spec: PrepareSpec) -> None:
    (Path(spec.raw or "") / "images" / "new.png").touch()


def _rename(spec: PrepareSpec) -> None:
    path = next(Path(spec.raw or "").glob("masks/*"))
    path.rename(path.with_name("other.png"))


@pytest.mark.parametrize("change", [_rewrite, _add, _rename])
def test_raw_data_that_have_changed_are_never_served_stale(spec: PrepareSpec, change: Any) -> None:
    known = earlier(spec)
    change(spec)
    with pytest.raises(DataError, match=r"prepared by job-a, and the raw data have changed since; give another out"):
        run(spec, known)


def test_what_is_damaged_or_another_dataset_is_not_reused(spec: PrepareSpec) -> None:
    known = earlier(spec)
    with pytest.raises(DataError, match="is no longer what job-a has prepared there"):
        run(spec, {"job_id": "job-a", "result": {**known["result"], "content_id": "0" * 64}})
    shard = next(Path(spec.out).glob("val-*.tar"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match=shard.name):
        run(spec, known)


def test_a_dataset_that_is_gone_is_prepared_anew_and_a_taken_place_refused(spec: PrepareSpec) -> None:
    known = earlier(spec)
    with pytest.raises(DataError):
        run(spec, None)
    for path in Path(spec.out).iterdir():
        path.unlink()
    result = run(spec, known)
    assert "reused_from" not in result
    assert (result["content_id"], result["inputs"]) == (known["result"]["content_id"], fingerprint(spec))


def test_links_are_followed_but_not_in_circles(spec: PrepareSpec, tmp_path: Path) -> None:
    raw, elsewhere = Path(spec.raw or ""), tmp_path / "elsewhere"
    elsewhere.mkdir()
    (raw / "linked").symlink_to(elsewhere)
    (raw / "circle").symlink_to(raw)
    (raw / "nowhere").symlink_to(tmp_path / "missing")
    before = fingerprint(spec)
    assert fingerprint(spec) == before
    (elsewhere / "a.png").touch()
    assert fingerprint(spec) != before


def test_raw_data_that_are_not_there_are_named(spec: PrepareSpec) -> None:
    with pytest.raises(DataError, match="raw data '/missing' cannot be read"):
        fingerprint(spec.model_copy(update={"raw": "/missing"}))
