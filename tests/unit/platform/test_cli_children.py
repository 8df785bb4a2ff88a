from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from segfleet.cli.children import options, require, run_module
from segfleet.errors import SettingsError
from segfleet.settings import child_environment


@pytest.fixture
def module(tmp_path: Path) -> dict[str, str | None]:
    (tmp_path / "child_of_test.py").write_text(
        "import os, sys\n"
        "print('out', *sys.argv[1:]); print('err', file=sys.stderr, flush=True)\n"
        "code = sys.argv[1]\n"
        "os.kill(os.getpid(), 9) if code == 'killed' else sys.exit(int(code))\n"
    )
    return {"PYTHONPATH": str(tmp_path), "PYTHONUNBUFFERED": "1"}


@pytest.mark.parametrize(("argument", "code"), [("0", 0), ("1", 1), ("2", 2), ("killed", 137)])
def test_output_and_exit_code_of_a_child_are_passed_on(
    argument: str, code: int, module: dict[str, str | None], capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_module("child_of_test", [argument, "a b"], module) == code
    captured = capfd.readouterr()
    assert captured.out == f"out {argument} a b\n"
    assert captured.err == "err\n"


def test_a_file_in_the_users_folder_is_not_taken_for_a_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "queue.py").write_text("raise SystemExit('the user\\'s own queue.py')\n")
    monkeypatch.chdir(tmp_path)
    assert run_module("segfleet.cli.main", ["--help"]) == 0
    assert "Usage" in capfd.readouterr().out
    # The children of such a child, whose command lines are not ours, are kept from it too.
    (tmp_path / "child.py").write_text("import queue\n")
    assert subprocess.run([sys.executable, "child.py"], env=child_environment({}), check=False).returncode == 0


def test_a_missing_dependency_names_the_extra_to_install() -> None:
    with pytest.raises(SettingsError) as refused:
        require("predict", ["json", "no_such_module"], "train")
    assert "needs no_such_module" in str(refused.value)
    assert "pip install '.[train]'" in str(refused.value)


def test_what_is_there_is_not_refused() -> None:
    require("predict", ["json"], "train")


def test_only_given_options_reach_the_child() -> None:
    given = options(raw=None, out=Path("x"), val_share=0.0, samples=3, json=True, other=False)
    assert given == ["--out", "x", "--val-share", "0.0", "--samples", "3", "--json"]
