"""The dose: of all strengths the one that goes furthest at no more than asking costs."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tiny
import torch
from typer.testing import CliRunner

from pad_vllm.adapter.adapter_folder import load_adapter, save_adapter
from pad_vllm.cli.app import app
from pad_vllm.cli.dose import _head_points
from pad_vllm.evaluation.win_rates_and_fluency import AnswerLoss
from pad_vllm.steering import answer_file, dimension_judges, dose
from pad_vllm.steering.guided_answers import DrawnAnswer

LAYERS = tiny.COMMON["num_hidden_layers"]


def row(name, kind, beta, min_p, way, perplexity, **more):
    costs = {"repeated": 0.02, "plain_repeated": 0.02, "derailed": 0.0}
    point = {"dimension": name, "kind": kind, "beta": beta, "min_p": min_p}
    return {**point, "way": [way, 0.0, 1.0], "perplexity": perplexity, **costs, **more}


TOLD = row("kind", dose.TOLD, 0.0, 0.0, 1.0, 1.5)


@pytest.mark.parametrize(
    ("costs", "expected"),
    [
        ({}, True),
        ({"perplexity": 1.51}, False),
        ({"repeated": 0.03}, True),
        ({"repeated": 0.031}, False),
        ({"derailed": 0.1}, True),
        ({"derailed": 0.2}, False),
    ],
)
def test_a_strength_fits_that_costs_no_more_than_asking(costs, expected):
    assert dose.fits({**row("kind", dose.HEADS, 1, 0.1, 0.5, 1.5), **costs}, TOLD, 10) is expected


def test_one_more_derailed_start_is_chance_whatever_the_number_of_prompts():
    for prompts in range(2, 61):
        for derailed, expected in ((1, True), (2, False)):
            costs = {"derailed": round(derailed / prompts, 4)}  # as rows have it
            guided = row("kind", dose.HEADS, 1, 0.1, 0.5, 1.5, **costs)
            assert dose.fits(guided, TOLD, prompts) is expected


def test_each_dimension_gets_its_own_strength_and_all_get_one_guard():
    rows = [TOLD]
    ways = {
        ("kind", 0.15): {0.8: (0.2, True), 1.6: (0.3, True), 2.4: (0.9, False)},
        ("curt", 0.15): {0.8: (0.4, True), 1.6: (0.3, True), 2.4: (0.2, False)},
        ("kind", 0.05): {0.8: (0.4, True), 1.6: (0.6, True), 2.4: (0.9, True)},
        ("curt", 0.05): {0.8: (0.4, False), 1.6: (0.3, False), 2.4: (0.2, False)},
    }
    for (name, min_p), by_beta in ways.items():
        for beta, (way, fits) in by_beta.items():
            rows.append(row(name, dose.HEADS, beta, min_p, way, 1.1, fits=fits))
    rows.append(row("kind", dose.PREFIX, 0.7, 0.0, 0.6, 1.1, fits=True))
    rows.append(row("kind", dose.PREFIX, 1.1, 0.0, 0.8, 1.1, fits=True))
    chosen = dose.choose_dose(rows)
    # Under 0.05 only one of the two fits, and yet that one goes further than both under 0.15.
    assert chosen == dose.Dose(0.05, {"kind": 2.4, "curt": 0.8}, {"kind": 1.1})
    table = dose.dose_table(rows, chosen)
    assert len(table) == 2 + len(rows)
    assert [line for line in table if line.endswith("| yes |")] == [table[11], table[12], table[16]]


def test_an_adapter_with_a_dose_has_scaled_heads_and_strengths_of_prefixes(tmp_path):
    base = tiny.checkpoint("llama", tmp_path / "base")
    names = ("kind", "curt")
    folder = tiny.write_adapter(
        base, tmp_path / "a", fork_layer=LAYERS, std=0.1, dimensions=names, prefixes=("kind",)
    )
    before = load_adapter(folder)
    chosen = dose.Dose(0.05, {"kind": 2 * before.config.beta}, {"kind": 1.1})
    save_adapter(chosen.applied_to(before), tmp_path / "b", "x")
    after = load_adapter(tmp_path / "b")
    assert torch.allclose(after.head_B[0], 2 * before.head_B[0], atol=1e-2)
    assert torch.equal(after.head_B[1], before.head_B[1])
    assert (after.config.min_p, after.config.beta) == (0.05, before.config.beta)
    assert after.config.prefixes.betas == {"kind": 1.1}
    assert before.config.prefixes.betas == {}


def test_the_command_writes_an_adapter_and_a_card_and_draws_once(tmp_path, monkeypatch):
    base = tiny.checkpoint("llama", tmp_path / "base")
    plain = tiny.write_adapter(
        base,
        tmp_path / "plain",
        fork_layer=LAYERS,
        std=0.1,
        dimensions=("kind",),
        prefixes=("kind",),
    )
    loaded = load_adapter(plain)
    taught = {"dimension": "kind", "sentences": ["Be kind."], "variance": 0.1, "spread": 0.3}
    config = dataclasses.replace(loaded.config, training={"taught": [taught]})
    save_adapter(dataclasses.replace(loaded, config=config), tmp_path / "taught", "x")
    drawn = []

    def answers(batch):
        drawn.append(batch)
        return [[[DrawnAnswer(c.name, (5, 6))] * len(batch.prompts) for c in batch.conditions]]

    def losses(self, prompts, answers, drawn_with, instruction=""):
        # Asking costs 4 nats; heads cost twice their strength, and prefixes get further than heads.
        kind, _, beta = (answers[0].text + " 0 0").split(" ")[:3]
        strength = {"told": 1.0, "heads": float(beta), "prefix": 2 * float(beta)}.get(kind, 0.0)
        cost = {"told": 4.0, "heads": 2 * strength, "prefix": strength}.get(kind, 0.0)
        return [AnswerLoss(10 + cost - (strength if instruction else 0), 2)] * len(answers)

    monkeypatch.setattr(answer_file, "draw_answers", answers)
    monkeypatch.setattr(dimension_judges.DimensionJudges, "losses", losses)
    argv = ["dose", str(tmp_path / "taught"), "--base", str(base), "--out", str(tmp_path / "out")]
    argv += ["--limit", "3", "--beta", "1", "--beta", "2", "--beta", "3", "--min-p", "0.1"]
    result = CliRunner().invoke(app, argv)
    assert result.exit_code == 0, result.output
    dosed = load_adapter(tmp_path / "out")
    assert dosed.config.prefixes.betas == {"kind": 1.6}
    np.testing.assert_allclose(
        dosed.head_B[0], loaded.head_B[0] * 2 / loaded.config.beta, atol=2e-2
    )
    card = (tmp_path / "out" / "README.md").read_text()
    assert "## Dose" in card
    assert "| kind | heads | 2 | 0.1 | 2.00" in card
    assert len(drawn[0].prompts) == 3
    assert CliRunner().invoke(app, argv).exit_code == 0
    assert len(drawn) == 1


def test_a_strength_is_tried_under_every_guard_or_under_its_own():
    points = _head_points(["0.8", "1.8:0.15"], [0.05, 0.03])
    assert points == [(0.8, 0.05), (0.8, 0.03), (1.8, 0.15)]


@pytest.mark.parametrize("text", ["some", "0.8:", "0.8:2", "-1", "nan", "0.8:0.1:3"])
def test_what_is_no_strength_is_refused(text):
    with pytest.raises(ValueError, match=r"BETA or BETA:MIN_P is accepted"):
        _head_points([text], [0.05])


def test_an_adapter_without_instructions_is_refused(tmp_path):
    base = tiny.checkpoint("llama", tmp_path / "base")
    folder = tiny.write_adapter(base, tmp_path / "a", fork_layer=2, std=0.1, dimensions=("kind",))
    argv = ["dose", str(folder), "--base", str(base), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, argv)
    assert result.exit_code == 1
    assert "trained from an instruction" in result.output
