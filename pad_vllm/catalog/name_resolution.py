"""Turns the names that users give bases and adapters into folders.

In: a name of `pad-vllm models`, a folder, or a hub name; an adapter's folder, or the name of one that ships.
Out: a folder. Hub names stay as they are: vLLM and Transformers resolve them.
"""

from __future__ import annotations

from pathlib import Path

from pad_vllm.catalog import model_downloads

DEMO_BASE = "smollm2-135m"
"""The base of the adapter `demo`, where no other base is named."""

_SHIPPED = Path(__file__).parent
"""Has the folder `BASE-NAME` of each adapter that ships with the package, NAME as in _SHIPPED_NAMES."""

_SHIPPED_NAMES = ("demo", "demo-trunk")
"""Heads only; with a trunk (LoRA in the upper layers), where there is one for the base."""


def resolve_base(base: str) -> str:
    """The folder of a model of `pad-vllm models`, fetched if necessary; any other base unchanged.

    `base` may be the model's name or its title, which an adapter trained on it gives as its backbone. As in
    Transformers, a folder of that name in the working directory comes first. Raises ModelError, for a GGUF
    file and an object store's address too.
    """
    if base.lower().endswith(".gguf") and not Path(base).is_dir():
        raise model_downloads.ModelError(
            f"{base} is a GGUF file, for which vLLM has no loader; accepted: a folder of safetensors. "
            "Dequantise it by Transformers: from_pretrained(FOLDER, gguf_file=NAME), then save_pretrained, "
            "of model and tokenizer."
        )
    if "://" in base:
        raise model_downloads.ModelError(
            f"{base} is an address, which vLLM takes with load formats of its own and not with PAD's; "
            "accepted: a folder or a hub name. Copy the model into a folder; its weights may stay elsewhere "
            "if a load format finds them (additional_config['pad']['load_format'])."
        )
    name = _downloadable_name(base)
    return base if name is None else str(model_downloads.fetch_model(name))


def resolve_local_base(base: str) -> str:
    """`resolve_base` without fetching, for vLLM's workers.

    Raises ValueError for a model of `pad-vllm models` that is not on this machine yet.
    """
    name = _downloadable_name(base)
    if name is None:
        return base
    folder = model_downloads.fetched_model_folder(name)
    if folder is None:
        raise ValueError(
            f"{base} is not on this machine, and a worker fetches nothing. Fetch it first: "
            f"pad-vllm models {name}"
        )
    return str(folder)


def _downloadable_name(base: str) -> str | None:
    if Path(base).is_dir():
        return None
    titles = {source.title: name for name, source in model_downloads.DOWNLOADABLE_MODELS.items()}
    return base if base in model_downloads.DOWNLOADABLE_MODELS else titles.get(base)


def resolve_adapter(adapter: str, base: str | None = None) -> str:
    """The absolute folder of an adapter, given by its folder or by the name of one that ships.

    Args:
        adapter: a folder; `demo`, the heads that ship for `base`; or `demo-trunk`, trunk and heads.
        base: as in `resolve_base`; None, or a base for which no adapter ships: DEMO_BASE.

    Raises:
        ValueError: the folder holds no adapter, or none of that name ships for the base.
    """
    if adapter not in _SHIPPED_NAMES:
        folder = Path(adapter).expanduser().absolute()
        if not (folder / "pad_config.json").is_file():
            raise ValueError(
                f"adapter {adapter!r}: {folder} holds no pad_config.json. Accepted: an adapter folder "
                f"that `pad-vllm train` wrote, or one that ships: {_shipped_list()}"
            )
        return str(folder)
    shipped = _shipped_adapters(adapter)
    name = _name_of(base)
    if adapter == "demo" and name not in shipped:
        name = DEMO_BASE
    if name not in shipped:
        raise ValueError(
            f"adapter {adapter!r}: none of that name ships for {base or DEMO_BASE}. Accepted: "
            f"{_shipped_list()}, or an adapter folder that `pad-vllm train` wrote"
        )
    return str(shipped[name])


def _shipped_adapters(adapter: str) -> dict[str, Path]:
    """Name of the base -> folder of the adapter of that name."""
    folders = sorted(_SHIPPED.glob(f"*-{adapter}"))
    return {folder.name.removesuffix(f"-{adapter}"): folder for folder in folders}


def _shipped_list() -> str:
    return "; ".join(
        f"`{name}` for {' or '.join(_shipped_adapters(name))}" for name in _SHIPPED_NAMES
    )


def _name_of(base: str | None) -> str:
    """The name by which `pad-vllm models` knows a base, given by name, by title, or as the fetched folder."""
    if base is None:
        return DEMO_BASE
    return _downloadable_name(base) or Path(base).name
