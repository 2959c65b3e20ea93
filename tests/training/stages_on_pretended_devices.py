"""Runs every stage on an accelerator that only knows shapes and devices; prints what each did, as JSON.

    python tests/training/stages_on_pretended_devices.py 1        (or 2: layers 2 and 3 on a second one)

A process of its own, started by test_device_placement.py: it registers a device with PyTorch.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate.utils import send_to_device

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from functools import partial

import tiny

from benchmarks.common.pretended_accelerator import NAME, PretendedAccelerator, register
from pad_vllm.choices.feature_sums import feature_sums
from pad_vllm.evaluation.win_rates_and_fluency import answer_losses
from pad_vllm.instruction import InstructionTokens
from pad_vllm.instruction_prefix import InstructedBackbone
from pad_vllm.persrm import PersRM
from pad_vllm.text.conversation import Conversation
from pad_vllm.training.credit.policy_gradient_step import StepStatistics, taken_reward_advantages
from pad_vllm.training.credit.token_credit import CriticStatistics, critic_prompt
from pad_vllm.training.data.prompt_groups import PREFIX_LENGTHS
from pad_vllm.training.distillation.distillation_examples import DistillationExample
from pad_vllm.training.distillation.prefix_training import (
    PrefixText,
    PrefixTexts,
    sentence_prefix,
    train_prefix,
)
from pad_vllm.training.distillation.prompted_teacher import (
    teacher_candidate_rewards,
    teacher_directions,
)
from pad_vllm.training.distillation.reward_regression import (
    RegressionExample,
    RewardRegression,
    explained_shares,
)
from pad_vllm.training.distillation.ridge_statistics import RidgeStatistics
from pad_vllm.training.objective.candidate_rewards import (
    base_mean_square,
    head_rewards,
    linear_map_rewards,
    persrm_rewards,
    reward_spreads,
)
from pad_vllm.training.objective.fork_cache import compute_responses
from pad_vllm.training.objective.loss_module import (
    PairExample,
    PreferenceObjective,
    cached_feature_sums,
    trunk_hidden,
)
from pad_vllm.training.settings import PrefixSettings, Recipe

SPREAD = {"layers.2": 1, "layers.3": 1, "norm": 1, "lm_head": 1, "head_": 1}
"""Begin of a module's name -> number of its device, where there are two."""

HOOKED = ("embed_tokens", "rotary_emb", "norm", "lm_head")
"""Modules of a device map, beside the layers."""

DIMENSIONS = ("kind", "brief")


def place_of(name: str) -> int:
    """Number of the device of a tensor or module, where there are two."""
    for part in ("lora.", "backbone.", "base_model.", "model."):
        while name.startswith(part):
            name = name.removeprefix(part)
    return next((number for start, number in SPREAD.items() if name.startswith(start)), 0)


def make_model(accelerator: PretendedAccelerator, devices: int, fork_layer: int) -> PersRM:
    """A tiny bfloat16 model without numbers, with Accelerate's way of moving states where it is spread."""
    with torch.device("meta"):
        backbone = tiny.model("llama").to("meta", torch.bfloat16)
        model = PersRM(
            backbone,
            fork_layer=fork_layer,
            dimensions=DIMENSIONS,
            gates=fork_layer == 4,
            constants=fork_layer == 4,
        )
    number = place_of if devices == 2 else lambda name: 0
    accelerator.place(model, lambda name: f"{NAME}:{number(name)}")
    if devices == 2:
        for name, module in model.backbone.named_modules():
            if name.removeprefix("model.") in HOOKED or (
                name.startswith("model.layers.") and name.count(".") == 2
            ):
                module.register_forward_pre_hook(
                    partial(_send, f"{NAME}:{place_of(name)}"), with_kwargs=True
                )
    return model


def _send(device, module, args, kwargs):
    """What AlignDevicesHook does before a module's forward."""
    skipped = ["past_key_values", "shared_kv_states"]
    return send_to_device(args, device), send_to_device(kwargs, device, skip_keys=skipped)


def example(key: str) -> DistillationExample:
    """A prompt with two answers, scores and instructions."""
    scores = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).unsqueeze(1)
    return DistillationExample(
        prompt_key=key,
        source="s",
        prompt_ids=[5, 6, 7],
        response_ids=[[8, 9, 10, 11], [12, 13]],
        scores=scores.expand(2, len(PREFIX_LENGTHS) + 1, 2).clone(),
        prefix_scorers=(None, None),
        conversation=Conversation.model_validate("hello"),
        instructed_ids=(([3, 5, 6, 7],), ([4, 5, 6, 7], [3, 3, 5, 6, 7])),
    )


EXAMPLES = [example("a"), example("b")]


def pairs(model: PersRM) -> None:
    """The cache, a step of stage 1 with forks kept and computed again, the frozen trunk."""
    rows = compute_responses(model, EXAMPLES, 5)
    batch = [
        PairExample(row, one.scores.to(model.head_A.device), torch.eye(2).to(model.head_A.device))
        for row, one in zip(rows, EXAMPLES, strict=True)
    ]
    PreferenceObjective(model, Recipe())(batch, 2).backward()
    trunk_hidden(model, rows[0])
    cached_feature_sums(model, rows[0])


def scores(model: PersRM) -> None:
    """The critic, the step, correlations."""
    device = model.head_A.device
    rows = compute_responses(model, EXAMPLES, 5)
    before = [torch.zeros(len(ids), 2) for ids in EXAMPLES[0].response_ids]
    prompts = [critic_prompt(one, row, before) for one, row in zip(EXAMPLES, rows, strict=True)]
    critic = CriticStatistics.zeros(2, 64, device)
    step = StepStatistics.zeros(2, 64, device)
    for prompt in prompts:
        critic.add(prompt)
    fitted = critic.fit()
    for prompt, row in zip(prompts, rows, strict=True):
        step.add(model, row, torch.cat(fitted.credit(prompt, 0.8)), 0.8)
    step.solve(4, (1.0, 10.0))
    taken_reward_advantages(persrm_rewards(model, rows[0]), rows[0], 0.8)
    reward_spreads(partial(persrm_rewards, model), rows)


def prompt(model: PersRM) -> None:
    """The teacher, the closed form, a step of the regression."""
    device = model.head_A.device
    rows = compute_responses(model, EXAMPLES, 5)
    statistics = RidgeStatistics.zeros(2, 64, device)
    directions = iter(teacher_directions(model, EXAMPLES, [r.h_B for row in rows for r in row]))
    taught = []
    for row in rows:
        for response in row:
            d = next(directions)
            rewards = teacher_candidate_rewards(model, response, d)
            statistics.add(response.h_B.float(), d, base_mean_square(rewards, response.z_B))
            taught.append(type(response)(**{**vars(response), "teacher_rewards": rewards.float()}))
    statistics.low_rank_heads(4, [1.0, 1.0])
    maps = statistics.ridge_maps(1.0).to(model.head_A)
    explained_shares(partial(linear_map_rewards, model, maps), [taught])
    explained_shares(partial(head_rewards, model), [taught])
    regression = RewardRegression(model, statistics.teacher_variance(), 4.0)
    regression([RegressionExample(taught[:2], taught[2:])], 1).backward()


def prefixes(model: PersRM) -> None:
    """An epoch of a learned prefix, from the sentence's own."""
    backbone = InstructedBackbone(model.backbone, 1)
    rows = [response for row in compute_responses(model, EXAMPLES, 5) for response in row]
    ids = [[*one.prompt_ids, *ids][:-1] for one in EXAMPLES for ids in one.response_ids]
    texts = [PrefixText(i, r.h_B, r.ids, r.z_B) for i, r in zip(ids, rows, strict=True)]
    rewards = [torch.zeros(len(r.h_B), 5, device=r.h_B.device) for r in rows]
    start = sentence_prefix(backbone, InstructionTokens([3, 4], [5, 6, 7]), 4)
    read = PrefixTexts(backbone, model.embeddings, texts)
    settings = PrefixSettings(tokens=16, epochs=1)
    trained = train_prefix(read, rewards, start, settings, seed=0, log=lambda *_: None)
    read.explained_share(trained, rewards)


def judging(model: PersRM) -> None:
    """Perplexities, sums of features, guided scores."""
    with torch.no_grad(), model.adapter_off():
        answer_losses(model.backbone, [([5, 6], [7, 8, 9]), ([5], [6])])
        feature_sums(model, [([5, 6], [7, 8, 9]), ([5], [6])])
        ids = torch.tensor([[5, 6, 7]], device=model.head_A.device)
        w = torch.ones(1, 3, 2, device=model.head_A.device)
        model.scores(*model.hidden(ids), w, 1.0, 5)


STAGES: dict[str, tuple[int, Callable[[PersRM], None]]] = {
    "pairs": (2, pairs),
    "pairs, heads only": (4, pairs),
    "scores": (4, scores),
    "prompt": (2, prompt),
    "prompt, heads only": (4, prompt),
    "prefixes": (4, prefixes),
    "judging": (2, judging),
}


def main() -> None:
    """See the module's docstring."""
    register()
    found = {}
    for name, (fork_layer, run) in STAGES.items():
        accelerator = PretendedAccelerator()
        model = make_model(accelerator, int(sys.argv[1]), fork_layer)
        error = ""
        try:
            with accelerator:
                run(model)
        except Exception:  # noqa: BLE001, all stages are reported
            frames = traceback.extract_tb(sys.exc_info()[2])
            lines = [f"{f.filename}:{f.lineno} {f.line}" for f in frames if "/torch/" not in f.filename]
            error = "\n".join([*lines, str(sys.exc_info()[1])[:300]])
        grads = {str(p.grad.device) for p in model.parameters() if p.grad is not None}
        found[name] = {
            "error": error,
            "products on the CPU": sorted(accelerator.products_on_cpu),
            "gradients": sorted(grads),
            "peak": accelerator.peak_bytes,
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
