"""Converts the LoRA of an adapter from and to PEFT's format: adapter_config.json and the names of tensors.

In: PEFT's settings and tensors by name. Out: a `LoRA` that covers every layer from the fork layer up; and
the reverse. This module does not read or write the tensor file, and does not need PEFT.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from pad_vllm.adapter.json_fields import AdapterError, read_json_object
from pad_vllm.adapter.lora_modules import LINEAR_MODULES
from pad_vllm.wording import listed, short_repr

LORA_CONFIG_FILE = "adapter_config.json"
LORA_TENSORS_FILE = "adapter_model.safetensors"

_MAX_RANK = 1 << 20  # far above any; larger integers may have no float
_TENSOR_NAME = re.compile(
    r"base_model\.model\.model\.layers\.(?P<layer>0|[1-9][0-9]*)\."
    r"(?P<parent>self_attn|mlp)\.(?P<module>\w+)\.lora_(?P<letter>[AB])\.weight"
)
# Settings with which PEFT computes something else than W x + scaling * B (A x).
_UNSUPPORTED = (
    "alora_invocation_tokens",
    "alpha_pattern",
    "arrow_config",
    "fan_in_fan_out",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "modules_to_save",
    "monteclora_config",
    "rank_pattern",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
)


@dataclass(frozen=True, eq=False)
class LoRA:
    """LoRA weights: each module computes W x + scaling * B (A x). Raises AdapterError for misfits."""

    rank: int
    """Rank r of all matrices."""

    alpha: float
    """PEFT's lora_alpha."""

    scaling: float
    """alpha / rank: the factor that engines multiply B (A x) by."""

    weights: dict[tuple[int, str], tuple[Tensor, Tensor]]
    """(layer, module) -> (A [r, in], B [out, r])."""

    def __post_init__(self) -> None:
        if not math.isclose(self.scaling * self.rank, self.alpha, rel_tol=1e-6):
            raise AdapterError(
                f"LoRA scaling is {self.scaling}; accepted: alpha / rank = {self.alpha} / "
                f"{self.rank}. Fold another scaling into alpha."
            )
        for (layer, module), (a, b) in self.weights.items():
            location = f"layer {layer} {module}"
            if module not in LINEAR_MODULES:
                raise AdapterError(_unknown_module_message(location))
            if a.ndim != 2 or b.ndim != 2 or a.shape[0] != self.rank or b.shape[1] != self.rank:
                raise AdapterError(
                    f"LoRA of {location} has A {list(a.shape)} and B {list(b.shape)}; accepted: A "
                    f"[r, in] and B [out, r] with r = {self.rank}. Save the adapter again from "
                    "the trained model."
                )

    def require_layers(self, fork: int, num_layers: int, hidden: int) -> None:
        """Raises AdapterError unless the LoRA fits a fork.

        Args:
            fork: Fork layer; num_layers means a fork at the top, where no LoRA is accepted.
            num_layers: Number of the backbone's decoder layers.
            hidden: Hidden size H of the backbone.

        Raises:
            AdapterError: The LoRA is not on the same modules of all layers from the fork layer up, or its
                width at the residual stream is not `hidden`.
        """
        modules = {module for _, module in self.weights}
        expected = {(layer, module) for layer in range(fork, num_layers) for module in modules}
        missing, extra = sorted(expected - set(self.weights)), sorted(set(self.weights) - expected)
        if extra and fork == num_layers:
            raise AdapterError(
                f"LoRA tensors extra: {_list_locations(extra)}. Accepted: none, as the fork is at the top, "
                f"layer {fork} of {num_layers}. Leave the LoRA out, or set fork_layer to its first layer."
            )
        if missing or extra or (fork < num_layers and not expected):
            raise AdapterError(
                f"LoRA tensors missing: {_list_locations(missing)}; extra: {_list_locations(extra)}. "
                f"Accepted: the same modules in every layer {fork}..{num_layers - 1}, from the fork to the "
                "last, and no other. Train with layers_to_transform set to these layers."
            )
        for (layer, module), (a, b) in self.weights.items():
            width = a.shape[1] if LINEAR_MODULES[module].input_width == "hidden" else b.shape[0]
            if width != hidden:
                raise AdapterError(
                    f"LoRA of layer {layer} {module} meets the residual stream with width {width}; "
                    f"accepted: hidden size H = {hidden}. The adapter's files are not of one "
                    "backbone: copy or save them together."
                )


EMPTY_LORA = LoRA(rank=0, alpha=0.0, scaling=0.0, weights={})
"""LoRA of a heads-only adapter, whose fork is at the top: no weights."""


def require_no_peft_files(folder: Path) -> None:
    """Raises AdapterError where the folder of a heads-only adapter holds PEFT's files."""
    peft_files = [LORA_CONFIG_FILE] if (folder / LORA_CONFIG_FILE).exists() else []
    peft_files += sorted(path.name for path in folder.glob("adapter_model.*"))
    if peft_files:
        raise AdapterError(
            f"{listed(peft_files)} would not be read: fork_layer is at the top, and so there is no LoRA. "
            "Accepted: neither file. Remove the files of another adapter, or copy the right pad_config.json."
        )


def read_peft_config(folder: Path) -> tuple[dict[str, Any], Path]:
    """(settings in adapter_config.json, path of the tensor file). Raises AdapterError if one is missing."""
    if not (folder / LORA_TENSORS_FILE).is_file():
        reason = "is missing. Copy the whole folder, or save the adapter again."
        pickled = sorted(path.name for path in folder.glob("adapter_model.*"))
        if pickled:
            reason = (
                f"is missing, and {listed(pickled)} is not read: a pickle can run code. "
                "Save it again with save_pretrained(folder, safe_serialization=True)."
            )
        raise AdapterError(f"{LORA_TENSORS_FILE} {reason}")
    return read_json_object(
        folder / LORA_CONFIG_FILE, "Copy the whole folder."
    ), folder / LORA_TENSORS_FILE


def lora_from_peft(
    settings: Mapping[str, Any], tensors: Mapping[str, Tensor], *, fork: int, num_layers: int
) -> LoRA:
    """The LoRA that PEFT's settings and tensors describe.

    Args:
        settings: Content of adapter_config.json.
        tensors: PEFT's tensor names -> tensors, as in adapter_model.safetensors.
        fork: Fork layer of the adapter, the first layer with LoRA.
        num_layers: Number of the backbone's decoder layers.

    Returns:
        The LoRA, with rank-stabilised scaling (use_rslora) folded into alpha.

    Raises:
        AdapterError: Settings or tensors that the engines cannot serve.
    """
    require_plain_lora(settings)
    _require_layers_to_transform(settings.get("layers_to_transform"), fork, num_layers)
    rank, alpha = settings.get("r"), settings.get("lora_alpha")
    if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= _MAX_RANK:
        raise _setting_error("r", rank, f"an integer from 1 to {_MAX_RANK}")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not 0 < alpha < 1e6:
        raise _setting_error("lora_alpha", alpha, "a number above 0")
    scaling = alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
    weights = _weights_by_module(tensors)
    _require_targets(settings.get("target_modules"), {module for _, module in weights})
    return LoRA(rank=rank, alpha=scaling * rank, scaling=scaling, weights=weights)


def peft_tensors(lora: LoRA) -> dict[str, Tensor]:
    """PEFT's tensor names -> the LoRA's tensors, as adapter_model.safetensors stores them."""
    stem = "base_model.model.model.layers"
    return {
        f"{stem}.{layer}.{LINEAR_MODULES[module].parent}.{module}.lora_{letter}.weight": tensor
        for (layer, module), pair in sorted(lora.weights.items())
        for letter, tensor in zip("AB", pair, strict=True)
    }


def peft_settings(lora: LoRA, *, backbone: str, fork: int, num_layers: int) -> dict[str, Any]:
    """The content of adapter_config.json. PEFT fills in its own defaults for keys that are missing.

    Args:
        lora: LoRA of the adapter, not EMPTY_LORA.
        backbone: Name of the backbone.
        fork: Fork layer, the first layer with LoRA.
        num_layers: Number of the backbone's decoder layers.

    Returns:
        A JSON object.
    """
    return {
        "base_model_name_or_path": backbone,
        "bias": "none",
        "inference_mode": True,
        "layers_pattern": "layers",
        "layers_to_transform": list(range(fork, num_layers)),
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": lora.rank,
        "target_modules": sorted({module for _, module in lora.weights}),
        "task_type": "CAUSAL_LM",
    }


def require_plain_lora(settings: Mapping[str, Any]) -> None:
    """Raises AdapterError for settings with which PEFT adds more than scaling * B (A x)."""
    if settings.get("peft_type") != "LORA":
        raise _setting_error("peft_type", settings.get("peft_type"), "'LORA'")
    if settings.get("bias", "none") != "none":
        raise _setting_error("bias", settings["bias"], "'none'")
    for name in _UNSUPPORTED:
        if settings.get(name):
            raise _setting_error(name, settings[name], "this setting off or empty")


def _require_layers_to_transform(layers: object, fork: int, num_layers: int) -> None:
    expected = list(range(fork, num_layers))
    if ([layers] if isinstance(layers, int) else layers) != expected:
        raise _setting_error(
            "layers_to_transform", layers, f"{fork}..{num_layers - 1}, as pad_config.json says"
        )


def _require_targets(targets: object, modules: set[str]) -> None:
    # A string is a pattern that PEFT expands; then only the names of the tensors are checked.
    if isinstance(targets, list) and {str(name).rsplit(".", 1)[-1] for name in targets} != modules:
        raise _setting_error(
            "target_modules",
            targets,
            f"the modules of {LORA_TENSORS_FILE}: {listed(sorted(modules))}",
        )


def _weights_by_module(
    tensors: Mapping[str, Tensor],
) -> dict[tuple[int, str], tuple[Tensor, Tensor]]:
    halves: dict[tuple[int, str], dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = _TENSOR_NAME.fullmatch(name)
        if not match or not _is_lora_module(match["module"], match["parent"]):
            raise AdapterError(f"{LORA_TENSORS_FILE}: {_unknown_module_message(name)}")
        halves.setdefault((int(match["layer"]), match["module"]), {})[match["letter"]] = tensor
    for location, pair in halves.items():
        if len(pair) != 2:
            missing = f"lora_{'B' if 'A' in pair else 'A'} of {_list_locations([location])}"
            raise AdapterError(
                f"{LORA_TENSORS_FILE}: {missing} is missing; accepted: A and B of every module. "
                "Save the adapter again."
            )
    return {location: (pair["A"], pair["B"]) for location, pair in halves.items()}


def _is_lora_module(module: str, parent: str) -> bool:
    return module in LINEAR_MODULES and LINEAR_MODULES[module].parent == parent


def _unknown_module_message(name: str) -> str:
    return (
        f"LoRA tensor {name!r} is not one that is served; accepted: A and B of {listed(LINEAR_MODULES)} "
        "under base_model.model.model.layers.<i>. Train with target_modules among these."
    )


def _list_locations(locations: list[tuple[int, str]]) -> str:
    shown = [f"layer {layer} {module}" for layer, module in locations]
    return listed(shown[:4]) + (f" and {len(shown) - 4} more" if len(shown) > 4 else "")


def _setting_error(name: str, value: object, accepted: str) -> AdapterError:
    return AdapterError(
        f"{LORA_CONFIG_FILE}: {name} is {short_repr(value)}; accepted: {accepted}. "
        "Train the LoRA with this setting, or save the adapter again."
    )
