"""`pad-vllm serve`: this process becomes `vllm serve` with PAD switched on."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from pad_vllm.catalog.name_resolution import resolve_adapter, resolve_base
from pad_vllm.cli.error_reporting import report_errors
from pad_vllm.cli.shared_options import BaseArgument, fetch_reward_backbone
from pad_vllm.serving.launch.installed_vllm_checks import is_cpu_build
from pad_vllm.serving.launch.serve_arguments import has_flag, num_ranks, serve_argv
from pad_vllm.vllm_api.vllm_versions import INSTALL_VLLM

_CPU_BLOCK_SIZE = 32
"""Tokens of a KV block where instructions are served: a sentence fills one, where vLLM's 128 on CPUs hold it
many times, and learned prefixes are multiples of it.
"""

_CPU_CACHE_BYTES = 4 << 30
"""The most that a rank's KV cache takes on a CPU by default: vLLM's own default is all but 8% of the
machine's memory, and a server does not start where less is free.
"""


def serve(
    context: typer.Context,
    base: BaseArgument,
    adapter: Annotated[
        str | None,
        typer.Option(help="Folder of a PAD adapter, or `demo`. Not needed with --instructions."),
    ] = None,
    pad_load_format: Annotated[
        str | None,
        typer.Option(
            help="How vLLM reads BASE's weights: its --load-format without PAD (default: auto)."
        ),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            help="Where the reward model runs: shared (default), resident or ray.",
        ),
    ] = None,
    instructions: Annotated[
        bool,
        typer.Option(
            "--instructions",
            help="Take preferences in words from requests (pad_preference), with an adapter or without.",
        ),
    ] = False,
    fork_layer: Annotated[
        int | None,
        typer.Option(
            help="With --instructions: first layer that reads them (default: by BASE's architecture)."
        ),
    ] = None,
    profiles: Annotated[
        str | None,
        typer.Option(
            help="Database of users, whom requests may name (pad_user): a file, or postgresql://USER@HOST/X"
        ),
    ] = None,
    unknown_user: Annotated[
        str | None,
        typer.Option(
            help="A request of a user without a profile is answered unguided (default), or it is an error: "
            "refuse.",
        ),
    ] = None,
    profile_prior: Annotated[
        str | None,
        typer.Option(help="What people have in common, from `pad-vllm fit --out` for many users."),
    ] = None,
    profile_reader: Annotated[
        str | None,
        typer.Option(
            help="Device (cpu, cuda:N) of a process that opens BASE once more, and reads the texts and "
            "sentences that users post to their profiles."
        ),
    ] = None,
    learn_from_conversations: Annotated[
        bool,
        typer.Option(
            "--learn-from-conversations",
            help="Profiles learn from earlier turns of their users' chats. Needs --profile-reader.",
        ),
    ] = False,
    profile_tokens: Annotated[
        str | None,
        typer.Option(
            help="Secret that signs users' tokens: env:NAME, or a file. Without it clients may name anyone."
        ),
    ] = None,
    allow_backbone_mismatch: Annotated[
        bool,
        typer.Option(
            "--allow-backbone-mismatch",
            help="Warn instead of refusing where BASE has other weights than the adapter's backbone.",
        ),
    ] = False,
) -> None:
    """Start `vllm serve` for BASE with PAD. BASE comes first; every flag of `vllm serve` may follow.

    Set PAD's other settings with vLLM's own flag, for example: --additional-config.pad.max_beta 5
    """
    if adapter is None and not instructions:
        raise typer.BadParameter(
            "give --adapter FOLDER (or `demo`), or --instructions, by which requests say in words what they "
            "prefer"
        )
    with report_errors():
        if base.startswith("-"):
            raise ValueError(
                f"BASE comes first, found {base}. Type: pad-vllm serve BASE {base} ..."
            )
        resolved = resolve_base(base)
        folder = None if adapter is None else resolve_adapter(adapter, base)
        if folder is not None:
            fetch_reward_backbone(engine, folder)
        argv = serve_argv(
            resolved,
            folder,
            context.args,
            load_format=pad_load_format,
            allow_backbone_mismatch=allow_backbone_mismatch,
            served_name=base if resolved != base else None,
            engine=engine,
            instructions=instructions,
            fork_layer=fork_layer,
            profiles=profiles,
            unknown_user=unknown_user,
            profile_prior=profile_prior,
            profile_reader=profile_reader,
            learn_from_conversations=learn_from_conversations,
            profile_tokens=profile_tokens,
            defaults=_cpu_defaults(context.args, instructions) if is_cpu_build() else {},
        )
        _become_vllm(argv)


def _cpu_defaults(user_flags: Sequence[str], instructions: bool) -> dict[str, str]:
    """Flags for vLLM on a CPU: flag -> value. Prints the KV cache's size where it is one of them."""
    defaults = {"--block-size": str(_CPU_BLOCK_SIZE)} if instructions else {}
    # --config names a file that may say it.
    says_memory = any(
        has_flag(user_flags, flag)
        for flag in ("--kv-cache-memory-bytes", "--gpu-memory-utilization", "--config")
    )
    if not says_memory and not os.environ.get("VLLM_CPU_KVCACHE_SPACE"):
        import psutil  # comes with vLLM

        share = psutil.virtual_memory().available // (4 * num_ranks(user_flags))
        num_bytes = min(_CPU_CACHE_BYTES, share)
        defaults["--kv-cache-memory-bytes"] = str(num_bytes)
        typer.echo(
            f"KV cache: {num_bytes / 2**30:.1f} GiB; --kv-cache-memory-bytes says otherwise",
            err=True,
        )
    return defaults


def _become_vllm(argv: list[str]) -> None:
    """Replace this process, so that signals and exit codes are vLLM's own."""
    if importlib.util.find_spec("vllm") is None:
        raise ValueError(f"vLLM cannot be imported. {INSTALL_VLLM}")
    os.execv(sys.executable, [sys.executable, "-m", "pad_vllm.serving.launch.vllm_program", *argv])
