"""Two answers become differences of features, and a sentence weights: by tiny models."""

from __future__ import annotations

import pytest
import tiny

from pad_vllm.adapter.adapter_folder import load_adapter
from pad_vllm.choices.candidate_reader import CandidateReader
from pad_vllm.choices.dialogue_units import UnitsReader
from pad_vllm.choices.sentence_weights import SentenceReader, sentence_prompts
from pad_vllm.persrm import PersRM
from pad_vllm.profiles import text_reader
from pad_vllm.profiles.text_reader import ReaderSettings, TextReader, open_text_reader
from pad_vllm.text.conversation import Conversation
from pad_vllm.training.user_choices import UserChoice, read_answers

pytestmark = pytest.mark.usefixtures("one_thread")

DIMENSIONS = ("warm", "brief", "dry")
MESSAGES = [{"role": "system", "content": "Be nice."}, {"role": "user", "content": "Hi?"}]


@pytest.fixture(scope="module")
def model():
    return tiny.persrm("llama", 2, DIMENSIONS, 0.3)


@pytest.fixture(scope="module")
def reader(model):
    return TextReader(model, tiny.tokenizer(), 8)


def test_a_choice_has_the_features_that_fit_reads(model, reader):
    chosen, rejected = "Hello, my friend!", "What"
    found = reader.choice(MESSAGES, chosen, rejected)
    choice = UserChoice(Conversation.model_validate(MESSAGES), chosen, rejected, 1)
    (fitted,) = read_answers(model, tiny.tokenizer(), [choice]).differences("mean with length")
    assert [*found.x.values(), found.length] == fitted.tolist()
    assert tuple(found.x) == DIMENSIONS
    assert found.length == len(chosen) - len(rejected)
    assert (found.outcome, found.strength) == (1, 1)


def test_the_order_of_two_answers_is_their_sign(reader):
    one, other = reader.choice(MESSAGES, "aaa", "bb"), reader.choice(MESSAGES, "bb", "aaa")
    assert list(one.x.values()) == pytest.approx([-value for value in other.x.values()], rel=1e-4)
    assert one.length == -other.length


def test_texts_beyond_the_bases_context_are_refused_with_the_limit(reader):
    reader.choice(MESSAGES, "a" * 450, "b")
    for texts in (("a" * 600, "b"), ("b", "a" * 600)):
        with pytest.raises(ValueError, match="tokens together; accepted: at most 512"):
            reader.choice(MESSAGES, *texts)
    with pytest.raises(ValueError, match="at most 512"):
        reader.choice([{"role": "user", "content": "a" * 600}], "a", "b")


def test_a_base_that_reads_more_has_a_limit_too(model, monkeypatch):
    monkeypatch.setattr(text_reader, "MAX_TOKENS", 40)
    with pytest.raises(ValueError, match="accepted: at most 40"):
        TextReader(model, tiny.tokenizer(), 8).choice(MESSAGES, "a" * 40, "b")


def test_answers_that_the_model_cannot_tell_apart_say_nothing():
    untrained = TextReader(tiny.persrm("llama", 4, DIMENSIONS, 0.0), tiny.tokenizer(), 8)
    with pytest.raises(ValueError, match="the same features"):
        untrained.choice(MESSAGES, "a", "b")
    with pytest.raises(ValueError, match="every reward of the adapter is zero"):
        untrained.sentence("Be brief.")


def test_a_prompt_that_the_chat_template_refuses_is_refused():
    words = tiny.tokenizer()
    words.chat_template = "{{ raise_exception('no system') }}"
    with pytest.raises(ValueError, match="refuses the prompt .no system"):
        TextReader(tiny.persrm("llama", 2, DIMENSIONS, 0.3), words, 8).choice(MESSAGES, "a", "b")


def test_a_sentence_has_the_weights_that_fit_reads(model, reader):
    while reader.read_ahead():
        pass
    found = reader.sentence("Be short.")
    fit = SentenceReader(CandidateReader(model, tiny.tokenizer(), 8), sentence_prompts())
    expected = fit.weights("Be short.")
    assert found.weights == {
        name: float(f"{w:.3g}") for name, w in zip(DIMENSIONS, expected.w.tolist(), strict=True)
    }
    assert max(map(abs, found.weights.values())) == 1
    assert found.explained == expected.explained


@pytest.mark.parametrize(
    ("sentence", "said"), [(" \n", "is empty"), ("a" * 257, "257 tokens; accepted: at most 256")]
)
def test_a_sentence_that_cannot_be_read_is_refused(reader, sentence, said):
    with pytest.raises(ValueError, match=said):
        reader.sentence(sentence)


def test_it_opens_the_base_that_the_adapter_belongs_to_and_no_other(tmp_path):
    base = tiny.checkpoint("llama", tmp_path / "base")
    adapter = tiny.write_adapter(base, tmp_path / "adapter", fork_layer=2, std=0.3)
    opened = open_text_reader(ReaderSettings(str(base), str(adapter), "cpu"))
    found = opened.choice(MESSAGES, "aaa", "bb")
    from transformers import AutoModelForCausalLM

    dtype = next(opened._model.backbone.parameters()).dtype  # by what the machine computes in
    backbone = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    twin = TextReader(PersRM.from_adapter(backbone, load_adapter(adapter)), tiny.tokenizer(), 8)
    assert found.x == twin.choice(MESSAGES, "aaa", "bb").x
    tiny.model("llama", seed=1).save_pretrained(tmp_path / "other")
    tiny.tokenizer().save_pretrained(tmp_path / "other")
    other = ReaderSettings(str(tmp_path / "other"), str(adapter), "cpu")
    with pytest.raises(ValueError, match="fingerprint|weights"):
        open_text_reader(other)
    open_text_reader(ReaderSettings(other.base, other.adapter, "cpu", allow_mismatch=True))


TURNS = [
    *({"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Ho"}),
    *({"role": "user", "content": "And?"}, {"role": "assistant", "content": "So it is."}),
]


def test_a_conversation_has_the_weights_of_its_turns(model, reader):
    found = reader.conversation(TURNS)
    fit = SentenceReader(CandidateReader(model, tiny.tokenizer(), 8), sentence_prompts())
    expected = UnitsReader(fit, {}).units().measure(fit.dialogue_weights(TURNS))
    assert found.weights == {
        name: float(f"{w:.3g}") for name, w in zip(DIMENSIONS, expected.tolist(), strict=True)
    }


def test_a_conversation_is_measured_by_the_instructions_that_taught(model):
    own = {"brief": "Be brief."}
    reader = TextReader(model, tiny.tokenizer(), 8, own)
    fit = SentenceReader(CandidateReader(model, tiny.tokenizer(), 8), sentence_prompts())
    expected = UnitsReader(fit, own).units().measure(fit.dialogue_weights(TURNS))
    assert list(reader.conversation(TURNS).weights.values()) == pytest.approx(
        expected.tolist(), rel=1e-2
    )


@pytest.mark.parametrize(("limit", "first"), [(1024, 0), (200, 2)])
def test_the_newest_turns_that_fit_are_read(reader, monkeypatch, limit, first):
    monkeypatch.setattr(text_reader, "MAX_CONVERSATION_TOKENS", limit)
    long = [{**TURNS[0], "content": "a" * 100}, *TURNS[1:]]
    assert reader.conversation(long) == reader.conversation(long[first:])


def test_a_last_answer_that_does_not_fit_is_refused(reader):
    long = [*TURNS[:3], {"role": "assistant", "content": "a" * 600}]
    with pytest.raises(ValueError, match="the last answer and its question have more than 488"):
        reader.conversation(long)


def test_a_conversation_that_the_chat_template_refuses_is_refused():
    words = tiny.tokenizer()
    words.chat_template = "{{ messages[0].content }}{{ raise_exception('no') if messages[2:] }}"
    reader = TextReader(tiny.persrm("llama", 2, DIMENSIONS, 0.3), words, 8)
    with pytest.raises(ValueError, match="refuses the conversation .no"):
        reader.conversation(TURNS)
