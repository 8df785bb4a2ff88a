"""Side by side, but each file in one process, and all that start a Ray in one: two clusters at a time are too much."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from factories import close_stores
from lively import Site, lively

_STARTS_RAY = ("test_launcher_ray", "test_search_ray", "test_up_down")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.parent == here:
            group = "ray" if item.path.stem in _STARTS_RAY else item.path.stem
            item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A service with made-up jobs."""
    with lively(tmp_path_factory.mktemp("lively")) as site:
        yield site
    close_stores()
