"""What a command says when something is wrong: one message and exit code 1 where the user can mend it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.markup import escape

from pad_vllm.catalog.model_downloads import ModelError

EXTRA_OF_PACKAGE = {
    **dict.fromkeys(("accelerate", "datasets", "jinja2", "matplotlib", "openai"), "train"),
    **dict.fromkeys(("peft", "pyobscenity", "tensorboard"), "train"),
    **dict.fromkeys(("textstat", "vaderSentiment"), "train"),
    "ray": "ray",
    "grpc_reflection": "ray",  # the first package of the extra that Ray Serve imports
}
"""Package -> the extra of setup.py that brings it."""


@contextmanager
def report_errors() -> Iterator[None]:
    """What the user can mend is one message; anything else is a bug and shows its traceback."""
    try:
        yield
    except (ModelError, ValueError, OSError, ModuleNotFoundError) as error:
        said = _said(error)
        if isinstance(error, ModuleNotFoundError):
            extra = EXTRA_OF_PACKAGE.get(str(error.name).split(".")[0])
            if extra is None:
                raise
            said = f"{error.name} is not installed. Install it: pip install 'pad-vllm[{extra}]'"
        message = f"[red]Error:[/red] {escape(said)}"
        Console(stderr=True).print(message, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error


def _said(error: Exception) -> str:
    """The message; of a pydantic error each value's place and what was wrong with it."""
    errors = getattr(error, "errors", None)
    if not callable(errors):
        return str(error)
    return "; ".join(
        ": ".join([*map(str, part["loc"]), part["msg"].removeprefix("Value error, ")])
        for part in errors()
    )


def require_package(package: str) -> None:
    """Raise ModuleNotFoundError now, before work is lost, where a package of an extra is missing."""
    if importlib.util.find_spec(package) is None:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)
