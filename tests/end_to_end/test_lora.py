"""LoRAs of the base beside heads only: one batch, guided, plain, under a LoRA, and both; each answers as it
does without the others. Guided under the LoRA that an adapter was trained with are the tokens of its twin,
which has the LoRA merged. On both runners.
"""

from __future__ import annotations

import pytest
import tiny
from engine_processes import V2_ENV, engines, pad, plain
from mixed_requests import greedy, tokens
from pytorch_twin import Twin

from pad_vllm.training.merged_base import merge_lora

pytestmark = pytest.mark.engine

PROMPTS = [[3 + (7 * i + length) % 256 for i in range(length)] for length in (3, 40, 17)]
GUIDED = {"pad_weights": "helpful=1,humor=-1"}
# On CPUs vLLM gives rows without a LoRA the one in the last slot: the third stays empty.
LORA = {"enable_lora": True, "max_lora_rank": 8, "max_loras": 3}


@pytest.fixture(
    scope="module",
    params=[
        "v2 llama",
        pytest.param("v1 qwen2", marks=pytest.mark.exhaustive),
    ],  # qwen2's lm_head is tied
)
def case(request):
    """The runner, and the family of the base."""
    return request.param.split()


@pytest.fixture(scope="module")
def made(case, tmp_path_factory):
    """The base, an adapter with heads only, two LoRAs of the base as requests name them, the base with the
    first one merged into it, and an adapter with heads only for that.
    """
    root, (_, family) = tmp_path_factory.mktemp("lora"), case
    base = tiny.checkpoint(family, root / "base")
    layers = tiny.config(family).num_hidden_layers
    adapter = tiny.write_adapter(base, root / "adapter", fork_layer=layers, std=0.2)
    folders = [tiny.write_lora(base, root / f"lora{seed}", seed=seed) for seed in (1, 2)]
    loras = [[f"lora{seed}", seed, str(folder)] for seed, folder in enumerate(folders, 1)]
    merge_lora(base, folders[0], root / "merged")
    under = tiny.write_adapter(
        root / "merged", root / "under", fork_layer=layers, std=0.2, beta=1.0, seed=2
    )
    return base, adapter, loras, root / "merged", under


@pytest.fixture(scope="module")
def runs(case, made):
    """The answers of the mixed batch, of one kind alone on an engine without LoRAs, and of plain vLLM."""
    base, adapter, loras, merged, under = made
    kinds = {
        "guided": [greedy(prompt, 16, GUIDED) for prompt in PROMPTS],
        "unguided": [greedy(prompt, 16) for prompt in PROMPTS],
        "lora": [{**greedy(prompt, 16), "lora": lora} for prompt in PROMPTS for lora in loras],
        "both": [
            {**greedy(prompt, 16, GUIDED | {"pad_adapter": "under"}), "lora": loras[0]}
            for prompt in PROMPTS
        ],
    }
    mixed = [one for some in zip(*kinds.values(), strict=False) for one in some]
    mixed += kinds["lora"][len(PROMPTS) :]
    of = [next(kind for kind, some in kinds.items() if one in some) for one in mixed]
    jobs = [
        {
            "llm": pad(base, adapter, {"adapters": {"under": str(under)}}, **LORA),
            "requests": mixed,
            "record": True,
        },
        {"llm": pad(base, adapter), "requests": [*kinds["guided"], *kinds["unguided"]]},
        {"llm": plain(base, **LORA), "requests": kinds["lora"]},
    ]
    together, bare, vllm = engines(jobs, V2_ENV if case[0] == "v2" else None)
    assert together["runner"] == case[0]
    said = dict.fromkeys(kinds)
    for kind, one in zip(of, tokens(together), strict=True):
        said[kind] = [*(said[kind] or ()), one]
    alone = tokens(bare)[: len(PROMPTS)], tokens(bare)[len(PROMPTS) :], tokens(vllm)
    places = [place for place, kind in enumerate(of) if kind == "both"]
    parts = {part: [together[part][place] for place in places] for part in ("outputs", "steps")}
    asked = [greedy(prompt, 16, GUIDED) for prompt in PROMPTS]
    return {
        "together": said,
        "alone": dict(zip(kinds, alone, strict=False)),
        "twin": Twin(merged, under).compare(asked, parts),
    }


@pytest.mark.parametrize("kind", ["guided", "unguided", "lora"])
def test_each_answers_as_it_does_without_the_others(runs, kind):
    assert runs["together"][kind] == runs["alone"][kind]


def test_guided_under_the_lora_of_the_training_are_the_tokens_of_base_and_lora_merged(runs):
    found = runs["twin"]
    assert found.differences == []
    assert found.ties <= 1
    assert found.rewards > 0
    assert found.reward_error < 1e-3


def test_they_are_different_answers(runs):
    every = [tuple(one) for some in runs["together"].values() for one in some]
    assert len(set(every)) == len(every)
