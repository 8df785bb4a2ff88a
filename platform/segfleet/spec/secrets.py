"""Values in a spec that look like secrets: a spec is stored, shown to the whole team and handed to MLflow."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from segfleet.errors import Problem

_HINT = "keep it out of specs: jobs take keys from the environment of the cluster"
# Prefixes that their makers publish so that such values can be found.
_KINDS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("a private key", re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----")),
    ("an AWS access key", re.compile(r"(?<![A-Za-z0-9])(AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])")),
    ("a GitHub token", re.compile(r"(?<![A-Za-z0-9])(gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{40,})")),
    ("a GitLab token", re.compile(r"(?<![A-Za-z0-9])glpat-[A-Za-z0-9_-]{20,}")),
    ("a Hugging Face token", re.compile(r"(?<![A-Za-z0-9])hf_[A-Za-z0-9]{30,}")),
    ("a Slack token", re.compile(r"(?<![A-Za-z0-9])xox[abprs]-[A-Za-z0-9-]{10,}")),
    ("a Google API key", re.compile(r"(?<![A-Za-z0-9])AIza[A-Za-z0-9_-]{35}")),
    ("an API key", re.compile(r"(?<![A-Za-z0-9])sk-[A-Za-z0-9_-]{32,}")),
    ("a token of this service", re.compile(r"segfleet_(user|home)_[A-Za-z0-9_-]{16,}")),
    ("a JSON web token", re.compile(r"(?<![A-Za-z0-9])eyJ[A-Za-z0-9_-]{8,2000}\.eyJ[A-Za-z0-9_-]{8}")),
    ("a password in an address", re.compile(r"://[^/\s:@]*:[^/\s@]+@")),
    ("a password", re.compile(r"(?i)(?<![a-z])(password|passwd|pwd)\s{0,8}[=:]\s{0,8}\S")),
    ("a signed address", re.compile(r"(?i)[?&](X-Amz-Signature|X-Goog-Signature|Signature|sig)=[A-Za-z0-9%+/]{16,}")),
)
# Every repeat is bounded: what is searched comes from users, and a search holds up the whole service.
_ASSIGNMENT = re.compile(
    r"(?i)(?:secret|token|api_?key|credential)\w{0,32}[\"']?\s{0,8}[=:]\s{0,8}[\"']?([A-Za-z0-9+/_.-]{16,}=*)"
)
_NAME = re.compile(r"(?i)secret|token|password|passwd|api_?key|credential")
_LONG = re.compile(r"[A-Za-z0-9+/_.-]{16,}=*")
# Bits a character; words of a language have fewer in so short a text, random base64 and hexadecimal have more.
_RANDOM_BITS = 3.2


def secret_problems(document: Any) -> list[Problem]:
    """Where a document holds what looks like a secret, and of which kind; never the value.

    Args:
        document: Plain data.
    """
    problems = []
    for path, name, text in _texts(document, "", ""):
        if kind := _kind(name, text):
            problems.append(Problem(path, f"looks like {kind}", _HINT))
    return problems


def _kind(name: str, text: str) -> str | None:
    for kind, pattern in _KINDS:
        if pattern.search(text):
            return kind
    assigned = [match[1] for match in _ASSIGNMENT.finditer(text)]
    if _NAME.search(name) and _LONG.fullmatch(text):
        assigned.append(text)
    return "a secret" if any(_is_random(value) for value in assigned) else None


def _is_random(text: str) -> bool:
    counts = Counter(text)
    bits = -sum(count / len(text) * math.log2(count / len(text)) for count in counts.values())
    return bits >= _RANDOM_BITS and any(character.isdigit() for character in text)


def _texts(value: Any, path: str, name: str) -> Iterator[tuple[str, str, str]]:
    match value:
        case str():
            yield path, name, value
        case dict():
            for place, (key, inner) in enumerate(value.items()):
                # A key that is a secret itself may not be told either.
                if _kind("", str(key)):
                    yield _below(path, f"key {place + 1}"), "", str(key)
                else:
                    yield from _texts(inner, _below(path, str(key)), str(key))
        case list():
            for place, inner in enumerate(value):
                yield from _texts(inner, f"{path}[{place}]", name)


def _below(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
