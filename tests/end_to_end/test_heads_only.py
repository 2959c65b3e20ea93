"""Heads only, with gates and without: what the twin says, on both runners, and on architectures that cannot
be forked.
"""

from __future__ import annotations

import pytest
import tiny
from engine_processes import V2_ENV, EngineFailed, engine, engines, pad
from mixed_requests import mixed_batch, tokens
from pytorch_twin import require_said

pytestmark = pytest.mark.engine

LENGTHS = (3, 40)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(name, runner) -> (checkpoint, adapter, requests, result); llama on both runners, others on V1."""
    root, made = tmp_path_factory.mktemp("heads"), {}
    for name in ("llama", "gpt2", "mixtral"):
        write = tiny.other_checkpoint if name in tiny.OTHERS else tiny.checkpoint
        base = write(name, root / name)
        layers = tiny.OTHERS.get(name, {}).get("n_layer", 4)
        adapter = tiny.write_adapter(
            base,
            root / f"{name}_adapter",
            fork_layer=layers,
            std=0.15,
            beta=1.0,
            constants=True,
            gates=name == "llama",
        )
        prompts = [[3 + (7 * i + length) % 256 for i in range(length)] for length in LENGTHS]
        made[name] = (base, adapter, mixed_batch(adapter, prompts, 16))
    jobs = [
        {"llm": pad(base, adapter), "requests": requests, "record": True}
        for base, adapter, requests in made.values()
    ]
    found = {
        (name, "v1"): (*made[name], result)
        for name, result in zip(made, engines(jobs), strict=True)
    }
    (second,) = engines(jobs[:1], V2_ENV)
    return {**found, ("llama", "v2"): (*made["llama"], second)}


CASES = [("llama", "v1"), ("llama", "v2"), ("gpt2", "v1"), ("mixtral", "v1")]


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_heads_only_say_what_their_twin_says(runs, case):
    base, adapter, requests, result = runs[case]
    assert result["runner"] == case[1]
    require_said(f"heads only, {case}", base, adapter, requests, result)


def test_both_runners_say_the_same(runs):
    assert tokens(runs["llama", "v1"][3]) == tokens(runs["llama", "v2"][3])


def test_a_model_that_scales_its_logits_is_refused_by_name(tmp_path):
    base = tiny.other_checkpoint("granite", tmp_path / "granite")
    layers = tiny.OTHERS["granite"]["num_hidden_layers"]
    adapter = tiny.write_adapter(base, tmp_path / "adapter", fork_layer=layers, std=0.1)
    with pytest.raises(EngineFailed, match="GraniteForCausalLM are not lm_head times the hidden"):
        engine({"llm": pad(base, adapter), "requests": []})
