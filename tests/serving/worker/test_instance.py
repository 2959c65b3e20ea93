"""Instance: model and processor share one, several in a process stay apart, and it is freed with them."""

from __future__ import annotations

import gc
from dataclasses import replace
from weakref import ref

import pytest
import tiny
import torch

pytest.importorskip("vllm")

from pad_vllm.adapter.adapter_folder import load_adapter
from pad_vllm.engines.reward_engine import ZeroRewards
from pad_vllm.engines.shared.lm_head_rows import LmHeadRows
from pad_vllm.engines.shared.shared_rewards import SharedRewards
from pad_vllm.request_limits import InstructionDefaults
from pad_vllm.serving.start.served_adapters import adapter_limits
from pad_vllm.serving.worker import runtime_adapter_updates
from pad_vllm.serving.worker.accepted_limits import AcceptedLimits
from pad_vllm.serving.worker.instance import find_instance, get_or_create_instance, report_outcomes
from pad_vllm.serving.worker.outcome_table import OutcomeTable
from pad_vllm.serving.worker.step_counters import StepCounters

CPU = torch.device("cpu")
H, D = 64, 2


def register_processor(instance, limits=None):
    table = OutcomeTable(CPU, 2)
    instance.register_processor(
        outcome_table=table,
        step_counters=StepCounters(CPU, instance.failure_log, table),
        accepted_limits=AcceptedLimits(limits),
    )
    return table


def test_loader_and_processor_of_an_instance_count_into_one():
    first, second, other = map(get_or_create_instance, ("one", "one", "other"))
    assert first.failure_log is second.failure_log
    assert first.failure_log is not other.failure_log


@pytest.mark.parametrize("first", ["model", "processor"])
def test_model_and_processor_find_the_same_instance_in_either_order(first):
    engine = ZeroRewards()
    instance = get_or_create_instance(first)
    if first == "model":
        instance.register_engine(engine)
    register_processor(instance).assign_row("a")
    get_or_create_instance(first).register_engine(engine)
    assert find_instance(first).engine is engine
    outcomes, counts = report_outcomes(first, ["a", "b"])
    assert outcomes == [{"guided_tokens": 0, "unguided_tokens": 0, "stopped": False}, None]
    assert counts["rows"] == 0


def test_an_instance_dies_with_its_holders_and_its_engine_with_the_model():
    instance, engine = get_or_create_instance("one"), ZeroRewards()
    instance.register_engine(engine)
    table = ref(register_processor(instance))
    gc.disable()  # freed by their last holder: no cycle keeps the device's memory
    try:
        del engine
        assert instance.engine is None
        del instance
        assert table() is None
    finally:
        gc.enable()
    assert find_instance("one") is None


@pytest.fixture
def folder(tmp_path):
    base = tiny.checkpoint("llama", tmp_path / "base")
    return tiny.write_adapter(
        base, tmp_path / "adapter", fork_layer=4, std=0.1, dimensions=("warm", "brief")
    )


@pytest.fixture
def served(folder):
    """An instance whose engine has the heads of one adapter with two dimensions."""
    instance, adapter = get_or_create_instance("served"), load_adapter(folder)
    engine = SharedRewards(adapter.heads, LmHeadRows(torch.zeros(3, H)))
    instance.register_engine(engine)
    register_processor(instance, adapter_limits(adapter.config, 10.0, 100))
    instance.model = engine  # which owns it
    return instance


def test_an_adapter_is_accepted_once_its_heads_are_there_and_until_it_is_removed(served, folder):
    digest, accepted = load_adapter(folder).digest, served.accepted_limits
    accepted.limits = replace(accepted.limits, instructions=InstructionDefaults())
    add = runtime_adapter_updates.add_adapter
    assert "changed while" in add("served", "more#1", D, str(folder), "another")
    assert accepted.limits.other_adapters == {}
    assert add("served", "more#1", D, str(folder), digest) is None
    own = replace(accepted.limits, other_adapters={})
    assert accepted.limits.other_adapters == {"more#1": replace(own, first_dimension=D)}
    remove = runtime_adapter_updates.remove_adapter
    assert remove("served", "more#1", D, D, D) is None
    assert accepted.limits.other_adapters == {}


def test_what_an_update_raises_comes_back_as_text(served, folder):
    add = runtime_adapter_updates.add_adapter
    assert "AdapterError" in add("served", "more#1", D, str(folder / "missing"), "")
    assert "no logits processor" in add("nobody", "more#1", D, str(folder), "")
    other = ZeroRewards()
    served.register_engine(other)
    assert "takes no adapters" in add("served", "more#1", D, str(folder), "")
