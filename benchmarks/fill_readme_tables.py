"""Fills the tables of results into benchmarks/README.md, so that its numbers are those of the files.

    python -m benchmarks.fill_readme_tables            (`--check` lists what differs and changes nothing)

A table stands between two comments, `<!-- NAME PATH -->` and `<!-- / -->`: lines of Markdown in
results/NAME.json, at PATH ("table", or "decodings.0.table"). Text around them is written by hand.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
_TABLE = re.compile(
    r"(<!-- (?P<name>\S+) (?P<path>\S+) -->\n)(?P<lines>.*?)(<!-- / -->)", re.DOTALL
)


def lines_at(result: Any, path: str) -> list[str]:
    """What lies at a.0.b in a result."""
    for key in path.split("."):
        result = result[int(key)] if key.isdigit() else result[key]
    return result


def filled(page: str, results: Path) -> str:
    """The page with every marked table as its file has it."""

    def table(match: re.Match[str]) -> str:
        result = json.loads((results / f"{match['name']}.json").read_text())
        lines = "\n".join(lines_at(result, match["path"]))
        return f"{match[1]}\n{lines}\n\n{match[5]}"

    return _TABLE.sub(table, page)


def stale(page: str, results: Path) -> list[str]:
    """Names of the tables that differ from their files."""
    before, after = (
        {(match["name"], match["path"]): match["lines"] for match in _TABLE.finditer(text)}
        for text in (page, filled(page, results))
    )
    return [" ".join(key) for key, lines in after.items() if before[key] != lines]


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--page", type=Path, default=HERE / "README.md")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    page = args.page.read_text()
    differing = stale(page, args.results)
    if args.check and differing:
        raise SystemExit(f"{args.page} differs from its results: {', '.join(differing)}")
    args.page.write_text(filled(page, args.results))


if __name__ == "__main__":
    main()
