"""What told answers keep within a limit."""

from types import SimpleNamespace

import pytest
import torch

from benchmarks.quality.reachable_way import LIMITS, GapReader, TokenGaps, reachable_way, table
from pad_vllm.steering.guided_answers import DrawnAnswer
from pad_vllm.text.conversation import Conversation


def gaps(values, ranks, shares):
    return TokenGaps(torch.tensor(values), torch.tensor(ranks), torch.tensor(shares))


def test_the_way_lacks_what_lies_outside_the_limit():
    plain = [gaps([-0.5, -0.5], [0, 0], [1.0, 1.0])] * 3
    told = [gaps([0.0, 1.0], [0, 40], [1.0, 0.02])] * 3
    whole = reachable_way(plain, told, LIMITS["50 candidates"])
    part = reachable_way(plain, told, LIMITS["20 candidates"])
    assert whole == [1.0, 1.0, 1.0]
    assert part == [0.5, 0.5, 0.5]  # from -0.5, to 0.5 told, to 0 within
    assert reachable_way(plain, told, LIMITS["min-p 0.01"])[0] == 1.0
    assert reachable_way(plain, told, LIMITS["min-p 0.03"])[0] == 0.5


def test_gaps_are_of_the_answers_tokens():
    logits = {0: [0.0, 1.0, 2.0], 1: [2.0, 1.0, 0.0]}  # the plain prompt's and the told one's

    class Tokenizer:
        chat_template = None

        def apply_chat_template(self, messages, **_):
            return str(messages)

        def __call__(self, text, **_):
            return {"input_ids": [int("please" in text)]}

    def model(ids, logits_to_keep):
        row = torch.tensor(logits[int(ids[0, 0])])
        return SimpleNamespace(logits=row.expand(1, logits_to_keep, 3))

    prompt = Conversation.model_validate("question")
    read = GapReader(model, Tokenizer()).read(prompt, DrawnAnswer("", (0, 2)), "please")
    assert read.gap.tolist() == pytest.approx([2.0, -2.0])
    assert read.rank.tolist() == [2, 0]
    assert read.share.tolist() == pytest.approx([torch.tensor(-2.0).exp().item(), 1.0])


def test_the_table_has_a_row_a_limit():
    rows = {"warm": {"way": {name: [0.5, 0.4, 0.6] for name in LIMITS}}}
    assert len(table(rows)) == 2 + len(LIMITS)
