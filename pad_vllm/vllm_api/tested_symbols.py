"""Which of vLLM's internals PAD uses, and whether their source is what PAD was tested on.

In: a folder with the package `vllm`, installed or unpacked from a wheel, and tested_symbols.json: file ->
symbol -> hash of its source in vllm_versions.TESTED_VERSIONS (scripts/check_vllm_symbols.py writes it).
Out: the symbols whose source differs. Reads files, and imports none of them. A symbol that differs need not
break PAD, but it is where to look first.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

JSON_FILE = Path(__file__).with_suffix(".json")
TESTED_SYMBOLS: dict[str, dict[str, str]] = json.loads(JSON_FILE.read_text("utf-8"))
"""File, relative to the package -> symbol -> hash."""


class TestedSymbol(NamedTuple):
    """A class, function or method of vLLM's that PAD uses."""

    file: str
    """Its file, relative to the package `vllm`."""

    name: str
    """Such as `Class.method`."""

    tested_hash: str
    """`source_hash` in the tested version."""


def vllm_folder() -> Path:
    """Folder of the installed package `vllm`. Raises ValueError where there is none."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError("vLLM is not installed")
    return Path(next(iter(spec.submodule_search_locations)))


def listed_symbols() -> list[TestedSymbol]:
    """All symbols of TESTED_SYMBOLS."""
    return [
        TestedSymbol(file, name, tested_hash)
        for file, hashes in TESTED_SYMBOLS.items()
        for name, tested_hash in hashes.items()
    ]


def changed_symbols(package: Path) -> dict[str, str]:
    """`file:symbol` -> "changed" or "gone", for the symbols of a folder `vllm` that are not as tested."""
    hashes = [(one, source_hash(package, one.file, one.name)) for one in listed_symbols()]
    return {
        f"{symbol.file}:{symbol.name}": "gone" if found is None else "changed"
        for symbol, found in hashes
        if found != symbol.tested_hash
    }


def write_symbols(package: Path) -> None:
    """Write the hashes of a folder `vllm` into tested_symbols.json. A symbol that it lacks keeps its hash."""
    hashes = {
        file: {name: source_hash(package, file, name) or before for name, before in named.items()}
        for file, named in TESTED_SYMBOLS.items()
    }
    JSON_FILE.write_text(json.dumps(hashes, indent=2) + "\n", "utf-8")


def source_hash(package: Path, file: str, name: str) -> str | None:
    """Hash a symbol's source, without its layout and without comments on lines of their own.

    Args:
        package: the folder `vllm`.
        file: relative to it.
        name: such as `Class.method`.

    Returns:
        12 hexadecimal digits, None where the file has no such symbol.
    """
    path = package / file
    if not path.is_file():
        return None
    source, tree = _parsed(path)
    node: ast.AST = tree
    for part in name.split("."):
        nodes = [child for child in _definitions(node) if getattr(child, "name", None) == part]
        if not nodes:
            return None
        node = nodes[-1]
    lines = (ast.get_source_segment(source, node) or "").splitlines()
    code = [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
    return hashlib.sha256("\n".join(code).encode()).hexdigest()[:12]


@cache
def _parsed(path: Path) -> tuple[str, ast.Module]:
    source = path.read_text("utf-8")
    return source, ast.parse(source)


def _definitions(node: ast.AST) -> Iterator[ast.AST]:
    """The classes and functions that are defined right in a module or class, also under `if` and `try`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield child
        elif isinstance(child, ast.If | ast.Try | ast.ExceptHandler):
            yield from _definitions(child)
