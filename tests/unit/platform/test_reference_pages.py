from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
_SPEC = importlib.util.spec_from_file_location("reference_script", ROOT / "scripts" / "reference.py")
assert _SPEC is not None
assert _SPEC.loader is not None
reference = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(reference)


@pytest.mark.parametrize("name", ["commands.md", "spec.md"])
def test_the_pages_of_commands_and_fields_are_up_to_date(name: str) -> None:
    written = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert written == reference.pages()[name], "run: python scripts/reference.py"


def test_the_pages_tell_of_commands_options_and_fields() -> None:
    pages = reference.pages()
    for word in ("## segfleet models promote", "--follow", "    segfleet down"):
        assert word in pages["commands.md"]
    for word in ("`train.validate_every`", "`register.alias`", "| `base` |", "`search.scheduler`", "`val_share`"):
        assert word in pages["spec.md"]
