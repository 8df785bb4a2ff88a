"""Write docs/commands.md and docs/spec.md from the commands and the spec's fields: `python scripts/reference.py`."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from segfleet.cli.main import app
from segfleet.spec.kinds import EvaluateSpec, PrepareSpec, SearchSpec, TrainingBody, TrainSpec

DOCS = Path(__file__).parents[1] / "docs"
_EXAMPLE = "Example: "
# Filled in by segfleet itself.
_NOT_TYPED = frozenset({"kind", "written"})
KINDS = (TrainSpec, EvaluateSpec, SearchSpec, PrepareSpec)


def main() -> None:
    """Write both pages."""
    for name, text in pages().items():
        (DOCS / name).write_text(text, encoding="utf-8")


def pages() -> dict[str, str]:
    """File name -> text."""
    return {"commands.md": commands_page(), "spec.md": spec_page()}


def commands_page() -> str:
    """Every command with its options."""
    lines = [
        "# Commands",
        "",
        "Made by `python scripts/reference.py` from the commands themselves; `segfleet COMMAND --help` says the same.",
        "Exit code: 0 done, 1 the job or check failed, 2 wrong use. `--json` prints what a script can read.",
        "",
    ]
    for path, command in _commands(typer.main.get_command(app), "segfleet"):
        context = typer.Context(command, info_name=path)
        usage = " ".join(command.collect_usage_pieces(context))
        lines += [f"## {path}", "", f"    {path} {usage}", "", *_told(command.help)]
        records = [one.get_help_record(context) for one in command.params if one.param_type_name == "option"]
        told = [record for record in records if record is not None]
        if told:
            lines += ["| option | |", "|---|---|", *(f"| `{_cell(name)}` | {_cell(text)} |" for name, text in told), ""]
    return "\n".join(lines).rstrip() + "\n"


def _commands(group: Any, path: str) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{path} {name}")
        elif not command.hidden:
            yield f"{path} {name}", command


def _told(text: str | None) -> Iterator[str]:
    """A help text's paragraphs, and its examples as they are typed."""
    parts = [" ".join(part.split()) for part in (text or "").replace("\b", "").split("\n\n")]
    for part in parts:
        if not part.startswith(_EXAMPLE):
            yield from (part, "")
    if examples := [part.removeprefix(_EXAMPLE) for part in parts if part.startswith(_EXAMPLE)]:
        yield from (*(f"    {example}" for example in examples), "")


def spec_page() -> str:
    """Every field of every kind of spec."""
    lines = [
        "# Spec fields",
        "",
        "Made by `python scripts/reference.py` from the fields themselves. A spec is YAML or JSON; what is left out",
        "has the default; an unknown key is an error. `segfleet check SPEC` shows every value of a spec.",
        "",
    ]
    for kind in KINDS:
        name = kind.model_fields["kind"].default
        lines += [f"## kind: {name}", "", *_told(kind.__doc__), "| field | value | default | |", "|---|---|---|---|"]
        for path, field in _fields(kind, ""):
            shown = "required" if field.is_required() else _default(field)
            lines.append(f"| `{path}` | {_cell(_type(field.annotation))} | {shown} | {_cell(field.description)} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _fields(model: type[BaseModel], before: str) -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        path = f"{before}{field.alias or name}"
        section = _section(field.annotation)
        if name in _NOT_TYPED:
            continue
        if section is TrainingBody:
            yield path, field  # its fields are told of with kind: train
        elif section is not None:
            yield from _fields(section, f"{path}.")
        else:
            yield path, field


def _section(annotation: Any) -> type[BaseModel] | None:
    """The section that a field is, also one that may be left out; None: a plain value, or one of several forms."""
    options = [one for one in _options(annotation) if one is not type(None)]
    only = options[0] if len(options) == 1 else None
    return only if isinstance(only, type) and issubclass(only, BaseModel) else None


def _options(annotation: Any) -> list[Any]:
    if typing.get_origin(annotation) is typing.Annotated:
        return _options(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [one for option in typing.get_args(annotation) for one in _options(option)]
    return [annotation]


def _type(annotation: Any) -> str:
    return " or ".join(dict.fromkeys(_word(option) for option in _options(annotation)))


def _word(option: Any) -> str:
    origin, arguments = typing.get_origin(option), typing.get_args(option)
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (list, tuple):
        return f"list of {_type(arguments[0])}"
    if origin is not None:
        return f"map of {' to '.join(_type(argument) for argument in arguments)}"
    if isinstance(option, type) and issubclass(option, BaseModel):
        return f"{{{', '.join(option.model_fields)}}}"
    words = {bool: "true, false", int: "whole number", float: "number", str: "text", type(None): "null"}
    return words.get(option, "any")


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return ""
    plain = value.model_dump() if isinstance(value, BaseModel) else value
    return f"`{json.dumps(plain, default=str)}`"


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


if __name__ == "__main__":
    main()
