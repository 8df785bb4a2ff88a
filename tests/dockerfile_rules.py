"""Rules for Dockerfiles, after those of hadolint: few, and each with a reason."""

from __future__ import annotations

import re
from dataclasses import dataclass

_SECRET = re.compile(r"(?i)(token|password|passwd|secret|_key)\w*[= ]\s*\S")
_PINNED = re.compile(r":(?!latest)[\w.-]*\d+\.\d+[\w.-]*(@sha256:[0-9a-f]{64})?$")


@dataclass(frozen=True)
class Instruction:
    """One instruction, its continued lines joined."""

    word: str
    rest: str


def instructions(text: str) -> list[Instruction]:
    """All of a file, in order; comments left out, also those between continued lines."""
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\\n", " ", lines)
    pairs = [line.strip().partition(" ") for line in joined.splitlines() if line.strip()]
    return [Instruction(word.upper(), rest.strip()) for word, _, rest in pairs]


def violations(text: str) -> list[str]:
    """What is wrong with a file, one sentence each."""
    found = instructions(text)
    arguments = dict(i.rest.partition("=")[::2] for i in found if i.word == "ARG" and "=" in i.rest)
    begins = [place for place, i in enumerate(found) if i.word == "FROM"]
    last = found[begins[-1] :]
    stages = {match[1] for i in found if i.word == "FROM" and (match := re.search(r"(?i) AS (\S+)$", i.rest))}
    return [
        *_bases(found, arguments, stages),
        *_secrets(found),
        *_commands(found),
        *_user(last),
        *([] if len(begins) > 1 else ["there is one stage: tools of the build stay in the image"]),
        *([] if any(i.word == "HEALTHCHECK" for i in last) else ["the last stage has no HEALTHCHECK"]),
    ]


def sources(text: str) -> list[str]:
    """What is copied from the folder of the build."""
    copies = [i.rest.split() for i in instructions(text) if i.word == "COPY" and "--from" not in i.rest]
    return [word for words in copies for word in words[:-1] if not word.startswith("--")]


def _bases(found: list[Instruction], arguments: dict[str, str], stages: set[str]) -> list[str]:
    wrong = []
    for instruction in found:
        if instruction.word == "FROM":
            image = re.sub(r"\$\{(\w+)\}", lambda match: arguments.get(match[1], ""), instruction.rest.split()[0])
            if image not in stages and not _PINNED.search(image):
                wrong.append(f"the base {image!r} is not pinned")
        if instruction.word == "ADD":
            wrong.append("ADD fetches and unpacks; use COPY")
    return wrong


def _secrets(found: list[Instruction]) -> list[str]:
    settings = [i.rest for i in found if i.word in ("ENV", "ARG", "LABEL")]
    return [f"{rest!r} looks like a secret" for rest in settings if _SECRET.search(rest)]


def _commands(found: list[Instruction]) -> list[str]:
    wrong = []
    cached = not any(i.word == "ENV" and "PIP_NO_CACHE_DIR=1" in i.rest for i in found)
    for instruction in found:
        rest = instruction.rest
        if instruction.word == "RUN":
            if "apt-get install" in rest and (
                "rm -rf /var/lib/apt/lists" not in rest or "--no-install-rec" not in rest
            ):
                wrong.append("apt-get leaves lists or recommended packages behind")
            if "pip install" in rest and cached and "--no-cache-dir" not in rest:
                wrong.append("pip leaves its cache behind")
            if re.search(r"\b(sudo|curl|wget)\b", rest):
                wrong.append("a build fetches nothing past the package index, and needs no sudo")
        if instruction.word in ("CMD", "ENTRYPOINT") and not rest.startswith("["):
            wrong.append(f"{instruction.word} runs in a shell, which swallows signals")
    return wrong


def _user(last: list[Instruction]) -> list[str]:
    users = [i.rest for i in last if i.word == "USER"]
    # By number: a cluster that forbids root cannot tell from a name.
    return [] if users and re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", users[-1]) else ["the last stage may run as root"]
