"""Reward models read prompt and reply: as a conversation where they have a chat template, else as a pair."""

from __future__ import annotations

import pytest
import tiny
import torch

from pad_vllm.evaluation.classifier_scorer import ClassifierScorer
from pad_vllm.text.conversation import Conversation

SHORT = [Conversation.model_validate(text) for text in ("Why?", "What is a fork?")]
TURNS = [
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi"},
    {"role": "user", "content": "How so?"},
]
REPLIES = ["So it is.", "A branching."]


def reward_model(folder, labels=("LABEL_0",), *, chat=True, positions=256):
    """A folder with a tiny random decoder, one logit a label, as RLHF trains them."""
    from transformers import LlamaForSequenceClassification

    torch.manual_seed(0)
    names = dict(enumerate(labels))
    config = tiny.config(
        "llama", id2label=names, initializer_range=0.5, max_position_embeddings=positions
    )
    config.pad_token_id = 2
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer = tiny.tokenizer()
    if not chat:
        tokenizer.chat_template = None
    tokenizer.model_max_length = positions
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_a_reward_model_scores_the_reply_in_its_conversation(tmp_path):
    scorer = ClassifierScorer(reward_model(tmp_path), reads_prompt=True)
    prompt = Conversation.model_validate(TURNS)
    tokenizer, model = scorer._loaded.tokenizer, scorer._loaded.model
    turns = [*TURNS, {"role": "assistant", "content": REPLIES[0]}]
    ids = tokenizer.apply_chat_template(turns, return_dict=True, return_tensors="pt")["input_ids"]
    logit = model(ids.to(model.device)).logits.item()

    assert scorer([prompt], REPLIES[:1]) == pytest.approx([logit], abs=1e-5)
    assert scorer(SHORT, REPLIES[:1] * 2)[0] != pytest.approx(scorer(SHORT, REPLIES[:1] * 2)[1])


def test_a_batch_of_conversations_scores_as_they_do_one_by_one(tmp_path):
    scorer = ClassifierScorer(reward_model(tmp_path), reads_prompt=True)
    alone = [scorer([p], [t])[0] for p, t in zip(SHORT, REPLIES, strict=True)]

    assert scorer(SHORT, REPLIES) == pytest.approx(alone, abs=1e-5)


def test_without_a_chat_template_prompt_and_reply_are_a_pair(tmp_path):
    scorer = ClassifierScorer(reward_model(tmp_path, chat=False), reads_prompt=True)
    tokenizer, model = scorer._loaded.tokenizer, scorer._loaded.model
    pair = tokenizer("Why?", REPLIES[0], return_tensors="pt").to(model.device)

    assert scorer(SHORT[:1], REPLIES[:1]) == pytest.approx([model(**pair).logits.item()], abs=1e-5)


def test_what_is_too_long_loses_its_beginning_and_not_the_reply(tmp_path):
    scorer = ClassifierScorer(reward_model(tmp_path, positions=48), reads_prompt=True)
    long = [Conversation.model_validate("very " * 40 + end) for end in ("long", "long")]

    first, second = scorer(long, REPLIES)
    assert first != pytest.approx(second)


def test_a_label_may_be_named_and_must_be_where_there_are_several(tmp_path):
    folder = reward_model(tmp_path, ("helpful", "honest"))

    assert ClassifierScorer(folder, "honest", reads_prompt=True)(SHORT, REPLIES)
    with pytest.raises(ValueError, match="helpful, honest.*reward:.*#helpful"):
        ClassifierScorer(folder, reads_prompt=True)(SHORT, REPLIES)


def test_a_classifier_of_texts_reads_the_reply_alone(tmp_path):
    scorer = ClassifierScorer(reward_model(tmp_path, ("a", "b"), chat=False))

    same = scorer(SHORT, REPLIES[:1] * 2)
    assert same[0] == pytest.approx(same[1])


def test_a_reward_model_named_as_a_classifier_of_texts_is_warned_of(tmp_path, caplog):
    ClassifierScorer(reward_model(tmp_path))(SHORT, REPLIES)

    assert "one logit and a chat template" in caplog.text
    assert "reward:" in caplog.text
