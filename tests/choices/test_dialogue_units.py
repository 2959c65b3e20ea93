"""What dialogues are measured by: the base's own dialogue is 0, a dimension's own instruction 1."""

from __future__ import annotations

import pytest
import tiny
import torch

from pad_vllm.choices.candidate_reader import CandidateReader
from pad_vllm.choices.dialogue_units import PLAIN_TOKENS, DialogueUnits, UnitsReader
from pad_vllm.choices.sentence_weights import SentenceReader
from pad_vllm.text.conversation import Conversation

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPTS = [Conversation.model_validate(text) for text in ("one", "two", "three", "four")]
OWN = {"b": "Be warm."}


def sentences(std=0.5):
    model = tiny.persrm("llama", 4, ("a", "b", "c"), std)
    return SentenceReader(CandidateReader(model, tiny.tokenizer(), 8), PROMPTS)


def test_they_begin_at_the_bases_own_dialogue_and_end_at_a_dimensions_own_instruction():
    kept = sentences()
    units = UnitsReader(kept, OWN, 2).units()
    turns = []
    for prompt in PROMPTS[2:]:
        answer = kept.plain_answer(prompt, PLAIN_TOKENS)
        turns += [*prompt.messages(), {"role": "assistant", "content": answer}]
    assert units.plain.equal(kept.dialogue_weights(turns, 2))
    assert not units.measure(units.plain).any()
    assert units.own.tolist() == [1.0, kept.instruction_weights("Be warm.", 2)[1].item(), 1.0]


def test_they_are_read_part_by_part_and_what_interrupts_changes_nothing():
    reader, at_once = UnitsReader(sentences(), OWN, 2), UnitsReader(sentences(), OWN, 2)
    asked = []

    def third():
        asked.append(None)
        return len(asked) >= 3

    assert reader.read_ahead(third)
    assert [reader.read_ahead() for _ in range(6)] == [True] * 4 + [False] * 2
    for one, other in zip(reader.units(), at_once.units(), strict=True):
        assert one.equal(other)


def test_a_dimension_that_its_own_instruction_hardly_teaches_is_not_read():
    units = DialogueUnits(torch.tensor([0.1, 0.1, 0.1]), torch.tensor([0.5, 0.01, -0.5]))
    assert units.measure(torch.tensor([0.6, 0.6, 0.6])).tolist() == pytest.approx([1.0, 0.0, 0.0])


def test_an_untrained_adapter_has_none():
    with pytest.raises(ValueError, match="every reward of the adapter is zero"):
        UnitsReader(sentences(std=0.0), OWN, 2).units()
