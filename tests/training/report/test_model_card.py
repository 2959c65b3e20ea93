"""The model card says what the run recorded and nothing else; the picture of a run is there to be seen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pad_vllm.adapter.backbone.backbone import Backbone
from pad_vllm.adapter.manifest import FORMAT_1, FORMAT_3, FORMAT_4, AdapterConfig, PrefixConfig
from pad_vllm.training.report.model_card import model_card_text
from pad_vllm.training.report.training_curves import plot_training_curves

TRAINING = {
    "command": "pad-vllm train base --data samples.jsonl",
    "revision": "abc1234",
    "versions": {"pad_vllm": "0.2.0", "torch": "2.13.0"},
    "recipe": {"b": 0.1, "lora_lr": 2e-4, "least_margin": 0.3},
    "seed": 0,
    "data": {
        "sources": [
            {
                "name": "samples",
                "read": 1500,
                "malformed": 2,
                "duplicate": 3,
                "long": 4,
                "cut": 10,
                "uninformative": 1,
                "groups": 1480,
            },
            {"name": "a|b", "read": 7, "groups": 5},
        ],
        "prompts": {"train": 1200, "validation": 130, "held_out": 150},
        "described": "Four samples a prompt.",
    },
    "held_out": [
        {
            "preference": "positive",
            "distance": 0.0,
            "trained": {"pairs": 0.78, "clear": 0.81},
            "untrained": {"pairs": 0.5, "clear": 0.49},
            "prompted": {"pairs": 0.6, "clear": 0.61},
            "count": 900,
        },
        {"preference": "mixes", "distance": 41.6, "trained": {"pairs": 0.7}, "count": 1900},
    ],
    "seconds": {"cache": 100, "stage1": 1300.4},
    "peak_memory_gib": 5.12,
}
STEERING = {
    "command": "pad-vllm evaluate mine --steering prompts.txt",
    "prompts": 50,
    "decodings": [
        {"temperature": 0.0, "tokens": 100, "table": ["| condition | beta |", "| --- | ---: |"]},
        {"temperature": 0.7, "tokens": 100, "table": ["| condition | beta |", "| +kind | 0.4 |"]},
    ],
}


def config(training):
    return AdapterConfig(
        format_version=FORMAT_1,
        backbone=Backbone("SmolLM2-135M-Instruct", ("LlamaForCausalLM",), 576, 30, 49152, None),
        fork_layer=22,
        dimensions=("positive", "brief"),
        head_rank=16,
        beta=1.0,
        top_k=20,
        training=training,
    )


def test_everything_a_run_recorded_is_on_the_card():
    text = model_card_text(config(TRAINING), None)
    for said in (
        "# PAD adapter for SmolLM2-135M-Instruct",
        "positive, brief. LoRA from layer 22 of 30; heads of rank 16; default beta 1, top_k 20.",
        "    pad-vllm train base --data samples.jsonl",
        "Revision abc1234. Seed 0. Versions: pad_vllm 0.2.0, torch 2.13.0",
        "b 0.1, lora_lr 0.0002, least_margin 0.3",
        "Four samples a prompt.",
        "1,200 train, 130 validation, 150 held out",
        "| source | read | malformed | duplicate | long | cut | uninformative | groups |",
        "| samples | 1,500 | 2 | 3 | 4 | 10 | 1 | 1,480 |",
        "| a\\|b | 7 |  |  |  |  |  | 5 |",
        "| positive | 0° | 50.0% | 60.0% | 78.0% | 49.0% | 61.0% | 81.0% | 900 |",
        "| mixes | 42° |  |  | 70.0% |  |  |  | 1,900 |",
        "further apart than 0.3 of the dimension's spread",
        "cache 100 s, stage1 1,300 s",
        "5.1 GiB",
    ):
        assert said in text
    assert "## Steering" not in text


def test_every_table_has_as_many_cells_in_each_row():
    rows = [
        line
        for line in model_card_text(config(TRAINING), None).splitlines()
        if line.startswith("|")
    ]
    cells = [row.replace("\\|", "").count("|") for row in rows]
    assert cells == [9] * 4 + [10] * 4


def test_steering_comes_with_its_command_and_a_table_for_every_decoding():
    text = model_card_text(config(TRAINING), STEERING)
    assert "    pad-vllm evaluate mine --steering prompts.txt\n" in text
    assert "50 prompts." in text
    assert "Temperature 0, 100 tokens:\n\n| condition | beta |" in text
    assert text.endswith("| +kind | 0.4 |\n")


def test_learned_prefixes_have_columns_of_their_own():
    columns = ("trained", "first", "heads", "constant", "variance", "spread")
    row = {"dimension": "kind", "sentences": ["Be kind."], **dict.fromkeys(columns, 0.5)}
    learned = {**row, "sentence": 0.12, "prefix": 0.88, "prefix_first": 0.9}
    prefixes = PrefixConfig(11, 32, {"kind": "0" * 64})
    made = replace(
        config({"taught": [learned]}), format_version=FORMAT_3, fork_layer=30, prefixes=prefixes
    )
    text = model_card_text(made, None)
    assert "Learned prefixes of 32 tokens, read from layer 11 up: kind." in text
    assert "| sentence | prefix | prefix first | variance |" in text
    assert "| 12.0% | 88.0% | 90.0% | 0.5 |" in text
    assert "prefix" not in model_card_text(config({"taught": [row]}), None)


def test_gated_heads_are_named_so():
    made = replace(config({}), format_version=FORMAT_4, gated=True, head_rank=128)
    assert "LoRA from layer 22 of 30; gated heads of rank 128;" in model_card_text(made, None)


def test_an_adapter_merged_of_two_has_the_sections_of_both():
    sentence = {
        "dimension": "kind",
        "sentences": ["Be kind."],
        **dict.fromkeys(("trained", "first", "heads", "constant", "variance", "spread"), 0.5),
    }
    scores = {"dimension": "brief", "critic": 0.4, "trained": 0.071, "constant": 0.06}
    parts = [
        {"command": "one", "taught": [sentence], "dimensions": {"kind": 1.0}},
        {"command": "two", "credited": [scores], "dimensions": {"brief": 0.7, "kind": 0.7}},
        {"command": "three", "dimensions": {"kind": 0.0}},
    ]
    text = model_card_text(config({"parts": parts}), None)
    for said in (
        "## kind\n\n### Training\n\n    one",
        "## brief (times 0.7), kind (times 0.7)\n\n### Training\n\n    two",
        "## kind (learned prefix)\n\n### Training\n\n    three",
        "### Trained from instructions",
        "- kind: Be kind.",
        "| brief | 40.0% | 0.071 | 0.060 |",
    ):
        assert said in text


def test_a_run_that_recorded_nothing_has_a_card_of_title_and_summary():
    text = model_card_text(config({}), None)
    assert text.count("\n\n") == 1
    assert "##" not in text


@pytest.mark.parametrize("missing", list(TRAINING))
def test_every_key_may_be_missing(missing):
    text = model_card_text(config({k: v for k, v in TRAINING.items() if k != missing}), None)
    assert "None" not in text


def test_columns_that_no_row_has_are_left_out():
    training = {"held_out": [{"preference": "brief", "trained": {"pairs": 0.7}}]}
    text = model_card_text(config(training), None)
    assert "| preference | trained, all |\n| --- | ---: |\n| brief | 70.0% |" in text
    assert "angle" not in text
    assert "Clear" not in text
    assert "Prompted" not in text


def history(*, again=False):
    """Two stages of 200 and 100 steps; `again`: steps begin at 1 in the second, too."""
    source = np.random.default_rng(0)
    rows = []
    for stage, steps in ((1, range(1, 201)), (2, range(1, 101) if again else range(201, 301))):
        for step in steps:
            done = step + (200 if again and stage == 2 else 0)
            loss = 0.45 + 0.25 * np.exp(-done / 60) + source.normal(0, 0.05)
            rows.append({"stage": stage, "step": step, "loss": float(loss)})
            if done % 25 == 0:
                shares = {"positive": 0.62, "brief": 0.8, "simple": 0.74, "mixes": 0.7}
                rows[-1]["accuracy"] = {
                    name: 0.5 + (best - 0.5) * (1 - float(np.exp(-done / 80)))
                    for name, best in shares.items()
                }
    return rows


def pixels(path):
    from matplotlib.image import imread

    return imread(path)[..., :3]


@pytest.mark.parametrize("again", [False, True])
def test_the_picture_is_written_and_has_a_curve_of_every_colour(tmp_path, again):
    plot_training_curves(history(again=again), tmp_path / "curves.png")
    image = pixels(tmp_path / "curves.png")
    assert min(image.shape[:2]) > 500
    for colour in ("#0072B2", "#D55E00", "#009E73", "#CC79A7"):
        wanted = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        assert (np.abs(image - wanted).max(-1) < 0.02).sum() > 100


def test_steps_that_begin_again_are_drawn_where_the_first_stage_ended(tmp_path):
    for name, again in (("on", False), ("again", True)):
        plot_training_curves(history(again=again), tmp_path / name)
    assert np.array_equal(pixels(tmp_path / "on"), pixels(tmp_path / "again"))


@pytest.mark.parametrize(
    "rows",
    [
        [{"stage": 1, "step": 1, "loss": 0.6}],
        [{"stage": 1, "step": step, "loss": 0.6} for step in range(5)],
        [{"stage": 1, "step": 1, "accuracy": {"brief": 0.6}}],
        [{"stage": 1, "step": 1, "loss": 0.6, "accuracy": {f"d{i}": 0.6 for i in range(9)}}],
    ],
)
def test_short_and_odd_histories_are_drawn_too(tmp_path, rows):
    plot_training_curves(rows, tmp_path / "curves.png")
    assert pixels(tmp_path / "curves.png").std() > 0.01


def test_a_history_of_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="the history's 0 rows have neither loss nor accuracy"):
        plot_training_curves([], tmp_path / "curves.png")
