"""One guided step on stand-in tensors: what an engine without rewards does to answers."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

pytest.importorskip("vllm")

from pad_vllm import guidance
from pad_vllm.engines.resident_engine import ResidentRewards
from pad_vllm.engines.reward_engine import GuidedRequest
from pad_vllm.params import Guidance
from pad_vllm.serving.worker.batch_slots import BatchSlots
from pad_vllm.serving.worker.guided_step import GuidedStep, StepTools
from pad_vllm.serving.worker.instance import Instance
from pad_vllm.serving.worker.outcome_table import OutcomeTable
from pad_vllm.serving.worker.step_counters import StepCounters
from pad_vllm.text.token_alignment import AlignedTokens
from pad_vllm.vllm_api.patches.draft_rows import LogitsRows

CPU = torch.device("cpu")
END = 5


def step_tools(num_token_columns, *, max_rows=8, stop=False):
    """What GuidedStep works with, without a reward engine."""
    instance, table = Instance(), OutcomeTable(CPU, max_rows)
    return StepTools(
        rule=guidance,
        instance=instance,
        outcome_table=table,
        step_counters=StepCounters(CPU, instance.failure_log, table),
        token_reader=None,
        num_token_columns=num_token_columns,
        device=CPU,
        end_tokens=(END,),
        forced_eos_token_id=END if stop else None,
        reasoning_rows=None,
    )


def guided_rows(requests):
    """Of requests in the first slots."""
    slots = BatchSlots(CPU, lambda _: None)
    for slot, request in enumerate(requests):
        slots.assign(slot, request)
    return slots.guided_rows(np.arange(len(requests)))


def run_step(tools, logits, guided):
    rows = LogitsRows(guided.slots.numpy(), 0, len(logits))
    GuidedStep(tools, logits=logits, guided=guided, logits_rows=rows, ctx=None).run()


class SlowAligner:
    """Finishes the prompt [7] only when it may."""

    def __init__(self):
        self.may = threading.Event()

    def start(self, prompt, preference=""):
        if list(prompt) == [7]:
            assert self.may.wait(10)
        return AlignedTokens(prompt)


def first_is_best(requests):
    """A reward for the base's second candidate that makes it the first."""
    rewards = torch.zeros(len(requests), 3)
    rewards[:, 1] = 100.0
    return rewards


@pytest.mark.parametrize("stop", [False, True])
def test_an_answer_whose_prompt_is_late_goes_on_unguided_or_ends(stop):
    aligner = SlowAligner()
    tools = step_tools(12, stop=stop)
    failure_log = tools.instance.failure_log
    engine = ResidentRewards(aligner, first_is_best, failure_log, longest_prompt_wait_s=0.05)
    tools.instance.register_engine(engine)
    requests = [
        GuidedRequest(Guidance((1.0,), 1.0, 3), [token], 1, tools.outcome_table.assign_row(key))
        for token, key in ((6, "ready"), (7, "late"))
    ]
    for request in requests:
        engine.on_request_joined(request)
    guided, logits = guided_rows(requests), torch.arange(24.0).view(2, 12)

    def step(*tokens_and_positions, masked=()):
        engine.receive(torch.tensor(tokens_and_positions))
        written = logits.clone()
        written[:, masked] = float("-inf")
        run_step(tools, written, guided)
        return written

    first = step((6, 0), (7, 0), masked=[END])  # as min_tokens does
    assert first[0].argmax() == 10
    assert first[1].argmax() == 11
    aligner.may.set()
    requests[1].engine_state.opened.result(10)
    second = step((10, 1), (11, 1))
    assert second[0].argmax() == 10
    # The end is no candidate of a guided row, and yet the answer ends.
    assert second[1].argmax() == (END if stop else 10)
    ready, late = tools.outcome_table.pop_outcomes(["ready", "late"])
    assert ready == {"guided_tokens": 2, "unguided_tokens": 0, "stopped": False}
    assert late == {"guided_tokens": 1, "unguided_tokens": 1, "stopped": stop}
    assert tools.step_counters.take_counts()["failures"] == {"late prompt": 1}
