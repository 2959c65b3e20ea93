"""Several adapters on one engine: each answers as alone, explained rewards are the twin's; both runners."""

from __future__ import annotations

import pytest
import tiny
import torch
from engine_processes import V2_ENV, engines, pad
from mixed_requests import greedy, tokens

from pad_vllm.adapter.adapter_folder import load_adapter
from pad_vllm.persrm import PersRM
from pad_vllm.steering import token_explanation
from pad_vllm.text.chat_template import load_chat_tokenizer

pytestmark = pytest.mark.engine

PROMPTS = [[3 + (7 * i + length) % 256 for i in range(length)] for length in (3, 40, 17)]
DIMENSIONS = {"first": ("helpful", "brief", "humor"), "second": ("warm", "terse")}
ASKED = {"first": ("helpful=1", "humor=-1,brief=0.5"), "second": ("warm=1", "terse=-1,warm=0.5")}


def requests_for(name, more=()):
    """Every prompt under the weights of an adapter."""
    return [
        greedy(prompt, 24, {"pad_weights": weights, "pad_explain": True, **dict(more)})
        for prompt in PROMPTS
        for weights in ASKED[name]
    ]


@pytest.fixture(scope="module")
def base_and_adapters(tmp_path_factory):
    """The base, and adapters by name."""
    root = tmp_path_factory.mktemp("adapters")
    base = tiny.checkpoint("llama", root / "base")
    layers = tiny.config("llama").num_hidden_layers
    return base, {
        name: tiny.write_adapter(
            base,
            root / name,
            fork_layer=layers,
            std=0.2,
            head_rank=4 + number,
            seed=number,
            dimensions=dimensions,
            constants=bool(number),
            gates=bool(number),
        )
        for number, (name, dimensions) in enumerate(DIMENSIONS.items())
    }


@pytest.fixture(scope="module", params=["v2", pytest.param("v1", marks=pytest.mark.exhaustive)])
def runs(request, base_and_adapters):
    """By adapter alone, and of both: the results; and the runner."""
    base, folders = base_and_adapters
    both = pad(base, folders["first"], {"adapters": {"second": str(folders["second"])}})
    named = [("pad_adapter", "second")]
    mixed = [
        *requests_for("first"),
        *requests_for("second", named),
        *(greedy(p, 24) for p in PROMPTS),
    ]
    jobs = [
        {"llm": pad(base, folders[name]), "requests": requests_for(name)} for name in DIMENSIONS
    ]
    jobs += [{"llm": both, "requests": mixed}]
    first, second, together = engines(jobs, V2_ENV if request.param == "v2" else None)
    assert together["runner"] == request.param
    return {"first": first, "second": second, "both": together}


def test_each_adapter_answers_as_it_does_alone(runs):
    alone = [*tokens(runs["first"]), *tokens(runs["second"])]
    assert tokens(runs["both"])[: len(alone)] == alone
    unguided = tokens(runs["both"])[len(alone) :]
    assert not any(one in alone for one in unguided)


@pytest.mark.parametrize("name", DIMENSIONS)
def test_explained_rewards_are_those_of_the_twin(runs, base_and_adapters, name):
    from transformers import AutoModelForCausalLM

    base, folders = base_and_adapters
    backbone = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapter = load_adapter(folders[name])
    model, tokenizer = (
        PersRM.from_adapter(backbone, adapter),
        load_chat_tokenizer(base, "base", None),
    )
    for request, output in zip(requests_for(name), runs[name]["outputs"], strict=True):
        given = request["sampling"]["extra_args"]["pad_weights"]
        weights = dict(one.split("=") for one in given.split(","))
        w = torch.tensor([float(weights.get(one, 0)) for one in model.dimensions])
        prompt, said = output["prompt_token_ids"], output["token_ids"]
        twin = token_explanation.explain_tokens(
            model, tokenizer, prompt, said, w, adapter.config.top_k
        )
        (told,) = output["pad"]["explained"]
        for one, other in zip(told, twin, strict=True):
            assert one == {**other, "reward": pytest.approx(other["reward"], abs=1e-3)}
