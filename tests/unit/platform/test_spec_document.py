from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from segfleet.errors import SpecError
from segfleet.spec.document import MAX_BYTES, MAX_DEPTH, apply_overrides, parse_document, parse_override, read_document


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("012", "012"),
        ("0x1F", "0x1F"),
        ("1_000", "1_000"),
        ("12:30:45", "12:30:45"),
        ("2024-01-31", "2024-01-31"),
        ("=", "="),
        ("48h", "48h"),
        (".inf", ".inf"),
        (".nan", ".nan"),
        ("true", True),
        ("False", False),
        ("~", None),
        ("null", None),
        ("", None),
        ("0", 0),
        ("-7", -7),
        ("+7", 7),
        ("12", 12),
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        ("1.5", 1.5),
        (".5", 0.5),
        ("-2.", -2.0),
        ("'12'", "12"),
        ('"true"', "true"),
        ("[1, a, 1e-3]", [1, "a", 1e-3]),
        ("{a: {b: 1}}", {"a": {"b": 1}}),
    ],
)
def test_scalars_have_the_types_of_yaml_1_2(text: str, value: Any) -> None:
    parsed = parse_document(f"value: {text}")["value"]
    assert parsed == value
    assert type(parsed) is type(value)


def test_json_is_a_spec_too() -> None:
    document = {"kind": "train", "optim": {"lr": 0.001}, "eval": {"scales": [0.5, 1.0]}, "note": 'ä\t"x"'}
    assert parse_document(json.dumps(document)) == document
    assert parse_document(json.dumps(document, indent=2)) == document


def refusal(text: str) -> str:
    with pytest.raises(SpecError) as caught:
        parse_document(text, "job.yaml")
    assert str(caught.value).startswith("job.yaml: 1 problem")
    return str(caught.value)


def test_alias_bomb_is_refused_before_it_grows() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    assert "line 1, column 5: anchor &a0 is not allowed; write the value out" in refusal("\n".join(lines))


def test_alias_is_refused_by_name() -> None:
    assert "alias *missing is not allowed" in refusal("a: *missing")


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system", "!!binary", "!!set", "!custom", "!!str"])
def test_tags_are_refused(tag: str) -> None:
    assert "is not allowed" in refusal(f"a: {tag} x")


def test_duplicate_key_names_both_lines() -> None:
    assert "line 3, column 1: duplicate key 'kind' (first on line 1)" in refusal("kind: train\nname: a\nkind: search\n")


def test_duplicate_key_deep_inside_is_found() -> None:
    assert "duplicate key 'lr' (first on line 2)" in refusal("optim:\n  lr: 0.1\n  lr: 0.2\n")


def test_duplicate_key_in_json_is_found() -> None:
    assert "duplicate key 'a'" in refusal('{"a": 1, "a": 2}')


def test_merge_key_is_no_magic() -> None:
    assert parse_document("<<: {a: 1}") == {"<<": {"a": 1}}


def test_key_that_is_no_word_is_refused() -> None:
    assert "a key must be a plain word" in refusal("? [a, b]\n: 1\n")


def test_keys_stay_text() -> None:
    assert parse_document("1: a\ntrue: b\n") == {"1": "a", "true": "b"}


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 5_000])
def test_deep_nesting_is_refused(depth: int) -> None:
    assert f"nested deeper than {MAX_DEPTH}" in refusal("a: " + "[" * depth + "]" * depth)


def test_wide_document_is_not_mistaken_for_a_deep_one() -> None:
    assert len(parse_document("\n".join(f"k{n}: [1, 2]" for n in range(200)))) == 200


def test_size_is_bounded_in_bytes_not_characters() -> None:
    fits = "a: " + "x" * (MAX_BYTES - 3)
    assert parse_document(fits)["a"].startswith("xxx")
    assert f"a spec has at most {MAX_BYTES}" in refusal(fits + "x")
    assert f"a spec has at most {MAX_BYTES}" in refusal("a: " + "ä" * (MAX_BYTES // 2))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the document is empty"),
        ("# only a comment\n", "the document is empty"),
        ("- a\n- b\n", "the document is a list"),
        ("just words", "the document is a str"),
        ("a: 1\n---\nb: 2\n", "line 2, column 1: but found another document"),
        ("a: [1, 2", "line 1, column 9"),
        ("a: b: c", "mapping values are not allowed"),
        ("a: \x07", "not readable as YAML"),
        ("a:\n\t- b", "line 2, column 1"),
    ],
)
def test_what_is_no_mapping_is_refused(text: str, message: str) -> None:
    assert message in refusal(text)


def test_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"absent\.yaml: 1 problem\n  - cannot be read: No such file"):
        read_document(tmp_path / "absent.yaml")
    with pytest.raises(SpecError, match="cannot be read: Is a directory"):
        read_document(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("name: zürich".encode("latin-1"))
    with pytest.raises(SpecError, match="not UTF-8 text"):
        read_document(tmp_path / "latin.yaml")


def test_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("name: zürich\n", encoding="utf-8")
    assert read_document(path) == {"name": "zürich"}


@pytest.mark.parametrize(
    ("assignment", "path", "value"),
    [
        ("train.steps=10", ("train", "steps"), 10),
        ("optim.lr=1e-3", ("optim", "lr"), 1e-3),
        ("name=a=b", ("name",), "a=b"),
        ("eval.scales=[0.5, 1.0]", ("eval", "scales"), [0.5, 1.0]),
        ("model={patch_size: 8}", ("model",), {"patch_size": 8}),
        ("queue.time_limit=", ("queue", "time_limit"), None),
        ("data.shards=/data/my shards", ("data", "shards"), "/data/my shards"),
        ("model.pretrained=true", ("model", "pretrained"), True),
    ],
)
def test_override_is_read_as_yaml(assignment: str, path: tuple[str, ...], value: Any) -> None:
    assert parse_override(assignment) == (path, value)


@pytest.mark.parametrize("assignment", ["train.steps", "=1", ".steps=1", "train..steps=1", ""])
def test_malformed_override_is_refused(assignment: str) -> None:
    with pytest.raises(SpecError, match="is not of the form path=value"):
        parse_override(assignment)


def test_override_values_obey_the_same_rules() -> None:
    with pytest.raises(SpecError, match="anchor &a is not allowed"):
        parse_override("name=&a b")


def test_overrides_apply_in_order_and_leave_the_document_alone() -> None:
    document = {"kind": "train", "train": {"steps": 5, "tags": [{"a": 1}]}}
    before = json.dumps(document)
    changed = apply_overrides(document, ["train.steps=6", "train.steps=7", "optim.lr=0.1"])
    assert changed == {"kind": "train", "train": {"steps": 7, "tags": [{"a": 1}]}, "optim": {"lr": 0.1}}
    changed["train"]["tags"][0]["a"] = 2
    assert json.dumps(document) == before


def test_override_through_a_value_is_refused() -> None:
    with pytest.raises(SpecError, match=r"train.steps: holds 5, so 'train.steps.more=1' has nowhere to go"):
        apply_overrides({"train": {"steps": 5}}, ["train.steps.more=1"])
