"""Reads README.md and the pages of docs/ for the tests: commands, snippets, requests and links in them.

In: Markdown files. Out: what stands in them, each with its file's name. Runs nothing.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
PATHS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in PATHS}
_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)\n(?P<code>.*?)^(?P=indent)```", re.MULTILINE | re.DOTALL
)
_LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^)\s]+)\)")
ARGUMENT_KEYS = ("vllm_xargs", "extra_args")


class Snippet(NamedTuple):
    """A piece of code in a file."""

    file: str
    code: str


def snippets(language: str) -> list[Snippet]:
    """Every fenced block of a language."""
    return [
        Snippet(name, match["code"])
        for name, text in TEXTS.items()
        for match in _FENCE.finditer(text)
        if match["language"] == language
    ]


def shell_lines() -> list[Snippet]:
    """Every line of an indented block, and of a block marked `sh`, continued lines joined, comments cut."""
    found = []
    for name, text in TEXTS.items():
        fenced = [match["code"] for match in _FENCE.finditer(text) if match["language"] == "sh"]
        outside = _FENCE.sub("", text)
        indented = [
            line for line in outside.replace("\\\n", " ").splitlines() if line[:4] == "    "
        ]
        lines = [*indented, *"\n".join(fenced).replace("\\\n", " ").splitlines()]
        found += [Snippet(name, line.partition("  #")[0].strip()) for line in lines]
    return found


def commands(program: str) -> list[Snippet]:
    """Every shell line that calls a program, from its name on; `NAME=VALUE` may stand in front."""
    pattern = re.compile(rf"^(?:\w+=\S+ )*({re.escape(program)} .*)$")
    return [
        Snippet(one.file, match[1].split(" [")[0])
        for one in shell_lines()
        if (match := pattern.match(one.code))
    ]


def guided_requests() -> list[tuple[str, dict[str, Any]]]:
    """File and arguments of every request: in Python, in JSON, and in the body of a curl command."""
    found = []
    for one in snippets("python"):
        found += [(one.file, arguments) for arguments in _in_python(one.code)]
    for one in snippets("json"):
        for line in _json_values(one.code):
            found += [(one.file, arguments) for arguments in _in_json(line)]
    for one in snippets("sh"):
        for word in shlex.split(one.code):
            if word.startswith("{"):
                found += [(one.file, arguments) for arguments in _in_json(json.loads(word))]
    return found


def _in_python(code: str) -> Iterator[dict[str, Any]]:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value in ARGUMENT_KEYS:
                    yield ast.literal_eval(value)
        elif isinstance(node, ast.keyword) and node.arg in ARGUMENT_KEYS:
            yield ast.literal_eval(node.value)


def _json_values(code: str) -> Iterator[Any]:
    """One value, or one a line."""
    try:
        yield json.loads(code)
    except ValueError:
        for line in code.splitlines():
            yield json.loads(line)


def _in_json(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        if any(name.startswith("pad_") for name in value):
            yield value
            return
        for inner in value.values():
            yield from _in_json(inner)


def relative_links() -> list[tuple[str, str]]:
    """File and target of every link that leads to another file, without its anchor."""
    return [
        (name, target.partition("#")[0])
        for name, text in TEXTS.items()
        for target in _LINK.findall(_FENCE.sub("", text))
        if not re.match(r"[a-z]+:|#", target)
    ]
