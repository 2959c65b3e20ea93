"""Every prompt is sampled once; one without room fails; a run continues where it was cut."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import typer
from typer.testing import CliRunner

from pad_vllm.adapter.backbone.weight_fingerprint import fingerprint
from pad_vllm.adapter.manifest import read_config
from pad_vllm.catalog.name_resolution import resolve_adapter
from pad_vllm.cli.sample_training_responses import sample as sample_command
from pad_vllm.cli.score import score as score_command
from pad_vllm.params import parse_guidance
from pad_vllm.request_limits import RequestLimits
from pad_vllm.text.conversation import Conversation, prompt_key
from pad_vllm.training.data import jsonl
from pad_vllm.training.data.drawn_answers import require_unguided
from pad_vllm.training.data.preference_record import PreferenceRecord, Response
from pad_vllm.training.sampling import guided_sampling
from pad_vllm.training.sampling.sample_responses import (
    failed_prompts_path,
    read_prompts,
    sample_responses,
)
from pad_vllm.training.sampling.score_responses import score_file
from pad_vllm.training.sampling.vllm_sampler import SamplingOptions

ROOMY = SamplingOptions(n=3, max_tokens=20, max_model_len=120)


class Echo:
    """An engine that answers with the prompt's last word, and i; blank and double where asked to."""

    def __init__(self, kill_after=99):
        self.batches = []
        self.kill_after = kill_after

    def get_tokenizer(self):
        tokenizer = tiny.tokenizer()
        system = (
            "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        )
        tokenizer.chat_template = system + tokenizer.chat_template
        return tokenizer

    def chat(self, messages, sampling_params, *, use_tqdm, chat_template=None):
        self.template = chat_template
        if len(self.batches) == self.kill_after:
            raise KeyboardInterrupt
        self.batches.append(messages)
        words = [m[-1]["content"].split()[-1] for m in messages]
        texts_of = {"blank": ["a", " ", ""], "same": ["b", "b", "b"]}
        texts = [texts_of.get(w, [f"{w} {i}" for i in range(sampling_params)]) for w in words]
        return [
            SimpleNamespace(
                outputs=[SimpleNamespace(text=t, token_ids=(i, 7)) for i, t in enumerate(ts)]
            )
            for ts in texts
        ]


def building(engine):
    return lambda base, sampling: (engine, sampling.n)


def build_echo(base, sampling):
    return Echo(), sampling.n


@pytest.fixture
def out(tmp_path):
    return tmp_path / "deeper" / "samples.jsonl"


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("one\ntwo\n\nis blank\nthe same\none\n" + "long " * 50 + "\nthree\n", "utf-8")
    return read_prompts(path)


def records(path):
    return list(jsonl.read_lines(path, PreferenceRecord.model_validate_json))


def test_every_prompt_gets_its_different_responses_with_their_tokens(prompts, out):
    counts = sample_responses("base", prompts, out, ROOMY, build=building(Echo()))

    assert (counts.sampled, counts.already_done, counts.failed) == (3, 0, 3)
    assert [r.prompt[0].content for r in records(out)] == ["one", "two", "three"]
    assert [r.text for r in records(out)[0].responses] == ["one 0", "one 1", "one 2"]
    assert records(out)[0].responses[1].token_ids == [1, 7]
    assert json.loads(out.read_text("utf-8").split("\n")[0])["prompt"] == "one"


def test_a_prompt_without_two_responses_fails_for_good_with_the_reason(prompts, out):
    sample_responses("base", prompts, out, ROOMY, build=building(Echo()))
    reasons = [line["declined"] for line in jsonl.read_lines(failed_prompts_path(out))]

    assert reasons == [
        "only 1 different response(s), not blank",
        "only 1 different response(s), not blank",
        "266 tokens, there is room for 100",
    ]
    again = Echo()
    assert sample_responses("base", prompts, out, ROOMY, build=building(again)).already_done == 6
    assert again.batches == []


def test_a_prompt_fits_to_the_very_last_token(out):
    key = Conversation.model_validate("x" * 83)  # and 17 of the template
    sample_responses("base", [key], out, ROOMY, build=building(Echo()))
    tight = SamplingOptions(n=3, max_tokens=21, max_model_len=120)
    sample_responses("base", [key], out.with_name("tight.jsonl"), tight, build=building(Echo()))

    assert len(records(out)) == 1
    assert records(out.with_name("tight.jsonl")) == []


def test_a_conversation_stays_one_and_a_template_may_refuse_it(tmp_path, out):
    turns = [("user", "Hi"), ("assistant", "Hello"), ("user", "go on")]
    chat = [{"role": role, "content": content} for role, content in turns]
    refused = [{"role": "system", "content": "Be kind."}, *chat]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in (chat, refused)), "utf-8")
    sample_responses("base", read_prompts(path), out, ROOMY, build=building(Echo()))

    assert [m.model_dump() for m in records(out)[0].prompt] == chat
    (failed,) = jsonl.read_lines(failed_prompts_path(out))
    assert failed == {"prompt": refused, "declined": "the chat template refuses it: no system"}


class Guidable(Echo):
    """Answers with the prompt's last word and the arguments that guide it."""

    def chat(self, messages, sampling_params, *, use_tqdm, chat_template=None):
        self.batches.append(list(zip(messages, sampling_params, strict=True)))
        texts = [f"{m[-1]['content'].split()[-1]} {p}" for m, p in self.batches[-1]]
        return [
            SimpleNamespace(outputs=[SimpleNamespace(text=t, token_ids=(i, 7))])
            for i, t in enumerate(texts)
        ]


@pytest.fixture
def guidable(monkeypatch):
    """(engine, an EngineBuilder of it): what guides stands for the parameters."""
    monkeypatch.setattr(
        guided_sampling.offline_engine, "with_pad_arguments", lambda params, arguments: arguments
    )
    engine, built = Guidable(), []

    def inner(base, sampling):
        built.append((base, sampling.n, sampling.adapter))
        return engine, None

    engine.built = built
    return engine, partial(
        guided_sampling.GuidedEngineBuilder, "folder", ("kind", "dry"), inner=inner
    )


def test_each_response_of_a_guided_base_says_by_what_it_was_guided(prompts, out, guidable):
    engine, build = guidable
    counts = sample_responses("base", prompts, out, ROOMY, build=build(beta=0.5))
    assert engine.built == [("base", 1, "folder")]
    assert (counts.sampled, counts.failed) == (5, 1)
    for record in records(out):
        word = record.prompt[0].content.split()[-1]
        assert len(record.responses) in {2, 3}
        for one in record.responses:
            assert one.text == f"{word} {one.guided_by}"
            assert one.guided_by["pad_beta"] == 0.5
            parse_guidance(one.guided_by, RequestLimits(("kind", "dry"), 1.0, 1, 1.0, 1))
    weights = [one.guided_by["pad_weights"] for r in records(out) for one in r.responses]
    assert len(set(weights)) > 4


def test_a_run_that_goes_on_asks_for_the_same_guidance(prompts, out, guidable):
    _, build = guidable
    sample_responses("base", prompts, out, ROOMY, build=build())
    again = out.with_name("again.jsonl")
    sample_responses("base", prompts[1:2], again, ROOMY, build=build())
    sample_responses("base", prompts, again, ROOMY, build=build())
    assert guides(again) == guides(out)
    other = out.with_name("other.jsonl")
    sample_responses("base", prompts, other, replace(ROOMY, seed=1), build=build())
    assert guides(other) != guides(out)


def test_the_weights_drawn_for_a_conversation_never_change():
    builder = guided_sampling.GuidedEngineBuilder("folder", ("kind", "dry"), beta=1.5)
    messages = [{"role": "user", "content": "caf\u00e9, or tea?"}]
    assert list(builder.request_arguments(messages, SamplingOptions(n=2, seed=3))) == [
        {"pad_weights": "kind=1,dry=0.3", "pad_beta": 1.5},
        {"pad_weights": "dry=1", "pad_beta": 1.5},
    ]


def guides(path):
    """Prompt -> what guided its responses."""
    return {prompt_key(r.prompt): [one.guided_by for one in r.responses] for r in records(path)}


def test_given_weights_guide_every_response(prompts, out, guidable):
    engine, build = guidable
    sample_responses("base", prompts[:2], out, ROOMY, build=build(weights="kind=1"))
    assert {json.dumps(p) for _, p in engine.batches[0]} == {'{"pad_weights": "kind=1"}'}
    assert len(engine.batches[0]) == 6


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--beta", "1"], "--weights and --beta are of --adapter"),
        (["--weights", "random"], "--weights and --beta are of --adapter"),
        (["--adapter", "demo", "--weights", "warm=1"], "'warm'"),
        (["--adapter", "demo", "--beta", "99"], "pad_beta is 99"),
    ],
)
def test_guidance_that_would_be_refused_is_before_an_engine_starts(
    prompts, tmp_path, out, argv, message
):
    text = str(tmp_path / "prompts.txt")
    result = CliRunner().invoke(
        commands(), ["sample", "base", "--prompts", text, "--out", str(out), *argv]
    )
    assert result.exit_code == 1
    assert message in " ".join(result.output.split())


def test_the_command_draws_from_a_guided_base(prompts, tmp_path, out, guidable, monkeypatch):
    engine, _ = guidable
    builder_class = guided_sampling.GuidedEngineBuilder
    monkeypatch.setattr(
        guided_sampling,
        "GuidedEngineBuilder",
        partial(builder_class, inner=lambda *_: (engine, None)),
    )
    text = str(tmp_path / "prompts.txt")
    argv = ["sample", "base", "--prompts", text, "--out", str(out), "--max-model-len", "228"]
    result = CliRunner().invoke(commands(), [*argv, "--adapter", "demo", "-n", "2"])
    assert result.exit_code == 0, result.output
    dimensions = read_config(resolve_adapter("demo")).dimensions
    given = records(out)[0].responses[0].guided_by["pad_weights"]
    assert {pair.split("=")[0] for pair in given.split(",")} <= set(dimensions)


def test_credit_takes_the_bases_own_draw_alone():
    drawn = Response(text="a", guided_by={"pad_weights": "kind=1"})
    record = PreferenceRecord(prompt="Hi", responses=[drawn, Response(text="b")])
    with pytest.raises(ValueError, match="1 responses were drawn under guidance"):
        require_unguided([record])


class Pretrained(Echo):
    """An engine of a base that has no chat template."""

    def get_tokenizer(self):
        tokenizer = tiny.tokenizer()
        tokenizer.chat_template = None
        return tokenizer


def test_a_base_without_a_chat_template_is_drawn_from_with_a_given_one(prompts, out):
    with pytest.raises(ValueError, match="org/base has no chat template.*--chat-template FILE"):
        sample_responses("org/base", prompts, out, ROOMY, build=building(Pretrained()))
    engine = Pretrained()
    given = replace(ROOMY, chat_template="{{ messages[0]['content'] }}:")
    sample_responses("org/base", prompts, out, given, build=building(engine))
    assert engine.template == given.chat_template
    assert len(records(out)) == 3
    assert list(jsonl.read_lines(failed_prompts_path(out)))[-1]["declined"].startswith("250 tokens")


def test_every_record_says_which_weights_drew_it_and_how(prompts, out, tmp_path):
    base = tiny.checkpoint("llama", tmp_path / "base")
    given = replace(ROOMY, temperature=0.6, top_k=7, seed=3)
    sample_responses(str(base), prompts, out, given, build=building(Echo()))
    (drawn_by,) = {record.drawn_by for record in records(out)}
    assert drawn_by.fingerprint == fingerprint(base)
    assert (drawn_by.base, drawn_by.temperature, drawn_by.top_k) == (str(base), 0.6, 7)
    assert (drawn_by.max_tokens, drawn_by.seed) == (20, 3)
    score_file(out, out.with_name("scored.jsonl"), ["positive"])
    assert {record.drawn_by for record in records(out.with_name("scored.jsonl"))} == {drawn_by}


def test_a_file_of_answers_goes_on_only_as_it_was_begun(prompts, out):
    sample_responses("base", prompts[:2], out, ROOMY, build=building(Echo()))
    hotter = replace(ROOMY, temperature=1.0)
    for base, sampling, message in (
        ("base", hotter, "temperature was 0.8, now 1.0. Ask for the same, or give another --out"),
        ("other", ROOMY, "base was base, now other"),
    ):
        with pytest.raises(ValueError, match=message):
            sample_responses(base, prompts, out, sampling, build=building(Echo()))
    old = "".join(
        json.dumps({k: v for k, v in json.loads(line).items() if k != "drawn_by"}) + "\n"
        for line in out.read_text("utf-8").splitlines()
    )
    out.write_text(old, "utf-8")  # of a release that did not say
    assert sample_responses("base", prompts, out, hotter, build=building(Echo())).sampled == 1


def test_a_killed_run_continues_with_the_prompts_it_had_not_written(prompts, out):
    with pytest.raises(KeyboardInterrupt):
        sample_responses(
            "base", prompts, out, ROOMY, batch_size=2, build=building(Echo(kill_after=1))
        )
    whole = out.read_bytes()
    out.write_bytes(whole[:-5])  # and the kill came in the middle of a line

    again = Echo()
    counts = sample_responses("base", prompts, out, ROOMY, batch_size=2, build=building(again))
    assert (counts.already_done, counts.sampled, counts.failed) == (1, 2, 3)
    assert [r.prompt[0].content for r in records(out)] == ["one", "two", "three"]
    assert again.batches[0][0] == [{"role": "user", "content": "two"}]


def test_prompts_come_as_text_or_json_lines_each_once(tmp_path):
    path = tmp_path / "prompts.jsonl"
    message = {"role": "user", "content": "caf\u00e9"}
    lines = [{"prompt": "caf\u00e9", "source": "mine"}, {"prompt": [message]}, {"prompt": "two"}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    text = tmp_path / "prompts.txt"
    text.write_text("caf\u00e9\ntwo\r\n", "utf-8")

    assert read_prompts(path) == read_prompts(text)
    assert [p[0].content for p in read_prompts(path)] == ["caf\u00e9", "two"]


@pytest.mark.parametrize(
    "line",
    [
        '{"text": "Hi"}',
        '{"prompt": []}',
        '{"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}',
        '{"prompt": [{"role": "tool", "content": "a"}]}',
        '"Hi"',
        "Hi",
    ],
)
def test_a_line_that_is_no_prompt_is_named(tmp_path, line):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "Hi"}\n' + line + "\n", "utf-8")

    with pytest.raises(ValueError, match="prompts.jsonl, line 2"):
        read_prompts(path)


def test_a_prompts_file_of_another_kind_is_refused(tmp_path):
    with pytest.raises(ValueError, match="prompts.csv: accepted are .jsonl.*.txt"):
        read_prompts(tmp_path / "prompts.csv")


def commands():
    app = typer.Typer()
    app.command("sample")(sample_command)
    app.command("score")(score_command)
    return app


def test_the_commands_say_what_they_did(tmp_path, out, prompts, monkeypatch):

    monkeypatch.setattr(
        sample_responses, "__kwdefaults__", {"batch_size": 2, "ray_actors": 0, "build": build_echo}
    )
    text, scored = str(tmp_path / "prompts.txt"), tmp_path / "scored.jsonl"
    argv = ["sample", "base", "--prompts", text, "--out", str(out), "--max-model-len", "228"]
    drawn = CliRunner().invoke(commands(), argv)
    judged = CliRunner().invoke(
        commands(), ["score", str(out), "brief", "p=positive", "--out", str(scored)]
    )

    assert drawn.exit_code == 0, drawn.output
    assert "3 prompts sampled, 0 were done before" in drawn.output
    assert "3 failed" in drawn.output
    assert judged.exit_code == 0, judged.output
    assert "3 records scored" in judged.output
    assert records(scored)[0].scorers == {"brief": "brief", "p": "positive"}


def test_a_mistake_is_one_message(tmp_path):
    result = CliRunner().invoke(
        commands(), ["score", str(tmp_path), "kindness", "--out", str(tmp_path / "o")]
    )

    assert result.exit_code == 1
    assert "'kindness' is not known" in result.output


def test_the_commands_explain_the_forms_they_take(monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")
    result = CliRunner().invoke(commands(), ["score", "--help"])

    assert "classifier:MODEL[#LABEL], reward:MODEL[#LABEL]" in result.output
    assert "or judge:URL#MODEL[#INSTRUCTION]" in result.output


def test_the_commands_are_light_to_import():
    heavy = ("torch", "vllm", "pydantic", "ray", "openai")
    code = "import sys, pad_vllm.cli.sample_training_responses\n"
    code += f"print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )

    assert result.stdout.strip() == "[]"


@pytest.mark.engine  # starts Ray: seconds
def test_ray_draws_what_one_process_draws(prompts, out, monkeypatch):
    ray = pytest.importorskip("ray")
    here = Path(__file__).parent  # the actors import Echo
    monkeypatch.setenv("PYTHONPATH", f"{here}{os.pathsep}{here.parents[1]}")
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        counts = sample_responses(
            "base", prompts, out, ROOMY, batch_size=2, ray_actors=1, build=build_echo
        )
    finally:
        ray.shutdown()
    here = out.with_name("here.jsonl")
    sample_responses("base", prompts, here, ROOMY, batch_size=2, build=build_echo)

    assert (counts.sampled, counts.failed) == (3, 3)
    assert sorted(out.read_text("utf-8")) == sorted(here.read_text("utf-8"))
    assert {prompt_key(r.prompt) for r in records(out)} == {
        prompt_key(r.prompt) for r in records(here)
    }


def test_a_byte_order_mark_is_no_part_of_the_first_prompt(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("one\ntwo\n", "utf-8-sig")
    assert [p[0].content for p in read_prompts(path)] == ["one", "two"]


def test_responses_that_leave_a_prompt_no_room_are_refused_before_any_prompt_fails(prompts, out):
    with pytest.raises(ValueError, match="max_tokens 120 of max_model_len 120 leave no room"):
        SamplingOptions(max_tokens=120, max_model_len=120)
    SamplingOptions(max_tokens=119, max_model_len=120)
