"""Rules of the repository that no other tool checks."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[3]
PACKAGES = {
    "platform": "segfleet",
    "models": "segfleet_models",
    "pipelines": "segfleet_pipelines",
    "jobs": "segfleet_jobs",
}
MODULES = sorted(path for top, package in PACKAGES.items() for path in (ROOT / top / package).rglob("*.py"))
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOCK = dict(
    line.split("==")
    for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
)


@pytest.mark.parametrize("top", PACKAGES)
def test_top_folders_hold_no_python_of_their_own(top: str) -> None:
    # platform/__init__.py or platform/x.py would hide the standard library's platform module, and break torch and Ray.
    assert list((ROOT / top).glob("*.py")) == []


def test_the_standard_librarys_platform_is_the_one_imported() -> None:
    import platform

    assert platform.python_implementation() == "CPython"


@pytest.mark.parametrize(("top", "package"), PACKAGES.items())
def test_packages_are_typed_and_bare(top: str, package: str) -> None:
    folder = ROOT / top / package
    assert (folder / "py.typed").is_file()
    assert (folder / "__init__.py").is_file()
    bare = [str(p.parent) for p in folder.rglob("*.py") if not (p.parent / "__init__.py").exists()]
    assert sorted(set(bare)) == []


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_can_be_read_in_one_sitting(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 350


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_of_documents_resolve(path: Path) -> None:
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text)
    local = [target for target in targets if not re.match(r"[a-z]+:", target)]
    assert [target for target in local if not (path.parent / target).exists()] == []


def test_readme_names_the_two_commands_and_every_hop() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for words in ("make demo", "make test", "segfleet submit", "segfleet predict"):
        assert words in text
    for hop in ("cli", "client", "server", "service", "scheduling", "dispatcher", "launcher", "train", "loop", "step"):
        assert re.search(rf"\]\([a-z_/]*{hop}[a-z_/]*(\.py)?\)", text), hop


def test_readme_s_first_job_trains_on_what_its_first_commands_prepare() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    prepared = re.search(r"segfleet prepare folder --raw \S+ --out (\S+)", text)
    trained = re.search(r"^data: {shards: (\S+)}$", text, re.MULTILINE)
    assert prepared is not None
    assert trained is not None
    assert trained[1] == prepared[1]


def test_the_lock_pins_exact_versions_and_nothing_else() -> None:
    assert all(re.fullmatch(r"[a-z0-9-]+", name) for name in LOCK)
    assert all(re.fullmatch(r"[0-9][0-9a-z.]*", version) for version in LOCK.values())
    assert "segfleet" not in LOCK


def test_the_lock_satisfies_what_the_project_asks_for() -> None:
    # What only a benchmark compares with, or a long run of its own needs, is not installed for the tests.
    extras = {n: group for n, group in PROJECT["optional-dependencies"].items() if n not in ("bench", "fuzz")}
    asked = [Requirement(text) for group in (PROJECT["dependencies"], *extras.values()) for text in group]
    asked = [requirement for requirement in asked if requirement.name != PROJECT["name"]]
    missing = [r.name for r in asked if canonicalize_name(r.name) not in LOCK]
    assert missing == []
    assert [str(r) for r in asked if not r.specifier.contains(LOCK[canonicalize_name(r.name)], prereleases=True)] == []


@pytest.mark.parametrize(
    ("name", "floor"),
    [("ray", "2.56"), ("mlflow", "3.17"), ("mlflow-skinny", "3.17"), ("torch", "2.10"), ("pillow", "12.3")],
)
def test_known_holes_are_below_the_floors(name: str, floor: str) -> None:
    assert Version(LOCK[name]) >= Version(floor)
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    asked = [r for group in groups for r in map(Requirement, group) if canonicalize_name(r.name) == name]
    assert asked
    assert all(not r.specifier.contains(f"{floor.split('.')[0]}.0") for r in asked)


def test_ci_runs_what_people_run() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111 == 0o111
    text = script.read_text(encoding="utf-8")
    assert re.search(r"^make .*\bcheck\b", text, re.MULTILINE)
    assert re.search(r"^make .*\btest\b", text, re.MULTILINE)
    subprocess.run(["bash", "-n", script], check=True)


def test_make_knows_its_targets() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", text, re.MULTILINE))
    assert targets >= {"setup", "demo", "test", "test-unit", "check", "bench", "lock", "clean", "help"}


def test_license_and_version_agree_with_the_project() -> None:
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert f"## [{PROJECT['version']}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
