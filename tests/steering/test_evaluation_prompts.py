"""The prompts that ship: as many as is said, all different, none of them one that adapters are trained on."""

from __future__ import annotations

from pad_vllm.steering.evaluation_prompts import JUDGE_PROMPTS, STEERING_PROMPTS
from pad_vllm.training.distillation.distillation_prompts import SHIPPED_PROMPTS
from pad_vllm.training.sampling.sample_responses import read_prompts


def test_none_is_in_two_of_the_files():
    files = {STEERING_PROMPTS: 60, JUDGE_PROMPTS: 40, SHIPPED_PROMPTS: 160}
    texts = [[str(prompt.to_json()).lower() for prompt in read_prompts(file)] for file in files]
    assert [len(one) for one in texts] == list(files.values())
    assert len({text for one in texts for text in one}) == sum(files.values())
