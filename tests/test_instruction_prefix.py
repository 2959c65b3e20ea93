"""An instruction in front of the reward stream, against the whole backbone and against layers run by hand."""

from __future__ import annotations

import pytest
import tiny
import torch

from pad_vllm.instruction import InstructionTokens
from pad_vllm.instruction_prefix import InstructedBackbone, InstructionPrefix

FULL_ATTENTION = ("llama", "qwen2", "qwen3", "gemma3_full")
EXACT = {"rtol": 1e-4, "atol": 2e-5}


def random_ids(*shape, seed=0):
    return torch.randint(3, 333, shape, generator=torch.Generator().manual_seed(seed))


def sentence(*token_ids):
    return InstructionTokens((), token_ids)


def told_states(instructed, instruction, texts, block_size=1):
    return instructed.instructed_states(
        instructed.states_below_fork(texts), instructed.read_instruction(instruction, block_size)
    )


@torch.no_grad()
def final_states(model, texts):
    return model.model(input_ids=texts, use_cache=False).last_hidden_state


@torch.no_grad()
def run_layers(model, hidden, first, stop, mask):
    """Decoder layers on [1, T, H] with a mask [T, T] that is added to attention, positions from 0."""
    decoder, length = model.model, hidden.shape[1]
    positions = torch.arange(length).unsqueeze(0)
    # Gemma-3 has tables of its own for the layers without a sliding window.
    more = (tiny.FULL,) if model.config.model_type.startswith("gemma3") else ()
    for layer in list(decoder.layers)[first:stop]:
        out = layer(
            hidden,
            attention_mask=mask[None, None],
            position_ids=positions,
            position_embeddings=decoder.rotary_emb(hidden, positions, *more),
        )
        hidden = out[0] if isinstance(out, tuple) else out
    return hidden


def causal(length):
    return torch.full((length, length), torch.finfo(torch.float32).min).triu(1)


@torch.no_grad()
def slow_states(model, fork, instruction, text, block_size):
    """h_T [T, H]: below the fork two texts; above it one, in which the text does not look at the opening, and
    at each token of the sentence with the logarithm of how often the prefix has it.
    """
    opening, own = map(len, instruction)
    read, parts = opening + own, []
    for part in ((*instruction.opening, *instruction.sentence), text):
        hidden = model.model.embed_tokens(torch.tensor([list(part)]))
        parts.append(run_layers(model, hidden, 0, fork, causal(len(part))))
    both = torch.cat(parts, dim=1)
    mask = causal(both.shape[1])
    counts = [len(range(place, instruction.prefix_length(block_size), own)) for place in range(own)]
    mask[read:, :opening] = torch.finfo(torch.float32).min
    mask[read:, opening:read] = torch.tensor(counts, dtype=torch.float32).log()
    num_layers = model.config.num_hidden_layers
    return model.model.norm(run_layers(model, both, fork, num_layers, mask))[0, read:]


@pytest.mark.parametrize("opening", [0, 3])
@pytest.mark.parametrize("block_size", [1, 4])
@pytest.mark.parametrize("fork", [0, 1, 2, 3])
@pytest.mark.parametrize("family", FULL_ATTENTION)
def test_the_text_meets_the_sentence_from_the_fork_up(family, fork, block_size, opening):
    model = tiny.model(family)
    ids, texts = random_ids(5 + opening).tolist(), random_ids(2, 9, seed=1)
    instruction = InstructionTokens(tuple(ids[:opening]), tuple(ids[opening:]))
    found = told_states(InstructedBackbone(model, fork), instruction, texts, block_size)
    for row, text in zip(found, texts.tolist(), strict=True):
        expected = slow_states(model, fork, instruction, text, block_size)
        torch.testing.assert_close(row, expected, **EXACT)


@pytest.mark.parametrize("fork", [0, 2])
def test_the_base_stream_knows_nothing_of_it(fork):
    model, texts = tiny.model("llama"), random_ids(2, 9)
    instructed = InstructedBackbone(model, fork)
    forked = instructed.states_below_fork(texts)
    before = instructed.base_states(forked)
    told = instructed.instructed_states(forked, instructed.read_instruction(sentence(5, 6, 7)))
    assert (told - before).abs().max() > 0.1
    assert torch.equal(instructed.base_states(forked), before)
    torch.testing.assert_close(before, final_states(model, texts), **EXACT)


def test_the_backbone_is_left_as_it_was():
    model, texts = tiny.model("qwen3"), random_ids(1, 6)
    before, config = final_states(model, texts), model.config.to_dict()
    told_states(InstructedBackbone(model, 2), sentence(4, 5), texts)
    assert torch.equal(final_states(model, texts), before)
    assert model.config.to_dict() == config
    assert len(model.model.layers) == 4


def test_a_prefix_serves_many_texts_and_is_not_changed_by_them():
    instructed = InstructedBackbone(tiny.model("qwen2"), 1)
    prefix = instructed.read_instruction(sentence(9, 8, 7), block_size=4)
    assert isinstance(prefix, InstructionPrefix)
    assert prefix.length == 8
    assert len(prefix.keys) == len(prefix.values) == 3  # the layers above the fork
    saved = [key.clone() for key in prefix.keys]
    forked = instructed.states_below_fork(random_ids(3, 5))
    first = instructed.instructed_states(forked, prefix)
    assert torch.equal(instructed.instructed_states(forked, prefix), first)
    assert all(map(torch.equal, saved, prefix.keys))


def test_rows_do_not_see_each_other():
    instructed, texts = InstructedBackbone(tiny.model("llama"), 2), random_ids(2, 8)
    both = told_states(instructed, sentence(3, 4, 5), texts)
    for row, text in zip(both, texts, strict=True):
        torch.testing.assert_close(
            row, told_states(instructed, sentence(3, 4, 5), text[None])[0], **EXACT
        )


def test_padding_on_the_right_changes_no_real_position():
    instructed, texts = InstructedBackbone(tiny.model("llama"), 2), random_ids(1, 8)
    padded = torch.cat((texts, torch.full((1, 3), 2)), dim=1)
    torch.testing.assert_close(
        told_states(instructed, sentence(3, 4), padded)[:, :8],
        told_states(instructed, sentence(3, 4), texts),
        **EXACT,
    )


@pytest.mark.parametrize("fork", [-1, 4, 9])
def test_a_layer_that_the_backbone_does_not_have_is_refused(fork):
    with pytest.raises(ValueError, match=rf"fork_layer {fork}: this backbone accepts 0\.\.3"):
        InstructedBackbone(tiny.model("llama"), fork)


@pytest.mark.parametrize(
    ("family", "fork"),
    [("gemma3", 0), ("gemma3", 4), ("gemma3_sliding", 2), ("gemma3_sliding", 3), ("mistral", 2)],
)
def test_layers_that_would_lose_sight_of_it_are_refused(family, fork):
    with pytest.raises(ValueError, match=f"fork_layer {fork}: .*sliding-window attention"):
        InstructedBackbone(tiny.model(family), fork)


def test_below_the_fork_there_may_be_such_layers():
    model, texts = tiny.model("gemma3"), random_ids(1, 20)  # longer than the window
    instructed = InstructedBackbone(model, 5)
    forked = instructed.states_below_fork(texts)
    torch.testing.assert_close(instructed.base_states(forked), final_states(model, texts), **EXACT)
    assert instructed.read_instruction(sentence(3, 4, 5)).length == 6
