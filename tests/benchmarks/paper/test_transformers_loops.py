"""The benchmarks' Transformers loops: both decode by the rule, and by the same one."""

from __future__ import annotations

import pytest
import tiny
import torch
from reference_guidance import guide_row

from benchmarks.paper import transformers_loops

W = torch.tensor([0.7, -1.3])
PROMPTS = torch.randint(3, 259, (3, 20), generator=torch.Generator().manual_seed(3)).tolist()
NEW = 12  # prompt and answer are longer than the sliding window
BETA, TOP_K = 2.0, 10


pytestmark = pytest.mark.usefixtures("one_thread")


def persrm(family="llama", std=0.1):
    return tiny.persrm(family, 2, ("helpful", "humor"), std)


def paper(base, model, prompt, own=None, tokenizers=(None, None), **changes):
    settings = {"beta": BETA, "top_k": TOP_K, "max_new_tokens": NEW, **changes}
    return transformers_loops.paper_loop(
        base, tokenizers[0], model, tokenizers[1], prompt, own, W, **settings
    )


def cached(base, model, **changes):
    settings = {"beta": BETA, "top_k": TOP_K, "max_new_tokens": NEW, **changes}
    return transformers_loops.cached_loop(base, model, PROMPTS, W, **settings)


def greedy(model, prompt):
    """The model's own answer, one argmax after the other."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(NEW):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def other_tokenizer():
    """Byte pairs, so no candidate's text has the base's ids, and a <bos> before every text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "<unk>", "<eos>", "<s>", "<bos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(["the cat sat on the mat, and then the rat ran at the cat"], trainer)
    bos = made.token_to_id("<bos>")
    made.post_processor = processors.TemplateProcessing("<bos> $A", special_tokens=[("<bos>", bos)])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<bos>", eos_token="<eos>")


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("other_base", [True, False])
def test_both_loops_write_the_same_tokens(family, other_base):
    model = persrm(family)
    base = tiny.model(family, seed=5) if other_base else model.backbone
    batch = cached(base, model)
    for twice in (True, False):
        assert batch == [paper(base, model, prompt, twice=twice) for prompt in PROMPTS]
    assert batch != cached(base, model, beta=0.0)
    if not other_base:
        assert batch == cached(base, model, shared_backbone=True)
        assert batch[0] == paper(base, model, PROMPTS[0], shared_backbone=True)


@pytest.mark.parametrize("changes", [{"beta": 0.0}, {"top_k": 1}, {"std": 0.0}])
@pytest.mark.parametrize("other_base", [True, False])
def test_without_strength_choice_or_adapter_the_base_answers(changes, other_base):
    changes = dict(changes)
    model = persrm(std=changes.pop("std", 0.1))
    seed = 5 if other_base else 0  # the backbone's
    base = tiny.model("llama", seed) if other_base else model.backbone
    expected = [greedy(tiny.model("llama", seed), prompt) for prompt in PROMPTS]
    assert cached(base, model, **changes) == expected
    assert [paper(base, model, prompt, **changes) for prompt in PROMPTS] == expected


def test_a_step_takes_the_best_score_of_the_rules_plain_twin():
    model, base = persrm(), tiny.model("llama", seed=5)
    own = PROMPTS[1][:7]
    with torch.no_grad():
        z_B = base(input_ids=torch.tensor([PROMPTS[0]])).logits[0, -1]
        h_B, h_T = (h[0, -1] for h in model.hidden_twice(torch.tensor([own])))
        reward = model.rewards(h_B, h_T, torch.arange(len(z_B)), W)
    expected = int(guide_row(z_B, reward, BETA, TOP_K).argmax())
    assert expected != int(z_B.argmax())
    assert paper(base, model, PROMPTS[0], own, max_new_tokens=1) == [expected]


def test_each_row_may_have_its_own_weights():
    model = persrm()
    settings = {"beta": BETA, "top_k": TOP_K, "max_new_tokens": NEW}
    mixed = torch.stack((W, torch.zeros(2), -W))
    rows = transformers_loops.cached_loop(model.backbone, model, PROMPTS, mixed, **settings)
    for w, prompt, row in zip(mixed, PROMPTS, rows, strict=True):
        assert transformers_loops.cached_loop(model.backbone, model, [prompt], w, **settings) == [
            row
        ]


def test_another_tokenizer_scores_the_first_token_of_each_candidates_own_text():
    model, base = persrm(), tiny.model("llama", seed=5)
    ours, theirs = tiny.tokenizer(), other_tokenizer()
    prompt = ours.encode("<bos>the cat sat on<eos>")
    seen = theirs.encode("the cat sat on")
    assert seen[0] == theirs.bos_token_id
    assert len(seen) < len(prompt)
    with torch.no_grad():
        z, ids = base(input_ids=torch.tensor([prompt])).logits[0, -1].topk(20)
        h_B, h_T = (h[0, -1] for h in model.hidden_twice(torch.tensor([seen])))
        scores = z.tolist()
        for place, token in enumerate(ids.tolist()):
            text = ours.decode([token], skip_special_tokens=True)
            if text:
                first = theirs(text, add_special_tokens=False).input_ids[:1]
                scores[place] += BETA * float(model.rewards(h_B, h_T, torch.tensor(first), W))
    written = paper(base, model, prompt, tokenizers=(ours, theirs), top_k=20)
    assert len(written) == NEW
    assert written[0] == int(ids[torch.tensor(scores).argmax()]) != int(ids[0])


def test_a_candidate_without_text_has_no_token_and_no_reward():
    ours, theirs = tiny.tokenizer(), other_tokenizer()
    (letter,) = ours.encode("a")
    nameless = 1000  # the tokenizer has no text for it
    firsts = transformers_loops.first_tokens(ours, theirs, [ours.eos_token_id, letter, nameless])
    assert firsts == [None, *theirs.encode("a", add_special_tokens=False), None]
    model = persrm()
    with torch.no_grad():
        h_B, h_T = (h[0, -1] for h in model.hidden_twice(torch.tensor(PROMPTS[:1])))
        rewards = transformers_loops._first_rewards(model, h_B, h_T, firsts, W)
    assert rewards[1].abs() > 0.01
    assert rewards[[0, 2]].tolist() == [0.0, 0.0]


def test_a_stop_token_ends_the_papers_loop_and_is_returned():
    model = persrm()
    written = paper(model.backbone, model, PROMPTS[0])
    end = written.index(written[4]) + 1
    assert paper(model.backbone, model, PROMPTS[0], stop_ids={written[4]}) == written[:end]


def test_the_adapter_is_on_afterwards_as_it_was_before():
    model = persrm()
    with torch.no_grad():
        before = model.hidden_twice(torch.tensor(PROMPTS))[1]
        cached(model.backbone, model)
        paper(model.backbone, model, PROMPTS[0])
        assert torch.equal(model.hidden_twice(torch.tensor(PROMPTS))[1], before)


def test_what_a_loop_cannot_do_is_refused():
    model, base = persrm(), tiny.model("llama", seed=5)
    with pytest.raises(ValueError, match="persrm_prompt_ids=None"):
        paper(base, model, PROMPTS[0], PROMPTS[1], (tiny.tokenizer(), other_tokenizer()))
    with pytest.raises(ValueError, match="base has to be persrm.backbone"):
        cached(base, model, shared_backbone=True)
    with pytest.raises(ValueError, match="read the same tokens"):
        paper(model.backbone, model, PROMPTS[0], PROMPTS[1], shared_backbone=True)
    with pytest.raises(ValueError, match="of one length"):
        transformers_loops.cached_loop(
            base, model, [[5], [6, 7]], W, beta=1.0, top_k=5, max_new_tokens=1
        )
