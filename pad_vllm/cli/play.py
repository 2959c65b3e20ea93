"""`pad-vllm play`: `pad-vllm serve` with a page to play with, profiles, and dimensions made from sentences.

In: the command line of `serve`. Out: the same command line with settings for the page, which `serve` runs.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from pad_vllm.adapter.manifest import AdapterConfig, read_config
from pad_vllm.catalog.model_downloads import cache_dir
from pad_vllm.catalog.name_resolution import DEMO_BASE, resolve_adapter
from pad_vllm.cli.error_reporting import report_errors
from pad_vllm.cli.serve import serve
from pad_vllm.cli.shared_options import BaseArgument, device_dtype, options_of, with_options
from pad_vllm.serving.launch.installed_vllm_checks import is_cpu_build
from pad_vllm.serving.launch.serve_arguments import flag_value, has_flag
from pad_vllm.serving.start.dimension_job_settings import RUNTIME_ADAPTERS
from pad_vllm.serving.start.made_adapters import MADE_FOLDER, latest_made_adapter

NO_ADAPTER = "none"
_HOST, _PORT = "127.0.0.1", "8000"
_CONTEXT = "2048"
"""Tokens of a prompt and its answer: enough to play with, and a KV cache that fits."""

_SMALL_BASE = 300_000_000
"""Parameters of a base that is opened once more without being asked for, to read what people write: up to
1.5 GB in memory, 1 GB for SmolLM2-135M.
"""

_GPU_SHARE = "0.6"
"""Of a GPU's memory: the rest is for a job, which opens the model once more."""


@with_options(*options_of(serve, leave_out=("context", "base", "adapter")))
def play(
    context: typer.Context,
    base: BaseArgument = DEMO_BASE,
    adapter: Annotated[
        str,
        typer.Option(help="Folder of a PAD adapter, `demo`, or, with --instructions, `none`."),
    ] = "demo",
    open_page: Annotated[
        bool, typer.Option("--open", help="Open the page in a browser as soon as it is there.")
    ] = False,
    **serve_options: Any,
) -> None:
    """Start a server for BASE with a page: sliders, answers side by side, a profile of you.

    Takes every flag of `pad-vllm serve`, and of `vllm serve`. It listens on this machine only, unless --host
    says otherwise. Profiles and new dimensions are kept in $PAD_VLLM_CACHE/play.
    """
    flags = list(context.args)
    if base.startswith("-"):  # BASE was left out, and a flag of vLLM's stands in its place
        base, flags = DEMO_BASE, [base, *flags]
    with report_errors():
        folder = None if adapter == NO_ADAPTER else resolve_adapter(adapter, base)
        own = _own_folder(base, folder)
        flags += _defaults(flags)
        flags += ["--additional-config.pad.page", "true"]
        if folder is not None and _can_add_dimensions(folder, serve_options.get("engine")):
            flags += _job_flags(own / MADE_FOLDER, read_config(folder))
            os.environ.setdefault(RUNTIME_ADAPTERS, "True")
        if folder is not None:
            serve_options |= _profile_options(own, read_config(folder), serve_options)
        _warn_of_open_host(flags)
        _announce(flags, open_page=open_page)
    context.args[:] = flags
    serve(context, base, adapter=folder, **serve_options)


def _own_folder(base: str, adapter: str | None) -> Path:
    """The folder of what is kept for this base and this adapter."""
    digest = hashlib.sha256(f"{base}\n{adapter}".encode()).hexdigest()[:8]
    folder = cache_dir() / "play" / f"{Path(base).name}-{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _profile_options(own: Path, served: AdapterConfig, given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `serve` for a server with profiles, where the database's package is there.

    Args:
        own: folder of what is kept.
        served: the adapter, whose dimensions profiles have weights of.
        given: options that the user gave, which win.
    """
    profiles = given["profiles"] or (str(own / "profiles.db") if _can_keep_profiles() else None)
    if profiles is None:
        return {}
    size = served.backbone
    parameters = size.num_layers * 12 * size.hidden_size**2 + size.vocab_size * size.hidden_size
    reader = "cpu" if parameters < _SMALL_BASE else None
    given_reader = given["profile_reader"]
    return {
        "profiles": profiles,
        "profile_reader": reader if given_reader is None else given_reader,
    }


def _can_keep_profiles() -> bool:
    """Whether the database's package is there; says so where it is not."""
    if importlib.util.find_spec("sqlalchemy") is not None:
        return True
    typer.echo("no profiles: they need pip install 'pad-vllm[profiles]'", err=True)
    return False


def _can_add_dimensions(adapter: str, engine: str | None) -> bool:
    """Whether a job's heads can join the adapter's while the server runs; says so where they cannot."""
    if engine in (None, "shared") and read_config(adapter).heads_only:
        return True
    typer.echo(
        "no new dimensions: they join adapters of heads only, on the shared engine", err=True
    )
    return False


def _job_flags(root: Path, served: AdapterConfig) -> list[str]:
    """Flags for a server that makes dimensions in a folder, and serves what it made there before."""
    root.mkdir(exist_ok=True)
    settings: dict[str, Any] = {"adapter_root": str(root), "dimension_jobs": True}
    if made := latest_made_adapter(root, served):
        settings["adapters"] = {made.name: str(made.folder)}
    return ["--additional-config", json.dumps({"pad": settings})]


def _defaults(flags: list[str]) -> list[str]:
    """Flags of vLLM that are not given: for a server that is there soon, and leaves room for jobs."""
    port = flag_value(flags, "--port") or _PORT
    own = [f"http://{name}:{port}" for name in ("127.0.0.1", "localhost")]
    defaults: dict[str, tuple[str, ...]] = {
        "--host": (_HOST,),
        "--max-model-len": (_CONTEXT,),
        # Another site's page, open in the same browser, may not use this server.
        "--allowed-origins": (json.dumps(own),),
    }
    if is_cpu_build():
        defaults |= {"--dtype": (device_dtype(),), "--enforce-eager": ()}
    elif not has_flag(flags, "--kv-cache-memory-bytes"):
        defaults["--gpu-memory-utilization"] = (_GPU_SHARE,)
    missing = [(flag, values) for flag, values in defaults.items() if not has_flag(flags, flag)]
    return [text for flag, values in missing for text in (flag, *values)]


def _warn_of_open_host(flags: list[str]) -> None:
    host = flag_value(flags, "--host") or _HOST
    has_key = has_flag(flags, "--api-key") or os.environ.get("VLLM_API_KEY")
    if host not in ("127.0.0.1", "localhost", "::1") and not has_key:
        typer.echo(
            f"anyone who reaches {host} can use this server, its profiles and its training jobs; "
            "--api-key KEY asks for a key",
            err=True,
        )


def _announce(flags: list[str], *, open_page: bool) -> None:
    """Start the process that prints the page's address when the server is up: this one becomes vLLM."""
    scheme = "https" if has_flag(flags, "--ssl-certfile") else "http"
    host = flag_value(flags, "--host") or _HOST
    host = "localhost" if host in ("0.0.0.0", "::") else host  # noqa: S104 compared, not bound
    url = f"{scheme}://{host}:{flag_value(flags, '--port') or _PORT}"
    typer.echo(f"The page will be at {url}/pad/ in a minute or so", err=True)
    command = [sys.executable, "-m", "pad_vllm.serving.page.announce_page", url]
    subprocess.Popen([*command, *(["--open"] if open_page else [])], stdin=subprocess.DEVNULL)
