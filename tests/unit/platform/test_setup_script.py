"""scripts/setup.py and scripts/demo.py: what they decide, without installing or starting anything."""

from __future__ import annotations

import ast
import importlib.util
import io
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[3] / "scripts"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"script_{name}", SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


setup = load("setup")
demo = load("demo")


def test_setup_is_understood_by_a_python_that_is_too_old() -> None:
    source = (SCRIPTS / "setup.py").read_text(encoding="utf-8")
    tree = ast.parse(source, feature_version=(3, 7))
    modules = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    modules += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    assert {str(module).split(".")[0] for module in modules} <= sys.stdlib_module_names


@pytest.mark.parametrize(
    ("version", "missing", "free", "said"),
    [
        ((3, 11, 4), [], 11.0, []),
        ((3, 14, 0), [], 500.0, []),
        (
            (3, 11, 3),
            [],
            500.0,
            ["Python 3.11.3 is too old, segfleet needs 3.11.4 or newer", "make PYTHON=python3.12 demo"],
        ),
        ((3, 11, 4), ["ensurepip"], 500.0, ["no ensurepip; on Debian and Ubuntu: apt-get install python3-venv"]),
        ((3, 11, 4), [], 7.9, ["/repo has 7.9 GB free, set-up needs about 11 GB there", "free some space"]),
        ((3, 9), ["venv", "ensurepip"], 1.0, ["3.9 is too old", "no venv and no ensurepip", "1.0 GB free"]),
    ],
)
def test_every_problem_of_the_machine_is_told(
    version: tuple[int, int], missing: list[str], free: float, said: list[str]
) -> None:
    needed = setup.space_needed("/repo", "/tmp", same_disk=True, complete=False)
    text = "\n".join(setup.machine_problems(version, missing, {"/repo": free}, needed))
    assert all(part in text for part in said)
    assert bool(text) == bool(said)


def test_space_is_asked_where_it_is_used() -> None:
    assert setup.space_needed("/repo", "/tmp", same_disk=True, complete=False) == {"/repo": 11}
    assert setup.space_needed("/repo", "/tmp", same_disk=False, complete=False) == {"/repo": 8, "/tmp": 3}
    assert setup.space_needed("/repo", "/tmp", same_disk=True, complete=True) == {"/repo": 1}


def test_a_full_disk_stops_set_up_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(setup, "VENV_GB", 10**9)
    monkeypatch.setattr(sys, "argv", ["setup.py", "--root", str(tmp_path)])
    assert setup.main() == 1
    assert f"error: {tmp_path} has" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("line", "collected", "told"),
    [
        ("Collecting torch==2.14.1 (from -r requirements.lock (line 162))", 40, "package 40 of 179"),
        ("Collecting torch==2.14.1 (from -r requirements.lock (line 162))", 41, None),
        ("Requirement already satisfied: zipp==4 in x (from -r requirements.lock (line 9))", 179, "package 179 of 179"),
        ("Requirement already satisfied: numpy in x (from torch==2.14.1)", 40, None),
        ("  Downloading torch-2.14.1.whl (888.1 MB)", 40, "downloading torch-2.14.1.whl (888.1 mb)"),
        ("  Downloading big.whl (1.2 GB)", 40, "downloading big.whl (1.2 gb)"),
        ("  Downloading six-1.17.0.whl (11 kB)", 40, None),
        ("  Downloading small-1.17.0.whl (99.9 MB)", 40, None),
        ("Installing collected packages: a, b", 179, "all downloaded, unpacking (one to three minutes)"),
        ("", 40, None),
    ],
)
def test_progress_says_what_matters(line: str, collected: int, told: str | None) -> None:
    assert setup.progress_of(line, collected, 179) == told


def test_failed_install_shows_the_end_of_the_log(tmp_path: Path) -> None:
    log = tmp_path / "setup.log"
    with pytest.raises(
        setup.SetupError, match=r"pip install --no-such-option failed; .*setup\.log\):\n(.*\n)*.*no such"
    ):
        setup.install(Path(sys.executable), ["--no-such-option"], log)
    assert "no such option" in log.read_text(encoding="utf-8")


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_demo_takes_its_pictures_from_an_ordinary_tar(tmp_path: Path) -> None:
    members = {
        f"{key}.{kind}": f"{key}{kind}".encode() for key in ("a", "b", "c") for kind in ("image.png", "mask.png")
    }
    write_tar(tmp_path / "val-000000.tar", members)
    pictures = demo.extract_pictures(tmp_path, tmp_path / "out", 2)
    assert [p.name for p in pictures] == ["a.png", "b.png"]
    assert pictures[1].read_bytes() == b"bimage.png"


def test_demo_refuses_a_shard_without_pictures(tmp_path: Path) -> None:
    write_tar(tmp_path / "val-000000.tar", {"a.mask.png": b"m"})
    with pytest.raises(demo.DemoError, match="holds no picture"):
        demo.extract_pictures(tmp_path, tmp_path / "out", 2)


JOB: dict[str, Any] = {
    "id": "job-abc",
    "attempts": [{}],
    "created_at": 10.0,
    "finished_at": 75.2,
    "result": {
        "miou": 0.5,
        "baseline_miou": 0.1,
        "best_step": 80,
        "model": {"name": "segmenter-demo", "version": "1", "alias": "candidate"},
    },
}
STATUS = {"parts": [{"name": "ray", "memory_mib": 640.4, "address": "http://127.0.0.1:1"}]}


def test_closing_table_has_the_figures_and_the_addresses() -> None:
    facts = demo.figures(JOB, STATUS)
    assert facts["val mIoU"] == "0.500 at step 80"
    assert facts["ratio"] == "5.0 (at least 4 needed)"
    assert facts["model"] == "segmenter-demo/1 @candidate"
    assert facts["job"] == "job-abc, 1 attempt(s), 65 s"
    assert facts["idle memory"] == "ray 640 MiB"
    assert facts["ray was at"] == "http://127.0.0.1:1"


@pytest.mark.parametrize(("miou", "code"), [(0.41, 0), (0.39, 1), (None, 1)])
def test_demo_fails_if_the_model_is_poor_or_a_stage_fails_and_always_stops(
    miou: float | None, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def play(*_: object) -> dict[str, Any]:
        if miou is None:
            raise demo.DemoError("no")
        return {"figures": {}, "result": {"miou": miou, "baseline_miou": 0.1}}

    stopped: list[Any] = []
    monkeypatch.setattr(demo, "play", play)
    monkeypatch.setattr(demo, "close", stopped.append)
    monkeypatch.setattr(demo.signal, "signal", lambda *_: None)
    monkeypatch.setattr(demo.tempfile, "mkdtemp", lambda **_: str(tmp_path / "home"))
    monkeypatch.setattr(sys, "argv", ["demo.py", "--out", str(tmp_path / "out")])
    assert demo.main() == code
    assert len(stopped) == 1


def test_demo_names_the_command_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 3))
    with pytest.raises(demo.DemoError, match=r"'segfleet verify' ended with exit code 3; logs are in .*logs"):
        demo.Demo(tmp_path, tmp_path).run("verify", "x")


def test_demo_takes_a_port_with_free_neighbours_below_the_systems_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class UpError(Exception):
        pass

    def run(_: Any, *words: Any) -> None:
        raise UpError(*words)

    monkeypatch.setattr(demo.Demo, "run", run)
    with pytest.raises(UpError) as called:
        demo.play(demo.Demo(tmp_path, tmp_path), 2, [])
    assert int(called.value.args[called.value.args.index("--port") + 1]) < 32_768


def test_demo_ignores_the_users_own_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGFLEET_URL", "http://elsewhere")
    monkeypatch.setenv("SEGFLEET_TOKEN", "t")
    environment = demo.Demo(tmp_path, tmp_path).environment
    assert [name for name in environment if name.startswith("SEGFLEET_")] == ["SEGFLEET_HOME"]
