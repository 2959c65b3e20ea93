"""`pad-vllm check`: which engines can serve a base with an adapter on the vLLM that is installed here.

In: a base (folder or hub name) and an adapter's folder. Out: findings, one for each check, which say yes, or
no and what to do. It loads the adapter and starts nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from pad_vllm.adapter.adapter_folder import load_adapter
from pad_vllm.config import ENGINES
from pad_vllm.serving.launch.base_adapter_checks import (
    RESIDENT_CHECKS,
    SHARED_CHECKS,
    ServedPair,
    check_defaults,
    describe_adapter,
    read_base_config,
)
from pad_vllm.serving.launch.installed_vllm_checks import VLLM_CHECKS, check_ray
from pad_vllm.wording import listed


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    name: str
    """What was checked, in a word or two."""

    ok: bool
    """False where it keeps an engine from serving."""

    detail: str
    """What was found; where it is not ok, what to do."""

    engine: str = ""
    """The engine that needs it; empty where all do."""


def compatibility_findings(base: str, adapter: str, backbone: str = "") -> list[Finding]:
    """Run every check, except those that need an adapter or a base config which cannot be read.

    Args:
        base: folder or hub name of the model to serve.
        adapter: folder of the adapter.
        backbone: folder or hub name of the reward model's backbone, where it is another model than the base
            and the name in the adapter does not lead to it.

    Returns:
        Findings in the order of the checks. It raises nothing: what a check raises is its finding.
    """
    served, adapter_finding = _load("adapter", partial(load_adapter, adapter), describe_adapter)
    config, base_finding = _load("base", partial(read_base_config, base), _architectures)
    findings = [adapter_finding, base_finding]
    findings += [_finding(name, check) for name, check in VLLM_CHECKS]
    if served is None or config is None:
        return findings
    pair = ServedPair(base, config, served, backbone)
    findings.append(_finding("defaults", partial(check_defaults, pair)))
    shared = [_finding(name, partial(check, pair), "shared") for name, check in SHARED_CHECKS]
    if not backbone and all(finding.ok for finding in shared):
        pair = replace(pair, backbone=base)  # the base is the adapter's own backbone
    findings += shared
    findings += [
        _finding(name, partial(check, pair), "resident") for name, check in RESIDENT_CHECKS
    ]
    findings.append(_finding("Ray", check_ray, "ray"))
    return findings


def servable_engines(findings: list[Finding]) -> list[str]:
    """The engines whose findings are all ok."""
    if not all(finding.ok for finding in findings if not finding.engine):
        return []
    needs = {"shared": ("shared",), "resident": ("resident",), "ray": ("resident", "ray")}
    checked = {finding.engine for finding in findings}
    return [
        engine
        for engine in ENGINES
        if engine in checked
        and all(finding.ok for finding in findings if finding.engine in needs[engine])
    ]


def _architectures(config: Any) -> str:
    return listed(config.architectures or ())


def _finding(name: str, check: Callable[[], str], engine: str = "") -> Finding:
    return _load(name, check, str, engine)[1]


def _load(
    name: str, load: Callable[[], Any], describe: Callable[[Any], str], engine: str = ""
) -> tuple[Any, Finding]:
    """What `load` returns, None where it raises, and the finding: its description, or the error's message."""
    try:
        value = load()
        return value, Finding(name, True, describe(value), engine)
    except Exception as error:  # noqa: BLE001, a broken vLLM may raise anything; the finding reports it
        expected = isinstance(error, ValueError | OSError | ImportError)
        detail = str(error) if expected else f"{type(error).__name__}: {error}"
        return None, Finding(name, False, detail, engine)
