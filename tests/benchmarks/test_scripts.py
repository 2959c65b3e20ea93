"""Every script says in a line what it measures, and has a row in benchmarks/README.md."""

from __future__ import annotations

import ast
import re
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MAINTENANCE = {"evidence.py", "fill_readme_tables.py"}  # of the results, which measure nothing


def scripts():
    """Path below benchmarks/ -> text, of what can be run."""
    files = {path: path.read_text() for path in BENCHMARKS.glob("**/*.py")}
    return {
        str(path.relative_to(BENCHMARKS)): text
        for path, text in files.items()
        if "__main__" in text
    }


def test_every_script_says_in_a_line_what_it_measures_and_how_it_is_run():
    for path, text in scripts().items():
        first, _, others = ast.get_docstring(ast.parse(text)).partition("\n")
        assert first.endswith((".", "?")), path
        module = path.removesuffix(".py").replace("/", ".")
        assert f"python -m benchmarks.{module}" in others, path


def test_the_readme_lists_every_script_and_no_other():
    readme = (BENCHMARKS / "README.md").read_text()
    listed = re.findall(r"`(\w+/\w+\.py)`", readme[: readme.index("## The paper's claims")])
    assert set(listed) - {"paper/transformers_loops.py"} == set(scripts()) - MAINTENANCE
