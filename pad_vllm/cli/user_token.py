"""`pad-vllm user-token`: a token by which a user names themselves to a server with --profile-tokens."""

from __future__ import annotations

from typing import Annotated

import typer

from pad_vllm.cli.error_reporting import report_errors


def user_token(
    user: Annotated[str | None, typer.Argument(help="Whom it names.", show_default=False)] = None,
    secret: Annotated[
        str, typer.Option(help="What the server has as --profile-tokens: env:NAME, or a file.")
    ] = "",
    days: Annotated[float, typer.Option(min=0.001, max=3650, help="Until it ends.")] = 30.0,
    admin: Annotated[
        bool, typer.Option("--admin", help="For the operator's own backend: it names anyone.")
    ] = False,
) -> None:
    """Print a token, which a client sends as the header X-PAD-User-Token beside the server's key."""
    if (user is None) != admin:
        raise typer.BadParameter("give either a USER or --admin")
    if not secret:
        raise typer.BadParameter("give --secret, as the server has it: env:NAME, or a file")
    from pad_vllm.profiles.user_tokens import UserTokens, read_secret

    with report_errors():
        typer.echo(UserTokens(read_secret(secret)).make(user, days * 86_400))
