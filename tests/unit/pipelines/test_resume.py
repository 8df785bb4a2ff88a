from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from segfleet.errors import DataError
from segfleet_pipelines import writer
from segfleet_pipelines.check import check_sample
from segfleet_pipelines.shards import ShardTask
from segfleet_pipelines.verify import verify
from segfleet_pipelines.writer import prepare

MakeSpec = Callable[..., Any]

# Run on its own: it forks before pyarrow has threads, and kills its children by SIGKILL.
SWEEP = """
import os, signal, sys
from pathlib import Path
from segfleet.spec.resolve import resolve_spec
from segfleet_pipelines import writer

base, first, step = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
os.fsync = lambda _handle: None
writer.MAX_SHARD_SAMPLES = 3
spec = {"kind": "prepare", "name": "t", "dataset": "folder", "processes": 1, "raw": str(base / "raw")}

def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}

def run(out, kill_at):
    if pid := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    left = kill_at
    def count(event, arguments):
        nonlocal left
        # Everything that opens, renames or removes a file of the dataset in the making.
        if arguments and isinstance(arguments[0], (str, Path)) and str(out) in str(arguments[0]).replace("/.", "/"):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
    if kill_at:
        sys.addaudithook(count)
    try:
        writer.prepare(resolve_spec({**spec, "out": str(out)}))
    except BaseException as error:
        print(error, flush=True)
        os._exit(1)
    os._exit(0)

assert run(base / "whole", 0) == 0
expected = contents(base / "whole")
point = first
while True:
    out = base / f"out{point}"
    code = run(out, point)
    if code == 0:
        break
    assert code == -signal.SIGKILL, (point, code)
    assert not out.exists() or contents(out) == expected, point
    if not out.exists():
        assert run(out, 0) == 0, point
    assert contents(out) == expected, point
    point += step
print(point)
"""

KILLED = """
import os, signal, sys
from pathlib import Path
from segfleet.spec.resolve import resolve_spec
from segfleet_pipelines import writer

if __name__ == "__main__":
    writer.MAX_SHARD_SAMPLES = 3
    records = Path(sys.argv[2]).parent / ".out.partial" / "rows"
    spec = {"kind": "prepare", "name": "t", "dataset": "folder", "processes": 2, "raw": sys.argv[1], "out": sys.argv[2]}

    def die(_done, _total):
        if len(list(records.glob("*.parquet"))) >= 2:
            os.kill(os.getpid(), signal.SIGKILL)

    writer.prepare(resolve_spec(spec), die)
"""


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most three samples in a shard: three of train, one of val."""
    monkeypatch.setattr(writer, "MAX_SHARD_SAMPLES", 3)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the shards that were not taken over but written."""
    names: list[str] = []
    write = ShardTask._write

    def record(task: ShardTask, *rest: Any) -> Any:
        names.append(task.path.name)
        return write(task, *rest)

    monkeypatch.setattr(ShardTask, "_write", record)
    return names


def interrupt(at: int) -> Callable[[int, int], None]:
    def stop(done: int, _total: int) -> None:
        if done == at:
            raise KeyboardInterrupt

    return stop


def run_script(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False, env=environment
    )


@pytest.mark.integration
@pytest.mark.parametrize(
    ("first", "step"), [(11, 60), pytest.param(1, 1, marks=pytest.mark.integration)], ids=["some", "all"]
)
def test_killed_at_any_file_operation_the_next_run_ends_with_the_same_bytes(
    raw: Path, tmp_path: Path, first: int, step: int
) -> None:
    for i in range(6, 11):
        next((raw / "images").glob(f"s{i:02d}.*")).unlink()
        (raw / "masks" / f"s{i:02d}.png").unlink()
    result = run_script(SWEEP, str(tmp_path), str(first), str(step))
    assert result.returncode == 0, result.stdout + result.stderr
    assert int(result.stdout.splitlines()[-1]) > 30


@pytest.mark.integration
def test_a_run_of_two_processes_killed_in_the_middle_keeps_its_finished_shards(
    raw: Path, tmp_path: Path, prepare_spec: MakeSpec, written: list[str]
) -> None:
    out = tmp_path / "out"
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    killed = subprocess.run([sys.executable, script, str(raw), str(out)], check=False, stderr=subprocess.PIPE)
    assert killed.returncode == -9, killed.stderr
    assert not out.exists()
    kept = {path.stem: path for path in (tmp_path / ".out.partial" / "rows").glob("*.parquet")}
    inodes = {name: (tmp_path / ".out.partial" / "dataset" / name).stat().st_ino for name in kept}
    assert len(kept) >= 2
    prepare(prepare_spec(raw=str(raw), out=str(out)))
    assert set(written) == {path.name for path in out.glob("*.tar")} - set(inodes)
    assert {name: (out / name).stat().st_ino for name in inodes} == inodes
    assert not verify(out).problems
    assert not (tmp_path / ".out.partial").exists()


@pytest.mark.parametrize("adopt", [False, True])
def test_what_a_run_killed_after_publishing_has_left_is_removed_by_the_next(
    raw: Path, tmp_path: Path, prepare_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch, adopt: bool
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as killed:
        killed.setattr("segfleet_pipelines.staging.shutil.rmtree", lambda *_a, **_k: None)
        prepare(prepare_spec(raw=str(raw), out=str(out)))
        if adopt:
            for name in ("manifest.json", "samples.parquet"):
                (out / name).unlink()
            shutil.copy(raw / "classes.yaml", out)
            (tmp_path / ".out.partial").rename(tmp_path / "elsewhere")
            prepare(prepare_spec(adopt=True, raw=str(out), out=str(out)))
    left = out / ".adopt.partial" if adopt else tmp_path / ".out.partial"
    assert list(left.glob("rows/*.parquet"))
    assert not verify(out).problems
    again = {"adopt": True, "raw": str(out)} if adopt else {"raw": str(raw)}
    with pytest.raises(DataError, match="holds a prepared dataset already"):
        prepare(prepare_spec(out=str(out), **again))
    assert not left.exists()


def test_of_other_runs_only_what_is_published_is_removed(
    raw: Path, tmp_path: Path, prepare_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt):
        prepare(prepare_spec(raw=str(raw), out=str(tmp_path / "a")), interrupt(8))
    with monkeypatch.context() as killed:
        killed.setattr("segfleet_pipelines.staging.shutil.rmtree", lambda *_a, **_k: None)
        prepare(prepare_spec(raw=str(raw), out=str(tmp_path / "b")))
    (tmp_path / ".mine.partial").mkdir()
    prepare(prepare_spec(raw=str(raw), out=str(tmp_path / "c")))
    assert sorted(path.name for path in tmp_path.glob(".*")) == [".a.partial", ".mine.partial"]
    assert len(list((tmp_path / ".a.partial" / "rows").iterdir())) == 2


def test_an_interrupted_run_goes_on_with_the_first_unfinished_shard(
    raw: Path, tmp_path: Path, prepare_spec: MakeSpec, written: list[str]
) -> None:
    spec = prepare_spec(raw=str(raw), out=str(tmp_path / "out"))
    with pytest.raises(KeyboardInterrupt):
        prepare(spec, interrupt(8))
    assert written == ["train-000000.tar", "train-000001.tar", "train-000002.tar"]
    assert not list((tmp_path / ".out.partial").rglob("*.part"))
    written.clear()
    seen: list[int] = []
    prepare(spec, lambda done, _total: seen.append(done))
    assert written == ["train-000002.tar", "val-000000.tar"]
    assert seen == [3, 6, 7, 8, 9, 10, 11]
    assert not verify(tmp_path / "out").problems


def test_after_bad_files_are_mended_only_their_shards_are_written(
    raw: Path, tmp_path: Path, prepare_spec: MakeSpec, written: list[str]
) -> None:
    spec = prepare_spec(raw=str(raw), out=str(tmp_path / "out"))
    image = raw / "images" / "s01.jpg"
    sound = image.read_bytes()
    image.write_bytes(sound[:-100])
    with pytest.raises(DataError, match=r"s01\.jpg.*cut short(.|\n)*3 finished shards are kept in .*\.out\.partial"):
        prepare(spec)
    written.clear()
    image.write_bytes(sound)
    prepare(spec)
    assert len(written) == 1
    assert not verify(tmp_path / "out").problems


def _touch(raw: Path, _staging: Path) -> None:
    os.utime(raw / "masks" / "s01.png", ns=(1, 1))


def _remap(raw: Path, _staging: Path) -> None:
    with (raw / "classes.yaml").open("a") as file:
        file.write("label_map: {0: 1, 1: 0, 2: 2, 255: 255}\n")


def _flip(_raw: Path, staging: Path) -> None:
    shard = staging / "dataset" / "train-000001.tar"
    data = bytearray(shard.read_bytes())
    data[700] ^= 1
    shard.write_bytes(data)


def _lose(_raw: Path, staging: Path) -> None:
    (staging / "dataset" / "train-000001.tar").unlink()


def _spoil_record(_raw: Path, staging: Path) -> None:
    record = staging / "rows" / "train-000001.tar.parquet"
    record.write_bytes(record.read_bytes()[:-9])


@pytest.mark.parametrize(
    ("change", "redone"), [(_touch, 1), (_remap, 3), (_flip, 1), (_lose, 1), (_spoil_record, 1), (None, 0)]
)
def test_a_finished_shard_that_would_not_be_the_same_is_written_again(
    raw: Path,
    tmp_path: Path,
    prepare_spec: MakeSpec,
    written: list[str],
    change: Callable[[Path, Path], None] | None,
    redone: int,
) -> None:
    spec = prepare_spec(raw=str(raw), out=str(tmp_path / "out"))
    with pytest.raises(KeyboardInterrupt):
        prepare(spec, interrupt(10))
    (tmp_path / ".out.partial" / "dataset" / "train-000099.tar").write_bytes(b"of another plan")
    if change:
        change(raw, tmp_path / ".out.partial")
    written.clear()
    prepare(spec)
    assert len([name for name in written if name.startswith("train")]) == redone
    assert not verify(tmp_path / "out").problems


def test_with_other_pictures_nothing_is_taken_over(
    raw: Path, tmp_path: Path, prepare_spec: MakeSpec, written: list[str]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        prepare(prepare_spec(raw=str(raw), out=str(tmp_path / "out")), interrupt(10))
    written.clear()
    prepare(prepare_spec(raw=str(raw), out=str(tmp_path / "out"), images="jpeg95"))
    assert len(written) == 4


def test_drawn_pictures_are_taken_over_too(
    tmp_path: Path, prepare_spec: MakeSpec, written: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = prepare_spec(dataset="synthetic", samples=8, out=str(tmp_path / "out"))
    with pytest.raises(KeyboardInterrupt):
        prepare(spec, interrupt(8 + 5))
    written.clear()
    monkeypatch.setattr(writer, "generate", lambda *_a, **_k: pytest.fail("drawn again"))
    prepare(spec)
    assert len(written) == 2
    assert not verify(tmp_path / "out").problems


def test_a_run_waits_for_processes_that_a_killed_one_has_left(
    raw: Path, tmp_path: Path, prepare_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    staging = tmp_path / ".out.partial"
    staging.mkdir()
    straggler = os.open(staging / "workers.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(straggler, fcntl.LOCK_SH)
    flock, waited = fcntl.flock, []

    def release(handle: int, how: int) -> None:
        if how == fcntl.LOCK_EX:
            waited.append(handle)
            os.close(straggler)
        flock(handle, how)

    monkeypatch.setattr(fcntl, "flock", release)
    prepare(prepare_spec(raw=str(raw), out=str(tmp_path / "out")))
    assert len(waited) == 1


def test_every_sample_is_read_once(
    raw: Path, tmp_path: Path, prepare_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: list[str] = []

    def count(sample: Any, *rest: Any) -> Any:
        keys.append(sample.key)
        return check_sample(sample, *rest)

    monkeypatch.setattr("segfleet_pipelines.shards.check_sample", count)
    prepare(prepare_spec(raw=str(raw), out=str(tmp_path / "out")))
    assert sorted(keys) == [f"s{i:02d}" for i in range(11)]
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["splits"]["val"]["num_samples"] == 2
