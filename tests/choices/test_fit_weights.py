"""One user's weights: simulated users are found again, and what the command reads, says and refuses."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
import subprocess
import sys

import pytest
import tiny
import torch
from fit_runs import fit_runner, write_lines

from pad_vllm import opened_base
from pad_vllm.adapter.adapter_folder import load_adapter
from pad_vllm.adapter.manifest import read_config
from pad_vllm.choices.feature_sums import feature_sums
from pad_vllm.choices.fit_weights import fit_weights
from pad_vllm.cli import fit as fit_command
from pad_vllm.params import parse_guidance
from pad_vllm.persrm import PersRM
from pad_vllm.request_limits import RequestLimits
from pad_vllm.training.data.synthetic_preferences import draw_preferences
from pad_vllm.training.user_choices import CHOICE_FORM, fit_to_json, read_choices

SEEDS = range(12)
NAMES = ("helpful", "brief", "humor")


pytestmark = pytest.mark.usefixtures("one_thread")


def user(count, dimensions, seed, firm=3.0):
    """Differences [N, D] of noisy choices and the planted v [D]: log-odds have a spread of `firm`.

    Features have units of their own, and half of each is common, as the trunk makes it.
    """
    source = torch.Generator().manual_seed(seed)
    common = torch.randn(count, 1, generator=source)
    own = torch.randn(count, dimensions, generator=source)
    unit = torch.empty(dimensions).uniform_(8, 16, generator=source)
    x = (common + own) / 2**0.5 * unit
    w = draw_preferences(1, dimensions, source)[0]
    v = w * firm / (x @ w).std()
    against = torch.rand(count, generator=source) > (x @ v).sigmoid()
    return torch.where(against[:, None], -x, x), v.double()


@pytest.mark.parametrize("dimensions", [3, 5])
@pytest.mark.parametrize(("count", "least"), [(200, 0.95), (30, 0.8)])
def test_planted_weights_are_found_again(count, least, dimensions):
    cosines = []
    for seed in SEEDS:
        x, v = user(count, dimensions, seed)
        cosines.append(torch.cosine_similarity(fit_weights(x).w, v, dim=0))
    assert torch.stack(cosines).mean() >= least


def test_choices_not_seen_are_told_better_than_by_the_best_single_dimension():
    fitted, single, promised = [], [], []
    for seed in SEEDS:
        source = torch.Generator().manual_seed(seed)
        x = torch.randn(1100, 4, generator=source)
        v = torch.tensor([2.0, -2.0, 1.0, 1.0])
        x = torch.where((torch.rand(1100, generator=source) > (x @ v).sigmoid())[:, None], -x, x)
        given, unseen = x[:100], x[100:]
        found = fit_weights(given)
        fitted.append(float((unseen @ found.w.float() > 0).float().mean()))
        single.append(float((unseen > 0).float().mean(0).sub(0.5).abs().max() + 0.5))
        promised.append((found.cross_validated, found.baseline))
    predicted, baseline = torch.tensor(promised).mean(0).tolist()
    assert min(f - s for f, s in zip(fitted, single, strict=True)) > 0
    # What the fit says of itself from its own choices is what other choices show.
    assert predicted == pytest.approx(sum(fitted) / len(fitted), abs=0.03)
    assert baseline == pytest.approx(sum(single) / len(single), abs=0.03)
    assert predicted > baseline + 0.04


@pytest.mark.parametrize(("count", "firm"), [(30, 3.0), (100, 2.0)])
def test_intervals_hold_the_planted_weights_about_95_times_in_100(count, firm):
    held = []
    for seed in range(150):
        x, v = user(count, 4, 1000 + seed, firm)
        found = fit_weights(x)
        low, high = (found.interval * found.scale).unbind(-1)
        held.append(((low <= v) & (v <= high)).double())
    assert 0.90 <= torch.stack(held).mean() <= 0.99


def test_a_user_who_was_always_of_one_mind_gets_finite_weights():
    x = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    x[:, 0] = x[:, 0].abs() + 5.0
    found = fit_weights(x)
    assert found.w.isfinite().all()
    assert found.interval.isfinite().all()
    assert found.w[0] == 1.0
    assert (found.accuracy, found.cross_validated, found.baseline) == (1.0, 1.0, 1.0)
    assert found.excludes_zero[0]


def test_the_unit_of_a_feature_changes_the_weights_and_no_choice():
    x, _ = user(60, 3, 0)
    unit = torch.tensor([1.0, 1000.0, 0.01])
    one, other = fit_weights(x), fit_weights(x * unit)
    torch.testing.assert_close(
        one.w * one.scale, other.w * other.scale * unit.double(), rtol=1e-5, atol=1e-6
    )
    assert (one.accuracy, one.cross_validated) == (other.accuracy, other.cross_validated)


def test_a_stronger_prior_makes_the_choices_count_less():
    x, _ = user(20, 3, 0)
    assert (
        fit_weights(x, strength=100.0).scale
        < fit_weights(x).scale
        < fit_weights(x, strength=0.01).scale
    )


def test_a_dimension_that_never_differs_gets_no_weight_and_no_certainty():
    x, _ = user(30, 3, 0)
    x[:, 1] = 0.0
    found = fit_weights(x)
    assert found.w[1] == 0.0
    assert found.interval[1].tolist() == [-math.inf, math.inf]
    assert not found.excludes_zero[1]
    assert fit_to_json(found, NAMES)["dimensions"]["brief"]["interval"] == [None, None]


@pytest.mark.parametrize(
    ("differences", "strength", "message"),
    [
        (torch.ones(1, 2), 1.0, "1 choices; accepted: at least 2"),
        (torch.zeros(4, 2), 1.0, "same features as the rejected one"),
        (
            torch.tensor([[1.0, 0.0], [math.nan, 1.0]]),
            1.0,
            "features of choice 2 .1 in all. are NaN",
        ),
        (torch.tensor([[1.0, 2.0], [-1.0, -2.0]]), 1.0, "the 2 choices cancel out"),
        (torch.ones(3, 2), 0.0, "strength is 0; accepted: a finite number above 0"),
        (torch.ones(3, 2), math.nan, "strength is nan"),
    ],
)
def test_choices_that_say_nothing_are_refused(differences, strength, message):
    with pytest.raises(ValueError, match=message):
        fit_weights(differences, strength=strength)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_string_is_one_that_a_request_accepts(seed):
    x, _ = user(8, 3, seed)
    found = fit_weights(x)
    limits = RequestLimits(NAMES, beta=1.0, top_k=10, max_beta=10.0, max_top_k=100)
    given = parse_guidance({"pad_weights": found.pad_weights(NAMES)}, limits)
    assert given.weights == pytest.approx(found.w.tolist(), rel=0.06)
    assert max(map(abs, given.weights)) == 1.0


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """(base, adapter): a tiny random checkpoint and a random adapter on it."""
    base = tiny.checkpoint("llama", tmp_path_factory.mktemp("base") / "tiny")
    return base, tiny.write_adapter(base, base.parent / "adapter", fork_layer=2, std=0.1)


@pytest.fixture(scope="module")
def model(folders):
    return PersRM.from_adapter(tiny.model("llama"), load_adapter(folders[1]))


def test_feature_sums_are_those_of_one_sequence_after_the_other(model):
    source = torch.Generator().manual_seed(5)
    lengths = [(3, 9), (1, 1), (20, 4), (7, 30), (2, 0), (5, 16), (11, 2)]
    sequences = [
        tuple(torch.randint(3, 259, (n,), generator=source).tolist() for n in pair)
        for pair in lengths
    ]
    slow = torch.zeros(len(sequences), 3)
    with torch.no_grad():
        for number, (prompt, response) in enumerate(sequences):
            h_B, h_T = model.hidden_twice(torch.tensor([[*prompt, *response]]))
            for position, token in enumerate(response, start=len(prompt)):
                before = (0, position - 1)
                phi = model.features(h_B[before], h_T[before], torch.tensor([token]))
                slow[number] += phi[0]
    fast = feature_sums(model, sequences, batch_size=3)
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-3)
    assert slow.abs().max() > 1.0


def test_a_response_to_nothing_is_refused(model):
    with pytest.raises(ValueError, match="sequence 1 has an empty prompt"):
        feature_sums(model, [([3], [4]), ([], [5])])


GOOD = {"prompt": "Hi", "chosen": "Hello!", "rejected": "Go away."}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 3: Expecting property name"),
        ("[]", r"line 3: \[\] is no JSON object"),
        (json.dumps({**GOOD, "chosen": ""}), "line 3: chosen is '', not an answer's text"),
        (json.dumps({"prompt": "x", "chosen": "y"}), "line 3: rejected is missing"),
        (json.dumps({**GOOD, "rejected": "Hello!"}), "line 3: .* same text"),
        (json.dumps({**GOOD, "prompt": 3}), "line 3: prompt is 3, neither text nor a list"),
        (json.dumps({**GOOD, "prompt": []}), "line 3: prompt is"),
        (
            json.dumps({**GOOD, "prompt": [{"role": "assistant", "content": "x"}]}),
            "line 3: .* ends with a turn of the user. Accepted: .* Correct or drop the line",
        ),
    ],
)
def test_a_malformed_line_is_named_by_its_number(tmp_path, line, message):
    file = tmp_path / "choices.jsonl"
    file.write_text(f"{json.dumps(GOOD)}\n\n{line}\n")
    with pytest.raises(ValueError, match=message):
        read_choices(file)


def test_prompts_are_text_or_messages_and_strange_line_breaks_belong_to_the_text(tmp_path):
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "Hi"}]
    odd = {**GOOD, "prompt": messages, "chosen": "one\u2028two", "when": "yesterday"}
    file = tmp_path / "choices.jsonl"
    lines = [json.dumps(GOOD), json.dumps(odd, ensure_ascii=False)]
    file.write_text("\n".join(lines), "utf-8")
    first, second = read_choices(file)
    assert first.prompt.messages() == [{"role": "user", "content": "Hi"}]
    assert (second.prompt.messages(), second.chosen, second.line_number) == (
        messages,
        "one\u2028two",
        2,
    )


@pytest.fixture
def run(folders, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    return fit_runner(*folders)


def test_the_command_prints_a_table_and_the_string_and_writes_both(run, tmp_path):
    choices = [
        {"prompt": f"question {n}", "chosen": "ab" * (n % 5 + 1), "rejected": "zyx" * (n % 3 + 2)}
        for n in range(8)
    ]
    out = tmp_path / "fit.json"
    result = run(write_lines(tmp_path / "choices.jsonl", choices), "--out", out)
    assert result.exit_code == 0, result.output
    written = json.loads(out.read_text())
    assert f'pad_weights: "{written["pad_weights"]}"' == result.stdout.splitlines()[-1]
    assert all(name in result.stdout for name in ("95% interval", *NAMES, "8 choices"))
    assert list(written["dimensions"]) == list(NAMES)
    assert written["choices"] == 8
    assert "pairs that carry more information" in result.stderr


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ([GOOD], "1 choices; accepted: at least 2"),
        ([GOOD, {**GOOD, "chosen": "a" * 600}], "line 2: the prompt and an answer have"),
    ],
)
def test_the_command_refuses_in_one_message(run, tmp_path, choices, message):
    result = run(write_lines(tmp_path / "choices.jsonl", choices))
    assert result.exit_code == 1
    assert message in result.stderr


def between(better, other, **more):
    return {**GOOD, "chosen_weights": better, "rejected_weights": other, **more}


def test_choices_between_guided_answers_are_fitted_without_a_base(run, tmp_path, monkeypatch):
    monkeypatch.setattr(fit_command, "_load_model", None)
    choices = [
        between("brief=1", "humor=1"),
        between(["brief=1", "helpful=0.5"], None),
        between({"helpful": 0.5}, {"humor": 1}),
        between("brief=2", "helpful=1"),
    ]
    out = tmp_path / "fit.json"
    result = run(write_lines(tmp_path / "choices.jsonl", choices), "--out", out)
    assert (result.exit_code, result.stderr) == (0, "")
    found = {name: one["w"] for name, one in json.loads(out.read_text())["dimensions"].items()}
    assert found["humor"] < 0 < found["brief"]
    x = torch.tensor([[0.0, 1, -1], [0.5, 1, 0], [0.5, 0, -1], [-1, 2, 0]])
    assert list(found.values()) == pytest.approx(fit_weights(x).w.tolist())


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{**GOOD, "chosen_weights": "brief=1"}], "line 1: chosen_weights is there alone"),
        ([between("brief", "humor=1")], "line 1: pad_weights is 'brief'"),
        ([between("brief=1", "warm=1")] * 2, "line 1: .*'warm'"),
        ([between("brief=1", None), GOOD], "line 1 says what guided its answers and line 2 does"),
    ],
)
def test_choices_between_guided_answers_that_are_none_are_refused(run, tmp_path, lines, message):
    result = run(write_lines(tmp_path / "choices.jsonl", lines))
    assert result.exit_code == 1
    assert re.search(message, " ".join(result.stderr.split()))


def test_an_adapter_of_another_shape_is_refused(run, folders, tmp_path, monkeypatch):
    other = tiny.checkpoint("gemma3", tmp_path / "gemma3")
    monkeypatch.setattr(opened_base, "resolve_base", lambda base: str(other))
    result = run(write_lines(tmp_path / "choices.jsonl", [GOOD, GOOD]))
    assert result.exit_code == 1
    assert "the adapter was trained on" in result.stderr


def test_other_weights_of_the_same_shape_are_warned_of(run, tmp_path, monkeypatch):
    other = tiny.checkpoint("llama", tmp_path / "other")
    tiny.model("llama", seed=1).save_pretrained(other)
    monkeypatch.setattr(opened_base, "resolve_base", lambda base: str(other))
    result = run(write_lines(tmp_path / "choices.jsonl", [GOOD, {**GOOD, "chosen": "Welcome!"}]))
    assert result.exit_code == 0, result.stderr
    assert "Warning: the adapter was trained on" in result.stderr


def test_the_form_of_a_choice_is_written_once():
    assert fit_command.CHOICE_FORM is CHOICE_FORM


@pytest.mark.parametrize("module", ["pad_vllm.cli.fit", "pad_vllm.training.user_choices"])
def test_the_command_line_can_import_it_without_torch(module):
    code = f"import sys, {module}; print([m for m in ('torch', 'vllm') if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The base's twin without a chat template."""
    folder = tiny.checkpoint("llama", tmp_path_factory.mktemp("plain") / "tiny")
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = None
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_base_without_a_chat_template_is_fitted_with_the_adapters_or_a_given_one(
    run, plain, folders, tmp_path, monkeypatch
):
    monkeypatch.setattr(opened_base, "resolve_base", lambda base: str(plain))
    file = write_lines(tmp_path / "choices.jsonl", [GOOD, {**GOOD, "chosen": "Welcome!"}])
    result = run(file)
    assert result.exit_code == 1
    assert "has no chat template" in result.stderr
    assert "--chat-template FILE" in result.stderr
    given = run(file, "--chat-template", "{{ messages[0]['content'] }}>")
    assert given.exit_code == 0, given.stderr
    trained = shutil.copytree(folders[1], tmp_path / "trained")
    config = read_config(trained)
    config = dataclasses.replace(config, chat_template="{{ messages[0]['content'] }}>")
    (trained / "pad_config.json").write_text(config.to_json())
    monkeypatch.setattr(fit_command, "resolve_adapter", lambda adapter: str(trained))
    assert run(file).stdout == given.stdout


def test_a_prompt_that_the_template_does_not_take_is_named_by_its_line(run, tmp_path):
    template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{{ messages[0]['content'] }}>"
    )
    with_system = {
        **GOOD,
        "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}],
    }
    file = write_lines(tmp_path / "choices.jsonl", [GOOD, with_system])
    result = run(file, "--chat-template", template)
    assert result.exit_code == 1
    assert "line 2: the chat template refuses the prompt (no system)" in result.stderr


def test_text_that_is_no_unicode_is_named_by_its_line(tmp_path):
    file = tmp_path / "choices.jsonl"
    for bad in ({"chosen": "\ud800"}, {"prompt": "\ud800"}):
        file.write_text(json.dumps(GOOD) + "\n" + json.dumps({**GOOD, **bad}))
        with pytest.raises(ValueError, match="line 2: .* lone surrogate"):
            read_choices(file)
