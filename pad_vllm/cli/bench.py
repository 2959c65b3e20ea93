"""`pad-vllm bench`: the front door of a checkout's benchmarks/, one script a measurement.

In: a script's name and its own arguments. Out: what the script prints, and its exit code. Knows no benchmark:
whatever lies there and says in its first line what it measures is one.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from pad_vllm.cli.error_reporting import report_errors

FOLDER = Path(__file__).parents[2] / "benchmarks"


def bench(
    context: typer.Context,
    name: Annotated[
        str | None, typer.Argument(help="What to measure; without it all are listed.")
    ] = None,
) -> None:
    """Run a benchmark of the repository with the arguments behind its name; `pad-vllm bench NAME --help`."""
    with report_errors():
        scripts = _scripts()
        if name is not None and name not in scripts:
            raise ValueError(f"there is no benchmark {name}; there are {', '.join(scripts)}")
    if name is None:
        for known, line in scripts.items():
            typer.echo(f"{known:<12} {line}")
        return
    raise typer.Exit(subprocess.call([sys.executable, FOLDER / f"{name}.py", *context.args]))


def _scripts() -> dict[str, str]:
    """Name -> the first line of what it says of itself; a module that runs nothing is no benchmark."""
    if not FOLDER.is_dir():
        raise ValueError(
            f"{FOLDER} does not exist: benchmarks come with the repository and not with the package. "
            "Clone it, and run this from there"
        )
    found = {}
    for path in sorted(FOLDER.glob("*.py")):
        text = path.read_text()
        if "__main__" in text:
            found[path.stem] = (ast.get_docstring(ast.parse(text)) or "").split("\n")[0]
    return found
