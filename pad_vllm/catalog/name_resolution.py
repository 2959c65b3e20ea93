"""What people call bases and adapters, as folders: the demo's own names, and everybody else's as they are.

In: a name of `pad-vllm models`, a folder, a hub name; an adapter's folder or `demo`. Out: a folder, or the
name unchanged where it is vLLM's affair.
"""

from __future__ import annotations

from pathlib import Path

from pad_vllm.catalog import model_downloads

DEMO_ADAPTER_FOLDER = Path(__file__).parent / "smollm2-135m-demo"


def resolve_base(base: str) -> str:
    """A name of `pad-vllm models`, or the title that an adapter trained on it has, becomes its folder,
    fetched if need be; others stay.

    As in Transformers, a folder of that name in the working directory comes first.
    """
    name = _demo_model(base)
    return base if name is None else str(model_downloads.fetch_model(name))


def resolve_local_base(base: str) -> str:
    """`resolve_base` without fetching, for workers. Raises ValueError: one of the demo's models that is
    not on this machine yet.
    """
    name = _demo_model(base)
    if name is None:
        return base
    folder = model_downloads.fetched_model_folder(name)
    if folder is None:
        raise ValueError(
            f"{base} is not on this machine, and a worker fetches nothing. Fetch it first: "
            f"pad-vllm models {name}"
        )
    return str(folder)


def _demo_model(base: str) -> str | None:
    if Path(base).is_dir():
        return None
    titles = {source.title: name for name, source in model_downloads.DOWNLOADABLE_MODELS.items()}
    return base if base in model_downloads.DOWNLOADABLE_MODELS else titles.get(base)


def resolve_adapter(adapter: str) -> str:
    """The absolute folder of an adapter; `demo` is the one that comes with the package.

    Raises ValueError where there is no adapter.
    """
    folder = DEMO_ADAPTER_FOLDER if adapter == "demo" else Path(adapter).expanduser().absolute()
    if not (folder / "pad_config.json").is_file():
        raise ValueError(
            f"adapter {adapter!r}: {folder} holds no pad_config.json. Accepted: an adapter folder "
            "that `pad-vllm train` wrote, or `demo`, the one shipped for smollm2-135m"
        )
    return str(folder)
