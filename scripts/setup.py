"""Make the project's own `.venv`: check the machine, install the pinned packages, install segfleet for editing.

Runs before anything is installed, so it uses the standard library alone and syntax that an old Python can still
parse: it must be able to say that the Python is too old. `make setup` calls it and keeps the stamp file.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path

MINIMUM = (3, 11, 4)
# Measured on Linux with torch's CUDA packages: 6.8 GB stay, and pip holds 3 GB of downloads in the temporary folder.
VENV_GB = 8
DOWNLOAD_GB = 3
UPDATE_GB = 1
TOOLS = ["pip>=25"]
LOG_LINES_SHOWN = 15
LARGE_MB = 100


class SetupError(Exception):
    """Set-up cannot go on; the message says what to do."""


def machine_problems(
    version: tuple[int, int, int], missing_modules: list[str], free_gb: dict[str, float], needed_gb: dict[str, float]
) -> list[str]:
    """What keeps this machine from running the set-up, one sentence each, all at once.

    Args:
        version: Major, minor and micro version of the Python that would be used.
        missing_modules: Which of `venv` and `ensurepip` that Python lacks.
        free_gb: Free space of each folder that will be written to, GB.
        needed_gb: Space needed in each of the same folders, GB.
    """
    problems = []
    if version < MINIMUM:
        found, minimum = (".".join(map(str, v)) for v in (version, MINIMUM))
        problems.append(
            f"Python {found} is too old, segfleet needs {minimum} or newer; "
            f"install one and name it, for instance: make PYTHON=python3.12 demo"
        )
    if missing_modules:
        problems.append(
            f"this Python has no {' and no '.join(missing_modules)}; on Debian and Ubuntu: apt-get install python3-venv"
        )
    for folder, needed in needed_gb.items():
        if free_gb[folder] < needed:
            problems.append(
                f"{folder} has {free_gb[folder]:.1f} GB free, set-up needs about {needed:g} GB there; "
                "free some space, or point TMPDIR at another disk"
            )
    return problems


def space_needed(root: str, temporary: str, same_disk: bool, complete: bool) -> dict[str, float]:
    """GB needed in each folder: the environment in `root`, pip's downloads in `temporary`.

    Args:
        root: The checkout.
        temporary: The folder for temporary files.
        same_disk: Whether both lie on one file system, which then has to hold both.
        complete: Whether the environment already holds its packages, so that only changes are installed.
    """
    if complete:
        return {root: UPDATE_GB}
    if same_disk:
        return {root: VENV_GB + DOWNLOAD_GB}
    return {root: VENV_GB, temporary: DOWNLOAD_GB}


def check_machine(root: Path, venv: Path) -> str:
    """Look at this Python and this disk.

    Returns:
        A line for the progress report.

    Raises:
        SetupError: with every problem found.
    """
    temporary = tempfile.gettempdir()
    same_disk = Path(temporary).stat().st_dev == root.stat().st_dev
    complete = any(venv.glob("lib/python*/site-packages/torch/version.py"))
    needed = space_needed(str(root), temporary, same_disk, complete)
    free = {folder: shutil.disk_usage(folder).free / 1e9 for folder in needed}
    missing = [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name) is None]
    problems = machine_problems(sys.version_info[:3], missing, free, needed)
    if problems:
        raise SetupError("\n".join(problems))
    return f"Python {sys.version.split()[0]}, {free[str(root)]:.0f} GB free"


def make_environment(venv: Path) -> Path:
    """Create the environment unless a working one is there.

    Returns:
        Its Python.

    Raises:
        SetupError: it cannot be created.
    """
    python = venv / "bin" / "python"
    if not python.exists() or subprocess.run([str(python), "-m", "pip", "--version"], capture_output=True).returncode:
        made = subprocess.run([sys.executable, "-m", "venv", "--clear", str(venv)], capture_output=True, text=True)
        if made.returncode:
            raise SetupError(f"python -m venv {venv} failed:\n{made.stdout}{made.stderr}".rstrip())
    return python


def progress_of(line: str, collected: int, total: int) -> str | None:
    """What one line of pip's output means to a person, or None if it says nothing new.

    Args:
        line: As pip printed it.
        collected: Pinned packages pip has looked at, this line's among them.
        total: Pinned packages.
    """
    size = re.search(r"Downloading .*\(([0-9.]+) ([MG])B\)", line)
    if is_package(line):
        return f"package {collected} of {total}" if collected % 20 == 0 or collected == total else None
    if size and (size[2] == "G" or float(size[1]) >= LARGE_MB):
        return line.strip().lower()
    if line.startswith("Installing collected packages"):
        return "all downloaded, unpacking (one to three minutes)"
    return None


def is_package(line: str) -> bool:
    """Whether pip begins one of the lock's own packages with this line, not a package that another one needs."""
    return line.startswith(("Collecting ", "Requirement already satisfied: ")) and "(from -r " in line


def install(python: Path, arguments: list[str], log: Path, total: int = 0) -> None:
    """Run `pip install`, showing its progress and keeping all it says in the log.

    Raises:
        SetupError: pip failed; shows the end of the log.
    """
    command = [str(python), "-m", "pip", "install", "--no-cache-dir", "--no-input", "--progress-bar", "off"]
    last: deque[str] = deque(maxlen=LOG_LINES_SHOWN)
    collected = 0
    environment = dict(os.environ, PIP_DISABLE_PIP_VERSION_CHECK="1", PYTHONUNBUFFERED="1")
    pip = subprocess.Popen(
        [*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )
    with log.open("a", encoding="utf-8") as file, pip as process:
        assert process.stdout is not None
        for line in process.stdout:
            file.write(line)
            last.append(line.rstrip())
            collected += is_package(line)
            told = progress_of(line, collected, total) if total else None
            if told:
                say(f"      {told}")
    if process.returncode:
        end = "\n".join(last)
        raise SetupError(f"pip install {' '.join(arguments)} failed; its last lines (all of them in {log}):\n{end}")


def say(line: str) -> None:
    """Print at once, also into a pipe."""
    print(line, flush=True)


def set_up(root: Path) -> None:
    """All steps, each with a line of progress."""
    started = time.monotonic()
    venv, lock = root / ".venv", root / "requirements.lock"
    say(f"[1/5] machine: {check_machine(root, venv)}")
    say("[2/5] environment .venv")
    python = make_environment(venv)
    log = venv / "setup.log"
    log.write_text("", encoding="utf-8")
    say("[3/5] pip")
    install(python, ["--upgrade", *TOOLS], log)
    count = sum(1 for line in lock.read_text(encoding="utf-8").splitlines() if "==" in line)
    say(f"[4/5] {count} pinned packages (the first time 3 GB to download: a few minutes)")
    install(python, ["-r", str(lock)], log, total=count)
    say("[5/5] segfleet, for editing")
    install(python, ["--no-deps", "--no-build-isolation", "-e", str(root)], log)
    say(f"set-up complete after {time.monotonic() - started:.0f} s")


def main() -> int:
    """Command line: `python scripts/setup.py [--root DIR]`."""
    parser = argparse.ArgumentParser(description="Install segfleet and everything it needs into .venv")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parent.parent, help="the checkout")
    try:
        set_up(parser.parse_args().root)
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "error: interrupted; run the same command again: it keeps what is installed and downloads the rest anew",
            file=sys.stderr,
        )
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
