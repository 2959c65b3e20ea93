"""Reports the errors of a command: one message and exit code 1 for an error that the user can correct."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.markup import escape

from pad_vllm.catalog.model_downloads import ModelError
from pad_vllm.serving.launch.media_packages import require_media_packages_import
from pad_vllm.vllm_api.vllm_versions import INSTALL_VLLM

EXTRA_OF_PACKAGE = {
    **dict.fromkeys(("accelerate", "datasets", "jinja2", "matplotlib", "openai"), "train"),
    **dict.fromkeys(("peft", "pyobscenity", "tensorboard"), "train"),
    **dict.fromkeys(("textstat", "vaderSentiment"), "train"),
    "ray": "ray",
    "grpc_reflection": "ray",  # the first package of the extra that Ray Serve imports
}
"""Package -> the extra of setup.py that installs it."""


@contextmanager
def report_errors() -> Iterator[None]:
    """Prints an error that the user can correct as one message; other errors are bugs and pass through."""
    try:
        yield
    except (ModelError, ValueError, OSError, ImportError, RuntimeError) as error:
        text = _text(error)
        if text is None:
            raise
        message = f"[red]Error:[/red] {escape(text)}"
        Console(stderr=True).print(message, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error


def _text(error: Exception) -> str | None:
    """What the user reads; None for a bug."""
    if isinstance(error, (ModelError, ValueError, OSError)):
        return _message(error)
    package = str(getattr(error, "name", None)).split(".")[0]
    extra = EXTRA_OF_PACKAGE.get(package)
    if isinstance(error, ModuleNotFoundError) and (extra or package == "vllm"):
        way_out = INSTALL_VLLM if extra is None else f"Install it: pip install 'pad-vllm[{extra}]'"
        return f"{error.name} is not installed. {way_out}"
    try:  # what Transformers and vLLM raise does not name the package that does not import
        require_media_packages_import()
    except ValueError as broken:
        return str(broken)
    return None


def _message(error: Exception) -> str:
    """The error's message; for a pydantic error the location of each value and what is wrong with it."""
    errors = getattr(error, "errors", None)
    if not callable(errors):
        return str(error)
    return "; ".join(
        ": ".join([*map(str, detail["loc"]), detail["msg"].removeprefix("Value error, ")])
        for detail in errors()
    )


def require_package(package: str) -> None:
    """Raises ModuleNotFoundError for a missing package now, before the command has done any work."""
    if importlib.util.find_spec(package) is None:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)
