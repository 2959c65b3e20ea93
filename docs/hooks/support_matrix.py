"""The tables of docs/support.md: feature by engine and runner, tested, allowed, refused or untested.

In: the features of support_features.py. Out: Markdown. What is refused is asked of the code that `pad-vllm
check` and vLLM's start-up run, with a config that uses the feature.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from docs.hooks.support_features import COLUMNS, FORK, GROUPS, RAY, RESIDENT, WORDS, Feature
from pad_vllm.config import PADConfig
from pad_vllm.serving.frontend.request_fields import request_field_check
from pad_vllm.serving.start import forkable_bases, instruction_settings
from pad_vllm.serving.start.quantized_bases import require_forkable_method
from pad_vllm.serving.start.refused_features import REFUSED_BY_ALL, REFUSED_BY_ENGINE
from pad_vllm.serving.start.unsupported_configs import require_supported

RUNNERS = ("V2", "V1")
_NUM_LAYERS = 4
_OFF: dict[str, Any] = {
    "use_v2_model_runner": True,
    "lora_config": None,
    "speculative_config": None,
    "kv_transfer_config": None,
    "weight_transfer_config": None,
}
_PARALLEL = {
    "tensor_parallel_size": 1,
    "pipeline_parallel_size": 1,
    "data_parallel_size": 1,
    "data_parallel_size_local": 1,
    "data_parallel_backend": "mp",
    "distributed_executor_backend": None,
}
_MODEL = {
    "runner_type": "generate",
    "is_moe": False,
    "is_multimodal_model": False,
    "model_impl": "auto",
    "enable_prompt_embeds": False,
    "skip_tokenizer_init": False,
    "uses_mrope": False,
    "hf_text_config": None,
    "dtype": "torch.float32",
}


def vllm_config(feature: Feature, runner: str) -> SimpleNamespace:
    """What PAD reads of vLLM's config, of an engine that uses the feature and nothing else."""
    config = SimpleNamespace(
        **_OFF,
        parallel_config=SimpleNamespace(**_PARALLEL),
        model_config=SimpleNamespace(**_MODEL),
        cache_config=SimpleNamespace(cache_dtype="auto"),
        scheduler_config=SimpleNamespace(scheduler_cls=None),
        offload_config=SimpleNamespace(
            offload_backend="auto",
            uva=SimpleNamespace(cpu_offload_gb=0),
            prefetch=SimpleNamespace(offload_group_size=0),
        ),
    )
    config.use_v2_model_runner = runner == "V2"
    for name, value in (feature.changes or {}).items():
        if name.startswith("speculative_config."):
            config.speculative_config = _drafts(str(value))
        elif name not in ("quant", "architecture") and not name.startswith("pad."):
            *path, last = name.split(".")
            target: Any = config
            for key in path:
                target = getattr(target, key)
            setattr(target, last, value)
    return config


def _drafts(method: str) -> SimpleNamespace:
    drafter = SimpleNamespace(architectures=["DFlashDraftModel"])
    return SimpleNamespace(method=method, draft_model_config=drafter)


def refusal(feature: Feature, column: str, runner: str) -> str:
    """The message with which PAD refuses a feature; empty where it is accepted."""
    config = vllm_config(feature, runner)
    changes = feature.changes or {}
    settings: dict[str, Any] = {
        name.removeprefix("pad."): value for name, value in changes.items() if name[:4] == "pad."
    }
    engine = column if column in (RESIDENT, RAY) else "shared"
    if feature.name.startswith(("several adapters", "adapters loaded")):
        settings["adapters"] = {"work": "PATH"}
    pad: Any = PADConfig(
        adapter="PATH",
        engine=engine,
        instructions=column == WORDS,
        **settings,  # type: ignore[arg-type]
    )
    try:
        require_supported(config, pad)  # type: ignore[arg-type]
        if column in (FORK, WORDS):
            _require_forkable(feature, config, instructions=column == WORDS)
        if feature.request is not None:
            _check_request(feature.request, reads_turns=engine != "shared")
    except ValueError as error:
        return str(error)
    if settings.get("adapters") and column == FORK:
        return "served_adapters.py refuses several adapters unless all are heads only"
    return ""


def _check_request(fields: Mapping[str, object], *, reads_turns: bool) -> None:
    """Raises ValueError for a guided request that the front end refuses.

    fields: of its body; reads_turns: whether a separate reward model reads the conversation turn by turn.
    """
    request = SimpleNamespace(**fields)
    request.vllm_xargs, request.model_extra = {"pad_weights": "positive=1"}, {}
    request_field_check(lambda _: reads_turns)(request)


def _require_forkable(feature: Feature, config: Any, *, instructions: bool) -> None:
    changes = feature.changes or {}
    if instructions:
        instruction_settings.require_instructions_supported(config)
    if config.parallel_config.pipeline_parallel_size > 1:
        last = range(_NUM_LAYERS // 2, _NUM_LAYERS)
        forkable_bases.require_fork_in_last_stage(last.start, last, 2)
    architecture = str(changes.get("architecture", "LlamaForCausalLM"))
    forkable_bases.require_forkable_architecture([architecture], "BASE")
    forkable_bases.require_no_lora(enabled=config.lora_config is not None)
    forkable_bases.require_no_offloading(config.offload_config)
    forkable_bases.require_no_kv_connector(enabled=config.kv_transfer_config is not None)
    forkable_bases.require_plain_kv_cache(
        config.cache_config.cache_dtype, config.model_config.dtype
    )
    require_forkable_method(str(changes.get("quant", "")))


def cell(feature: Feature, column: str) -> str:
    """The state of a feature in one column: one word, or one for each runner."""
    if column in feature.without:
        return "-"
    states = {runner: _state(feature, column, runner) for runner in RUNNERS}
    if len(set(states.values())) == 1:
        return states["V2"]
    return ", ".join(f"{runner} {state}" for runner, state in states.items())


def _state(feature: Feature, column: str, runner: str) -> str:
    if refusal(feature, column, runner):
        return "refused"
    if runner in feature.tested.get(column, ()):
        return "**tested**"
    has_reason = column in feature.allowed or column in feature.tested
    return "allowed" if has_reason else "untested"


def table(features: tuple[Feature, ...]) -> str:
    """A table of features."""
    head = f"| | {' | '.join(f'`{c}`' if c in (RESIDENT, RAY) else c for c in COLUMNS)} | test |"
    rows = [head, "| --- |" + " --- |" * (len(COLUMNS) + 1)]
    for feature in features:
        cells = " | ".join(cell(feature, column) for column in COLUMNS)
        test = feature.test.removeprefix("test_").removesuffix(".py")
        rows.append(f"| {feature.name} | {cells} | {test} |")
    return "\n".join(rows)


def matrix() -> str:
    """All tables, each under its heading."""
    return "\n\n".join(f"### {title}\n\n{table(rows)}" for title, rows in GROUPS.items())


def refused_by_name() -> str:
    """What is refused, and the way out, for all engines and for one."""
    parts = []
    for title, features in (
        ("Every engine", REFUSED_BY_ALL),
        ("`shared`", REFUSED_BY_ENGINE["shared"]),
        ("`resident` and `ray`", REFUSED_BY_ENGINE["resident"]),
    ):
        rows = [f"| {f.name} | {f.way_out} |" for f in features]
        parts.append("\n".join([f"| {title}: refused | way out |", "| --- | --- |", *rows]))
    return "\n\n".join(parts)
