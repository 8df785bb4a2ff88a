from __future__ import annotations

import os
from pathlib import Path

import pytest

from segfleet.cluster.state import Started, State, exclusive, holder, is_held
from segfleet.errors import SettingsError
from segfleet.settings import Home


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path)
    home.create()
    return home


def test_a_state_is_read_back_as_it_was_written(home: Home) -> None:
    state = State("s1", "http://127.0.0.1:8700", 5, {"service": 8700}).with_process("ray", Started(7, "f"))
    state.save(home)
    assert State.load(home) == state
    assert state.mark("ray") == "s1:ray"


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"processes": {"ray": {}}}', '{"processes": {}, "more": 1}'])
def test_a_state_nobody_understands_is_none(text: str, home: Home) -> None:
    home.state.write_text(text)
    assert State.load(home) is None


def test_no_state_is_none(home: Home) -> None:
    assert State.load(home) is None


def test_the_second_holder_is_refused_with_the_first_one_s_pid(home: Home) -> None:
    assert not is_held(home)
    with exclusive(home):
        assert is_held(home)
        assert holder(home.lock) == os.getpid()
        with pytest.raises(SettingsError, match=f"pid {os.getpid()}.*segfleet down"), exclusive(home):
            pass
        assert is_held(home)
    assert not is_held(home)
    with exclusive(home):
        pass
