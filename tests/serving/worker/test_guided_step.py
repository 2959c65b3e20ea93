"""One guided step on stand-in tensors: what late rewards do to answers, and how much memory it takes."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

pytest.importorskip("vllm")

from pad_vllm import guidance
from pad_vllm.answer_tokens import AnswerTokens
from pad_vllm.engines.resident_engine import ResidentRewards
from pad_vllm.engines.reward_engine import GuidedRequest, RewardEngine
from pad_vllm.params import Guidance
from pad_vllm.serving.worker.batch_slots import BatchSlots
from pad_vllm.serving.worker.guided_step import GuidedStep, StepTools
from pad_vllm.serving.worker.instance import Instance
from pad_vllm.serving.worker.outcome_table import OutcomeTable
from pad_vllm.serving.worker.step_counters import StepCounters
from pad_vllm.text.token_alignment import AlignedTokens
from pad_vllm.vllm_api.patches.draft_rows import LogitsRows

CPU = torch.device("cpu")
END, NEG_INF = 5, float("-inf")


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


class PeakBytes(TorchDispatchMode):
    """The most bytes of tensors, made inside, that were alive after any operation."""

    def __init__(self, *known):
        super().__init__()
        self._known = {tensor.untyped_storage()._cdata for tensor in known}
        self._alive, self.peak = {}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self._alive = {ref: size for ref, size in self._alive.items() if not ref.expired()}
        for tensor in tree_leaves(result):
            storage = tensor.untyped_storage() if isinstance(tensor, torch.Tensor) else None
            if storage is not None and storage._cdata not in self._known:
                self._alive[StorageWeakRef(storage)] = storage.nbytes()
        self.peak = max(self.peak, sum(self._alive.values()))
        return result


class NoRewards(RewardEngine):
    """Rewards of zero."""

    def rewards(self, step):
        return torch.zeros(step.ids.shape)


@pytest.mark.parametrize("num_guided", [256, 200])
@pytest.mark.parametrize("num_token_columns", [32_768, 32_700])
def test_a_step_copies_no_logits_but_a_few_rows_at_once(monkeypatch, num_guided, num_token_columns):
    monkeypatch.setattr(guidance, "_MAX_COPY_NUMEL", 1 << 18)  # 1 MiB of float32
    K, tools, engine = 20, step_tools(num_token_columns, max_rows=256, stop=True), NoRewards()
    tools.instance.register_engine(engine)
    kinds = Guidance((1.0,), 1.0, K, min_p=0.1)
    requests = [
        GuidedRequest(kinds, outcome_row=tools.outcome_table.assign_row(None))
        for _ in range(num_guided)
    ]
    guided, logits = guided_rows(requests), torch.randn(256, 32_768)
    run_step(tools, logits.clone(), guided)  # buffers that stay are made in the first step
    with PeakBytes(logits) as memory:
        run_step(tools, logits, guided)
    assert (logits[:num_guided] > NEG_INF).sum(1).tolist() == [K] * num_guided
    assert logits.nbytes == 32 << 20
    assert memory.peak < (2 << 20) + 100 * num_guided * K


class AnswersOfTwo:
    """The token reader of two rows whose answers are 1 2 3 1 2: a 3 would go on with a loop."""

    def read(self, guided, ctx):
        text = torch.tensor([[1, 2, 3, 1, 2]] * 2)
        return AnswerTokens(text, torch.tensor([0, 0]), torch.tensor([5, 5]))


class SomeRewards(RewardEngine):
    """0 for the first row, NaN for the second."""

    def rewards(self, step):
        return torch.tensor([[0.0], [float("nan")]]).expand(step.ids.shape)


def test_a_loop_is_paid_by_guided_rows_and_no_row_that_stays_unguided_is_changed():
    from dataclasses import replace

    tools = replace(step_tools(8), token_reader=AnswersOfTwo())
    engine = SomeRewards()
    tools.instance.register_engine(engine)
    asked = Guidance((1.0,), beta=1.0, top_k=8, loop_price=0.5)
    guided = guided_rows([GuidedRequest(asked), GuidedRequest(asked, outcome_row=1)])
    before = torch.arange(16.0).view(2, 8)
    logits = before.clone()
    run_step(tools, logits, guided)
    expected = before[0].clone()
    expected[3] -= 0.5  # 1 2 3 is there already: an n-gram of three, the shortest that costs
    assert torch.equal(logits[0], expected)
    assert torch.equal(logits[1], before[1])
