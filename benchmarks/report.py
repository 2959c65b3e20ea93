"""Puts the tables of results into the page people cite, so that its numbers are those of the files.

    python benchmarks/report.py                    (`--check` says what differs and changes nothing)

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
    for step in path.split("."):
        result = result[int(step)] if step.isdigit() else result[step]
    return result


def filled(page: str, results: Path) -> str:
    """The page with every marked table as its file has it."""

    def table(found: re.Match[str]) -> str:
        result = json.loads((results / f"{found['name']}.json").read_text())
        body = "\n".join(lines_at(result, found["path"]))
        return f"{found[1]}\n{body}\n\n{found[5]}"

    return _TABLE.sub(table, page)


def stale(page: str, results: Path) -> list[str]:
    """Names of the tables that differ from their files."""
    before, after = (
        {(m["name"], m["path"]): m["lines"] for m in _TABLE.finditer(text)}
        for text in (page, filled(page, results))
    )
    return [" ".join(key) for key, lines in after.items() if before[key] != lines]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--page", type=Path, default=HERE / "README.md")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    page = args.page.read_text()
    old = stale(page, args.results)
    if args.check and old:
        raise SystemExit(f"{args.page} differs from its results: {', '.join(old)}")
    args.page.write_text(filled(page, args.results))


if __name__ == "__main__":
    main()
