"""The teacher's rewards: against two whole forwards, with an opposite, from disk, and resumed."""

from __future__ import annotations

import pytest
import tiny
import tiny_examples as made
import torch
from planted_preferences import Killed

from pad_vllm.training.data.preference_record import PreferenceRecord
from pad_vllm.training.distillation import prompted_teacher
from pad_vllm.training.distillation.distillation_examples import ExampleBuilder
from pad_vllm.training.distillation.instructions import instructions_from_settings
from pad_vllm.training.distillation.prompted_teacher import DistillationStore
from pad_vllm.training.distillation.ridge_statistics import RidgeStatistics
from pad_vllm.training.objective.candidate_rewards import subtract_base_mean

pytestmark = pytest.mark.usefixtures("one_thread")

TOKENIZER = tiny.tokenizer()


@pytest.fixture
def model():
    return tiny.persrm("llama", 2, ("warm", "brief"))


@pytest.fixture
def settings(tmp_path):
    return made.settings(tmp_path, teacher={"opposites": {"brief": "talk much"}})


@pytest.fixture
def some(settings):
    maker = ExampleBuilder(TOKENIZER, settings, instructions_from_settings(settings.teacher))
    records = [
        {
            "prompt": f"q{n}",
            "responses": [{"text": t, "token_ids": TOKENIZER.encode(t)} for t in ts],
        }
        for n, ts in enumerate((("no", "oh yes"), ("well", "so it is"), ("a cat", "dogs")))
    ]
    return [maker.from_record(PreferenceRecord.model_validate(record)) for record in records]


def nothing(*_):
    """A ProgressCallback that does nothing."""


def store(model, settings, folder):
    return DistillationStore(model, TOKENIZER, settings, folder, "weights")


def collected(one, examples):
    """The store with forks and rewards of the examples, and the sums over them."""
    one.build(examples, 0, 1, nothing, with_targets=False)
    statistics = RidgeStatistics.zeros(2, 64)
    one.collect_rewards(examples, nothing, statistics, one.fork_files.folder.parent / "moments")
    return statistics


def last(model, prompt, answer):
    """The base's final hidden states before each token of the answer, by one whole forward."""
    return model.hidden_twice(torch.tensor([[*prompt, *answer][:-1]]))[0][0, -len(answer) :]


def test_rewards_are_the_difference_to_the_instructed_base(model, settings, some, tmp_path):
    one = store(model, settings, tmp_path / "cache")
    collected(one, some)
    for example in some:
        (warm,), (brief, much) = example.instructed_ids
        for response, ids in zip(
            one.responses(example, with_targets=True), example.response_ids, strict=True
        ):
            z = {
                name: model.base_logits(last(model, prompt, ids)).gather(-1, response.ids.long())
                for name, prompt in (
                    ("base", example.prompt_ids),
                    ("warm", warm),
                    ("brief", brief),
                    ("much", much),
                )
            }
            slow = torch.stack([z["warm"] - z["base"], (z["brief"] - z["much"]) / 2], -1)
            assert torch.allclose(
                response.teacher_rewards, subtract_base_mean(slow, response.z_B), atol=1e-2
            )


def test_the_instructed_prompts_differ_by_the_instruction_behind_the_question(some):
    for example in some:
        text = TOKENIZER.decode(example.prompt_ids)
        instructed = [TOKENIZER.decode(ids) for row in example.instructed_ids for ids in row]
        for sentence, one in zip(("be warm", "be brief", "talk much"), instructed, strict=True):
            assert one.replace(f"\n\n{sentence}", "") == text


def test_rewards_are_the_same_without_a_cache(model, settings, some, tmp_path):
    import dataclasses

    cached = store(model, settings, tmp_path / "cache")
    fresh = store(model, dataclasses.replace(settings, cached=False), tmp_path / "none")
    statistics = [collected(one, some) for one in (cached, fresh)]
    assert torch.allclose(statistics[0].dh, statistics[1].dh, atol=1e-2)
    for example in some:
        rows = (one.responses(example, with_targets=True) for one in (cached, fresh))
        for kept, computed in zip(*rows, strict=True):
            assert torch.allclose(kept.teacher_rewards, computed.teacher_rewards, atol=1e-2)
    assert not (tmp_path / "none" / "wanted").exists()


def test_sums_killed_in_between_go_on_where_they_stopped(
    model, settings, some, tmp_path, monkeypatch
):
    monkeypatch.setattr(prompted_teacher, "_CHUNK", 1)
    monkeypatch.setattr(prompted_teacher, "_SECONDS_BETWEEN_SAVES", -1.0)
    whole = collected(store(model, settings, tmp_path / "whole"), some)
    one = store(model, settings, tmp_path / "cut")
    one.build(some, 0, 1, nothing, with_targets=False)

    def stop(what, done, total):
        if done == 2:
            raise Killed

    with pytest.raises(Killed):
        one.collect_rewards(some, stop, RidgeStatistics.zeros(2, 64), tmp_path / "statistics")
    again = RidgeStatistics.load(tmp_path / "statistics")
    assert int(again.examples) == 2
    one.collect_rewards(some, nothing, again, tmp_path / "statistics")
    for name, value in vars(whole).items():
        assert torch.equal(value, getattr(again, name)), name


def test_what_the_teacher_takes_is_known_before(model, settings, some, tmp_path, monkeypatch):
    one = store(model, settings, tmp_path / "cache")
    one.build(some, 0, 1, nothing, with_targets=False)
    work = one.teacher_work(some)
    read = []
    plain = prompted_teacher.final_hidden_states
    monkeypatch.setattr(
        prompted_teacher,
        "final_hidden_states",
        lambda m, pairs: read.extend(len(p) + len(a) - 1 for p, a in pairs) or plain(m, pairs),
    )
    one.collect_rewards(some, nothing, RidgeStatistics.zeros(2, 64), None)
    assert work.tokens == sum(read)
    kept = [
        tensor.numel() * tensor.element_size()
        for example in some
        for tensors in one.rewards_cache.read(example)
        for tensor in tensors.values()
    ]
    assert work.num_bytes == sum(kept)
    assert one.teacher_work(some) == (0, 0)


def test_sums_that_take_seconds_are_not_written_before_the_end(model, settings, some, tmp_path):
    one = store(model, settings, tmp_path / "cache")
    one.build(some, 0, 1, nothing, with_targets=False)
    one.collect_rewards(some, nothing, RidgeStatistics.zeros(2, 64), tmp_path / "statistics")
    assert not (tmp_path / "statistics").exists()


def test_another_instruction_has_rewards_of_its_own(model, settings, some, tmp_path):
    import dataclasses

    one = store(model, settings, tmp_path / "cache")
    collected(one, some)
    assert one.has_rewards(some)
    other = made.settings(tmp_path, teacher={"sentences": {"warm": "be cold", "brief": "be brief"}})
    maker = ExampleBuilder(TOKENIZER, other, instructions_from_settings(other.teacher))
    record = {"prompt": list(some[0].conversation), "responses": [{"text": "-"}] * 2}
    instructed_ids = maker.from_record(PreferenceRecord.model_validate(record)).instructed_ids
    changed = dataclasses.replace(some[0], instructed_ids=instructed_ids)
    assert not one.has_rewards([changed])
    assert not one.fork_files.missing([changed])
