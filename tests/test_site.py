"""The site: pages cut from one file, links between them, the support matrix, charts, the page of commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer

from docs.hooks import charts, results_tables, support_features, support_matrix
from docs.hooks.command_page import command_page
from docs.hooks.cut_pages import anchor, cut_pages, page_groups
from docs.hooks.repository_links import rewritten
from docs.hooks.results_tables import Comparison, comparison, setting_table
from docs.hooks.support_features import COLUMNS, FORK, HEADS, RAY, RESIDENT, Feature
from pad_vllm.cli.app import app
from pad_vllm.serving.start.refused_features import REFUSED_BY_ALL, REFUSED_BY_ENGINE

ROOT = Path(__file__).parents[1]
FILE = """# All

About it.

## First

Text.

## Second

### Inner one

More.

### Inner two

![x](a.png)
"""
FEATURES = [feature for rows in support_features.GROUPS.values() for feature in rows]


def test_a_file_is_cut_at_its_headings_and_nothing_of_its_text_is_lost():
    pages = cut_pages(FILE)
    assert [(page.name, page.group) for page in pages] == [
        ("about", ""),
        ("first", ""),
        ("inner-one", "Second"),
        ("inner-two", "Second"),
    ]
    assert [title for title, _ in page_groups(pages)][1:] == ["First", "Second"]
    whole = (ROOT / "benchmarks/README.md").read_text("utf-8")
    kept = "".join(page.text for page in cut_pages(whole))
    lines = [line for line in whole.splitlines() if line and not line.startswith("#")]
    assert all(line in kept for line in lines)


def test_anchors_are_those_of_github():
    assert anchor("The paper's names, and three of one's own") == (
        "the-papers-names-and-three-of-ones-own"
    )
    assert anchor("`shared`, the fork inside the served model") == (
        "shared-the-fork-inside-the-served-model"
    )


@pytest.mark.parametrize(
    ("origin", "page", "link", "expected"),
    [
        ("docs/a.md", "a.md", "../X.md#part", "x/part.md"),
        ("docs/a.md", "a.md", "../X.md", "x/index.md"),
        ("X.md", "x/part.md", "#other", "other.md"),
        ("X.md", "x/part.md", "docs/a.md#here", "../a.md#here"),
        ("docs/a.md", "a.md", "https://example.org/X.md", "https://example.org/X.md"),
        ("docs/a.md", "a.md", "nowhere.md", "nowhere.md"),
    ],
)
def test_links_lead_to_the_page_that_has_the_text(origin, page, link, expected):
    places = {"X.md": "x/index.md", "X.md#part": "x/part.md", "X.md#other": "x/other.md"}
    places["docs/a.md"] = "a.md"
    text = rewritten(f"[name]({link})", origin=origin, page=page, places=places)
    assert text == f"[name]({expected})"


def test_links_in_code_stay():
    code = "```text\n[name](X.md)\n```"
    assert rewritten(code, origin="a.md", page="a.md", places={"X.md": "x.md"}) == code


def test_every_feature_that_is_called_tested_names_a_test_that_exists():
    for feature in FEATURES:
        assert bool(feature.tested) == bool(feature.test)
        assert not feature.test or (ROOT / "tests/end_to_end" / feature.test).is_file()
        assert set(feature.tested) | set(feature.allowed) | set(feature.without) <= set(COLUMNS)


@pytest.mark.parametrize("feature", FEATURES, ids=lambda feature: feature.name)
def test_nothing_is_called_tested_or_allowed_that_is_refused(feature):
    for column, runners in feature.tested.items():
        for runner in runners:
            assert not support_matrix.refusal(feature, column, runner)
    for column in feature.allowed:
        refused = [support_matrix.refusal(feature, column, runner) for runner in ("V1", "V2")]
        assert not all(refused)


def test_refusals_are_those_of_the_code():
    by_name = {feature.name: feature for feature in FEATURES}
    lora, stages = by_name["`--enable-lora`"], by_name["pipeline parallelism on one machine"]
    assert support_matrix.cell(lora, HEADS) == "**tested**"
    assert "does not fork a model with --enable-lora" in support_matrix.refusal(lora, FORK, "V2")
    assert "pipeline parallelism yet" in support_matrix.refusal(stages, RESIDENT, "V2")
    drafts = by_name["drafts by `ngram`"]
    assert support_matrix.cell(drafts, HEADS) == "V2 **tested**, V1 refused"
    assert support_matrix.cell(by_name["tool calls"], RESIDENT) == "refused"
    assert "tools is " in support_matrix.refusal(by_name["tool calls"], RAY, "V2")
    assert support_matrix.cell(Feature("new", {}), HEADS) == "untested"


def test_every_refusal_by_name_is_listed():
    listed = support_matrix.refused_by_name()
    for feature in (*REFUSED_BY_ALL, *REFUSED_BY_ENGINE["shared"], *REFUSED_BY_ENGINE["ray"]):
        assert f"| {feature.name} | {feature.way_out} |" in listed


def test_both_engines_with_a_reward_model_of_their_own_refuse_the_same():
    assert REFUSED_BY_ENGINE["resident"] == REFUSED_BY_ENGINE["ray"]  # one table shows both


@pytest.mark.parametrize("name", charts.CHARTS)
def test_a_chart_shows_the_points_of_the_results(name):
    svg = (ROOT / "docs/pictures" / f"chart-{name}.svg").read_text("utf-8")
    lines = json.loads(json.dumps(charts.CHARTS[name]().lines))
    assert charts.points_in(svg) == lines, "run: python -m docs.hooks.charts"
    assert all(lines.values())
    assert "currentColor" in svg
    assert "#123456" not in svg


def test_a_mean_leaves_out_judges_that_taught(tmp_path, monkeypatch):
    wins = {"warm": {"words": [1.0], "meaning": [0.8], "length": [0.6], "teacher": [1.0]}}
    rows = [
        {"name": name, "wins": wins, "perplexity": 1.5, "repeated_more": 0.0}
        for name in ("told warm", "PAD +warm")
    ]
    result = {"taught": {"warm": ["words"]}, "decodings": [{"records": rows}]}
    (tmp_path / "r.json").write_text(json.dumps(result))
    monkeypatch.setattr(results_tables, "RESULTS", tmp_path)
    for way in comparison(Comparison("r", "base", "PAD +"))["warm"]:
        assert way == (pytest.approx(0.7), 1.5, 0.0)


def test_a_table_of_one_setting_has_its_values_and_the_default():
    rows = setting_table("beta").splitlines()
    assert rows[0] == "| beta | wins | positive | simple | friendly | brief | perplexity |"
    assert rows[3] == "| 0.8, default | 72 (63 to 79) | 78 | 73 | 70 | 65 | 1.18x |"
    assert len(rows) == 5


def test_the_page_of_commands_has_every_command_and_option():
    page = command_page(app)
    assert page.count("\n## `pad-vllm ") == len(typer.main.get_command(app).commands)
    assert "| `--max-tokens` | Longest response, in tokens. | `128` |" in page
    assert "--steering" not in page  # a hidden one
