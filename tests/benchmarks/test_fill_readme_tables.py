"""Tables of the page are filled in from their files, and the text around them stays."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import fill_readme_tables

PAGE = "# Title\n\n<!-- cost table -->\n\nold\n\n<!-- / -->\n\nText.\n"


def test_a_table_is_filled_in_and_what_stands_around_it_stays(tmp_path):
    (tmp_path / "cost.json").write_text(json.dumps({"table": ["| a |", "| --- |"]}))
    assert fill_readme_tables.stale(PAGE, tmp_path) == ["cost table"]
    page = fill_readme_tables.filled(PAGE, tmp_path)
    assert page == "# Title\n\n<!-- cost table -->\n\n| a |\n| --- |\n\n<!-- / -->\n\nText.\n"
    assert fill_readme_tables.filled(page, tmp_path) == page
    assert not fill_readme_tables.stale(page, tmp_path)


def test_a_path_goes_through_lists():
    assert fill_readme_tables.lines_at({"decodings": [{"table": ["x"]}]}, "decodings.0.table") == [
        "x"
    ]


def test_the_committed_page_agrees_with_the_results():
    folder = Path(fill_readme_tables.__file__).parent
    assert not fill_readme_tables.stale((folder / "README.md").read_text(), folder / "results")
