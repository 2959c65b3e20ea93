"""A sentence becomes weights: by a tiny model whose dimension is the sentence's own direction."""

from __future__ import annotations

import pytest
import tiny
import torch

from pad_vllm.choices.candidate_reader import CandidateReader
from pad_vllm.choices.reward_space import RewardSpace
from pad_vllm.choices.sentence_weights import SentenceReader, sentence_prompts
from pad_vllm.text.chat_template import chat_token_ids
from pad_vllm.text.conversation import Conversation
from pad_vllm.text.preference_text import with_instruction

pytestmark = pytest.mark.usefixtures("one_thread")

SENTENCE = "Be warm."
PROMPTS = [Conversation.model_validate(text) for text in ("one", "two", "three")]


def reader(*, constants):
    """Of a PersRM of three dimensions."""
    model = tiny.persrm("llama", 4, ("a", "b", "c"), 0.0 if constants else 0.5)
    return CandidateReader(model, tiny.tokenizer(), 8)


def taught(reader):
    """[H] mean of h_told - h_B where the answers to PROMPTS begin."""
    shifts = []
    with torch.no_grad():
        for prompt in PROMPTS:
            plain, told = (
                reader.model.hidden(torch.tensor([chat_token_ids(reader.tokenizer, messages)]))[0]
                for messages in (prompt.messages(), with_instruction(prompt.messages(), SENTENCE))
            )
            shifts.append(told[0, -1] - plain[0, -1])
    return torch.stack(shifts).mean(0)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_dimension_that_pays_what_the_sentence_teaches_gets_the_largest_weight(sign):
    one = reader(constants=True)
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        one.model.head_C = torch.nn.Parameter(
            torch.randn(3, one.model.head_A.shape[-1], generator=source)
        )
        shift = taught(one)
        one.model.head_C[1] = sign * shift
        one.model.head_C[0] *= shift.norm() / one.model.head_C[0].norm()
        one.model.head_C[2] *= shift.norm() / one.model.head_C[2].norm()
    found = SentenceReader(one, PROMPTS).weights(SENTENCE)
    assert found.w[1] == sign
    assert found.w.abs().max() == 1.0
    assert 0 < found.explained <= 1


def test_a_sentence_that_the_dimensions_do_not_know_is_foreign():
    one = reader(constants=True)
    with torch.no_grad():
        one.model.head_C = torch.nn.Parameter(1e-3 * torch.randn(3, one.model.head_A.shape[-1]))
    found = SentenceReader(one, PROMPTS).weights(SENTENCE)
    assert found.w.isfinite().all()
    assert found.explained < 0.9


@pytest.mark.parametrize("sentence", ["", "  \n"])
def test_an_empty_sentence_is_refused(sentence):
    with pytest.raises(ValueError, match="the sentence is empty"):
        SentenceReader(reader(constants=False), PROMPTS).weights(sentence)


def test_an_untrained_adapter_says_nothing():
    with pytest.raises(ValueError, match="every reward of the adapter is zero"):
        SentenceReader(reader(constants=True), PROMPTS).weights(SENTENCE)


def test_a_reader_that_read_ahead_says_the_same_of_every_sentence():
    one = reader(constants=False)
    kept = SentenceReader(one, PROMPTS)
    assert [kept.read_ahead() for _ in range(5)] == [True, True, True, False, False]
    for sentence in (SENTENCE, "Be cold.", SENTENCE):
        found, alone = kept.weights(sentence), SentenceReader(one, PROMPTS).weights(sentence)
        assert found.explained == alone.explained
        assert torch.equal(found.w, alone.w)


def test_what_interrupts_reading_ahead_changes_no_weights():
    one = reader(constants=False)
    kept, asked = SentenceReader(one, PROMPTS), []

    def third():
        asked.append(None)
        return len(asked) >= 3

    assert kept.read_ahead(third)
    assert len(asked) == 4  # after the third token of 24, and before the answer is read
    found = kept.weights(SENTENCE)
    assert found.explained == SentenceReader(one, PROMPTS).weights(SENTENCE).explained


def test_the_prompts_that_ship_are_questions():
    prompts = sentence_prompts()
    assert len(set(prompts)) == 16
    assert all(prompt[-1].content.strip() for prompt in prompts)


DIALOGUE = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "yes, my dear"}]


def test_a_dialogue_is_read_as_turns_before_the_prompts_and_is_not_scaled():
    one = reader(constants=False)
    found = SentenceReader(one, PROMPTS).dialogue_weights(DIALOGUE, 2)
    space = RewardSpace(one)
    answers = SentenceReader(one, PROMPTS[:2])
    while answers.read_ahead():
        pass
    for read in answers._read:
        space.add_answer(read)
        space.read_change("dialogue", lambda messages: [*DIALOGUE, *messages], read)
    expected, _ = space.project("dialogue", one.model.dimensions)
    assert found.tolist() == pytest.approx(list(expected.values()), rel=1e-5)
    assert found.abs().max() != 1


def test_turns_that_change_nothing_have_weights_of_zero():
    found = SentenceReader(reader(constants=False), PROMPTS).dialogue_weights([])
    assert found.abs().max() < 1e-4


def test_a_dialogue_that_pays_twice_as_much_has_twice_the_weights():
    """The dimension is the dialogue's own direction, or half of it."""
    weights = []
    for share in (1.0, 0.5):
        one = reader(constants=True)
        with torch.no_grad():
            one.model.head_C = torch.nn.Parameter(torch.zeros(3, one.model.head_A.shape[-1]))
            one.model.head_C[0] = share * taught(one)
            one.model.head_C[1:] = torch.randn(2, len(one.model.head_C[0])) * 1e-3
        weights.append(SentenceReader(one, PROMPTS).dialogue_weights(DIALOGUE)[0])
    assert weights[1] == pytest.approx(2 * float(weights[0]), rel=0.2)


def test_a_dialogue_waits_for_the_answers_that_it_is_read_by_alone():
    kept = SentenceReader(reader(constants=False), PROMPTS)
    kept.dialogue_weights(DIALOGUE, 1)
    assert [kept.read_ahead() for _ in range(3)] == [True, True, False]


def test_an_untrained_adapter_says_nothing_of_a_dialogue():
    with pytest.raises(ValueError, match="every reward of the adapter is zero"):
        SentenceReader(reader(constants=True), PROMPTS).dialogue_weights(DIALOGUE)
