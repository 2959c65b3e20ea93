"""An instruction in front of the reward stream, against the whole backbone and against layers run by hand."""

from __future__ import annotations

import pytest
import tiny
import torch

from pad_vllm.instruction_prefix import InstructedBackbone, InstructionPrefix

FULL_ATTENTION = ("llama", "qwen2", "qwen3", "gemma3_full")
EXACT = {"rtol": 1e-4, "atol": 2e-5}


def random_ids(*shape, seed=0):
    return torch.randint(3, 333, shape, generator=torch.Generator().manual_seed(seed))


def told_states(instructed, instruction, texts):
    return instructed.instructed_states(
        instructed.states_below_fork(texts), instructed.read_instruction(instruction)
    )


@torch.no_grad()
def final_states(model, texts):
    return model.model(input_ids=texts, use_cache=False).last_hidden_state


@torch.no_grad()
def run_layers(model, hidden, first, stop, allowed):
    """Decoder layers on [1, T, H] with a mask [T, T] of what each token looks at, positions from 0."""
    decoder, length = model.model, hidden.shape[1]
    mask = torch.zeros(length, length).masked_fill(~allowed, torch.finfo(torch.float32).min)
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


@torch.no_grad()
def slow_states(model, fork, instruction, text):
    """h_T [T, H]: below the fork two texts, above it one."""
    parts = []
    for part in (instruction, text):
        ids = torch.tensor([list(part)])
        causal = torch.ones(len(part), len(part), dtype=torch.bool).tril()
        parts.append(run_layers(model, model.model.embed_tokens(ids), 0, fork, causal))
    both = torch.cat(parts, dim=1)
    causal = torch.ones(both.shape[1], both.shape[1], dtype=torch.bool).tril()
    num_layers = model.config.num_hidden_layers
    return model.model.norm(run_layers(model, both, fork, num_layers, causal))[
        0, len(instruction) :
    ]


@pytest.mark.parametrize("family", FULL_ATTENTION)
def test_forked_at_the_first_layer_it_is_the_backbone_with_the_instruction_in_the_text(family):
    model = tiny.model(family)
    instruction, texts = random_ids(7), random_ids(2, 11, seed=1)
    found = told_states(InstructedBackbone(model, 0), instruction.tolist(), texts)
    whole = final_states(model, torch.cat((instruction.expand(2, -1), texts), dim=1))
    torch.testing.assert_close(found, whole[:, 7:], **EXACT)


@pytest.mark.parametrize("fork", [1, 2, 3])
@pytest.mark.parametrize("family", FULL_ATTENTION)
def test_forked_higher_the_text_meets_the_instruction_from_there_up(family, fork):
    model = tiny.model(family)
    instruction, texts = random_ids(5).tolist(), random_ids(2, 9, seed=1)
    found = told_states(InstructedBackbone(model, fork), instruction, texts)
    for row, text in zip(found, texts.tolist(), strict=True):
        torch.testing.assert_close(row, slow_states(model, fork, instruction, text), **EXACT)


@pytest.mark.parametrize("fork", [0, 2])
def test_the_base_stream_knows_nothing_of_it(fork):
    model, texts = tiny.model("llama"), random_ids(2, 9)
    instructed = InstructedBackbone(model, fork)
    forked = instructed.states_below_fork(texts)
    before = instructed.base_states(forked)
    told = instructed.instructed_states(forked, instructed.read_instruction([5, 6, 7]))
    assert (told - before).abs().max() > 0.1
    assert torch.equal(instructed.base_states(forked), before)
    torch.testing.assert_close(before, final_states(model, texts), **EXACT)


def test_the_backbone_is_left_as_it_was():
    model, texts = tiny.model("qwen3"), random_ids(1, 6)
    before, config = final_states(model, texts), model.config.to_dict()
    told_states(InstructedBackbone(model, 2), [4, 5], texts)
    assert torch.equal(final_states(model, texts), before)
    assert model.config.to_dict() == config
    assert len(model.model.layers) == 4


def test_a_prefix_serves_many_texts_and_is_not_changed_by_them():
    instructed = InstructedBackbone(tiny.model("qwen2"), 1)
    prefix = instructed.read_instruction([9, 8, 7, 6])
    assert isinstance(prefix, InstructionPrefix)
    assert prefix.length == 4
    assert len(prefix.keys) == len(prefix.values) == 3  # the layers above the fork
    saved = [key.clone() for key in prefix.keys]
    forked = instructed.states_below_fork(random_ids(3, 5))
    first = instructed.instructed_states(forked, prefix)
    assert torch.equal(instructed.instructed_states(forked, prefix), first)
    assert all(map(torch.equal, saved, prefix.keys))


def test_rows_do_not_see_each_other():
    instructed, texts = InstructedBackbone(tiny.model("llama"), 2), random_ids(2, 8)
    both = told_states(instructed, [3, 4, 5], texts)
    for row, text in zip(both, texts, strict=True):
        torch.testing.assert_close(row, told_states(instructed, [3, 4, 5], text[None])[0], **EXACT)


def test_padding_on_the_right_changes_no_real_position():
    instructed, texts = InstructedBackbone(tiny.model("llama"), 2), random_ids(1, 8)
    padded = torch.cat((texts, torch.full((1, 3), 2)), dim=1)
    torch.testing.assert_close(
        told_states(instructed, [3, 4], padded)[:, :8],
        told_states(instructed, [3, 4], texts),
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
    assert instructed.read_instruction([3, 4, 5]).length == 3
