from __future__ import annotations

import fnmatch
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from dockerfile_rules import instructions, sources, violations

ROOT = Path(__file__).resolve().parents[3]
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
GOOD = """\
FROM python:3.11.14-slim AS build
ENV PIP_NO_CACHE_DIR=1
RUN pip install x && apt-get install --no-install-recommends -y y && rm -rf /var/lib/apt/lists/*
FROM python:3.11.14-slim
COPY --from=build /opt /opt
USER 10001
HEALTHCHECK CMD ["true"]
CMD ["true"]
"""


def test_the_image_breaks_no_rule() -> None:
    assert violations(DOCKERFILE) == []


@pytest.mark.parametrize(
    ("good", "bad", "words"),
    [
        ("python:3.11.14-slim\nCOPY", "python:latest\nCOPY", "is not pinned"),
        ("python:3.11.14-slim\nCOPY", "python\nCOPY", "is not pinned"),
        ("USER 10001\n", "", "may run as root"),
        ("USER 10001", "USER 0:0", "may run as root"),
        ("USER 10001", "USER 10001\nUSER root", "may run as root"),
        ('HEALTHCHECK CMD ["true"]\n', "", "no HEALTHCHECK"),
        ("ENV PIP_NO_CACHE_DIR=1", "ENV PIP_NO_CACHE_DIR=1 DB_PASSWORD=x", "looks like a secret"),
        ("ENV PIP_NO_CACHE_DIR=1\n", "", "pip leaves"),
        (" && rm -rf /var/lib/apt/lists/*", "", "apt-get leaves"),
        ("COPY --from=build /opt /opt", "ADD https://example.org/x /opt", "ADD fetches"),
        ('CMD ["true"]\n', "CMD true\n", "swallows signals"),
        ("FROM python:3.11.14-slim\nCOPY --from=build /opt /opt\n", "", "one stage"),
        ("RUN pip", "RUN curl x | sh && pip", "fetches nothing"),
    ],
)
def test_the_rules_find_what_they_are_for(good: str, bad: str, words: str) -> None:
    assert violations(GOOD) == []
    assert good in GOOD
    # The health check's own CMD stands before the image's.
    begin, _, end = GOOD.rpartition(good)
    found = violations(begin + bad + end)
    assert any(words in sentence for sentence in found), found


def test_what_is_copied_is_there_and_reaches_the_builder() -> None:
    ignore = (ROOT / "docker" / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert ignore[1] == "*"
    reached = [line[1:] for line in ignore if line.startswith("!")]
    assert [name for name in sources(DOCKERFILE) if not (ROOT / name).exists()] == []
    assert sorted(sources(DOCKERFILE)) == sorted(reached)
    assert not any(fnmatch.fnmatch("docker/secrets", name) for name in reached)


def test_extras_and_versions_are_the_projects_own() -> None:
    text = " ".join(i.rest for i in instructions(DOCKERFILE) if i.word == "RUN")
    assert set(PROJECT["optional-dependencies"]) >= {"train", "server", "postgres"}
    assert '".[train,server,postgres]"' in text
    assert text.count("pip install --constraint requirements.lock") == 2
    assert f"segfleet:{PROJECT['version']} " in DOCKERFILE


@pytest.mark.integration
def test_what_is_copied_makes_a_whole_wheel(tmp_path: Path) -> None:
    """The build's last step, outside of a container."""
    pytest.importorskip("hatchling")
    for name in sources(DOCKERFILE):
        (tmp_path / name).symlink_to(ROOT / name)
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", "out"], cwd=tmp_path, check=True)
    [wheel] = (tmp_path / "out").glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    modules = [
        path for package in ("platform", "models", "pipelines", "jobs") for path in (ROOT / package).glob("*/**/*.py")
    ]
    assert len(modules) > 200
    assert [str(m) for m in modules if str(m.relative_to(ROOT)).partition("/")[2] not in packed] == []
