"""`pad-vllm fit`: choices or a sentence in, `pad_weights` to paste into requests out, of one user or many."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pad_vllm.adapter.manifest import read_config
from pad_vllm.catalog.name_resolution import resolve_adapter
from pad_vllm.cli.error_reporting import report_errors, require_package
from pad_vllm.cli.shared_options import (
    AdapterOption,
    BaseArgument,
    ChatTemplateOption,
    chat_template_text,
)
from pad_vllm.cli.stated_preference import known_prior, read_sentence
from pad_vllm.cli.terminal_text import shown
from pad_vllm.training.user_choices import (
    CHOICE_FORM,
    GUIDED_CHOICE_FORM,
    UserChoice,
    answers_were_guided,
    choices_by_user,
    fit_to_json,
    guided_differences,
    read_answers,
    read_choices,
)
from pad_vllm.wording import listed

if TYPE_CHECKING:
    from torch import Tensor

    from pad_vllm.choices.fit_users import UserFits
    from pad_vllm.choices.fit_weights import WeightFit
    from pad_vllm.persrm import PersRM


_UNGUIDED_WARNING = (
    "CHOICES does not say what guided the answers. In our measurements, weights fitted to choices between "
    "unguided answers predicted simulated users' tastes no better than chance; `pad-vllm sample --adapter` "
    "and `pad-vllm choose` make pairs that carry more information."
)


def fit(
    base: BaseArgument,
    adapter: AdapterOption,
    choices: Annotated[
        Path | None,
        typer.Argument(
            metavar="[CHOICES]",
            help=f'JSONL of {CHOICE_FORM}, {GUIDED_CHOICE_FORM}; with several users, "user": a name. '
            "May be left out with --sentence.",
        ),
    ] = None,
    sentence: Annotated[
        str | None,
        typer.Option(
            help="What the user says they like, such as 'Be short and a bit ironic.': becomes weights "
            "without training; choices correct it."
        ),
    ] = None,
    strength: Annotated[
        float,
        typer.Option(
            help="How strongly the prior pulls weights towards 0; use more for fewer choices."
        ),
    ] = 1.0,
    prior: Annotated[
        Path | None,
        typer.Option(
            help="What people share: the --out of a fit of many users. Without it, ten users and more in "
            "CHOICES say it themselves."
        ),
    ] = None,
    no_prior: Annotated[
        bool,
        typer.Option("--no-prior", help="Fit each user of CHOICES alone."),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="File to write the result to, as JSON; of users, a line each."),
    ] = None,
    chat_template: ChatTemplateOption = None,
) -> None:
    """Learn users' pad_weights from their CHOICES between two answers, from a SENTENCE, or from both.

    Few choices suffice where both answers were guided, each by other weights (`pad-vllm sample --adapter`,
    `pad-vllm choose`); BASE is not loaded for those, unless there is a sentence.
    """
    with report_errors():
        require_package("peft")
        by_user = {} if choices is None else choices_by_user(read_choices(choices))
        folder = resolve_adapter(adapter)
        config = read_config(folder)
        dimensions = config.dimensions
        guided = answers_were_guided([choice for rows in by_user.values() for choice in rows])
        _require_choices(by_user, sentence if choices is None else None)
        if choices is not None and (sentence or prior):
            _require_units_of_weight(by_user, sentence, guided=guided)

        @cache  # a sentence and unguided answers are read by one model
        def open_model() -> tuple[PersRM, Any]:
            return _load_model(base, folder, chat_template_text(chat_template))

        stated = None if sentence is None else read_sentence(*open_model(), sentence, config.top_k)
        settings: dict[str, Any] = {"adapter": adapter, "base": base, "strength": strength}
        if stated is not None:
            settings["stated"] = stated.to_json(dimensions)
            stated.print_remarks(dimensions)
        if choices is None:
            weights = settings["stated"]["pad_weights"]
            typer.echo(f'pad_weights: "{weights}"')
            _write([settings | {"pad_weights": weights}], out)
            return
        form = None
        if guided:
            differences = {u: guided_differences(rows, dimensions) for u, rows in by_user.items()}
        else:
            form, differences = _answer_differences(*open_model(), by_user, strength)
            typer.echo(_UNGUIDED_WARNING, err=True)
        from pad_vllm.choices.choice_form import has_length
        from pad_vllm.choices.fit_users import fit_users

        fitted = fit_users(
            differences,
            strength=strength,
            with_prior=not no_prior,
            known_prior=known_prior(prior, stated, dimensions),
            nuisance=int(form is not None and has_length(form)),
        )
        settings["form"] = form
        if None in by_user:
            _print_fit(fitted.fits[None], dimensions, form)
            _write([settings | fit_to_json(fitted.fits[None], dimensions)], out)
        else:
            _print_users(fitted, dimensions, form)
            _write(_user_lines(fitted, dimensions, settings), out)


def _write(lines: Sequence[Mapping[str, Any]], out: Path | None) -> None:
    """One result is indented, those of several users have a line each."""
    if out is not None:
        indent = 2 if len(lines) == 1 else None
        text = (json.dumps(x, indent=indent, allow_nan=False) + "\n" for x in lines)
        out.write_text("".join(text), "utf-8")


def _require_choices(
    by_user: Mapping[str | None, Sequence[UserChoice]], sentence: str | None
) -> None:
    """Raises ValueError for a file without choices, or with one choice of one user, before a base is read.

    Args:
        by_user: the choices.
        sentence: in the place of a file.
    """
    from pad_vllm.choices.fit_weights import MIN_CHOICES

    count = sum(map(len, by_user.values()))
    if count < MIN_CHOICES and sentence is None:
        raise ValueError(
            f"{count} choices; accepted: at least {MIN_CHOICES}. Add lines, or say "
            "--sentence without CHOICES."
        )


def _require_units_of_weight(
    by_user: Mapping[str | None, Sequence[UserChoice]], sentence: str | None, *, guided: bool
) -> None:
    """Raises ValueError where --sentence or --prior cannot stand before these choices.

    Args:
        by_user: the choices.
        sentence: that one user said.
        guided: whether the answers were.
    """
    if sentence is not None and None not in by_user:
        raise ValueError(
            "--sentence is one person's, and CHOICES has several users; accepted: a file that names no user"
        )
    if not guided:
        raise ValueError(
            "--sentence and --prior speak of weights, and CHOICES does not say what guided its answers; "
            "accepted: choices between guided answers (`pad-vllm sample --adapter`, `pad-vllm choose`)"
        )


def _answer_differences(
    model: PersRM,
    tokenizer: Any,
    by_user: Mapping[str | None, Sequence[UserChoice]],
    strength: float,
) -> tuple[str, dict[str | None, Tensor]]:
    """(How answers are compared, user -> differences [N, D or D + 1])."""
    from pad_vllm.choices.choice_form import choose_form

    pairs = {user: read_answers(model, tokenizer, rows) for user, rows in by_user.items()}
    form = choose_form(list(pairs.values()), strength)
    return form, {user: of_user.differences(form) for user, of_user in pairs.items()}


def _user_lines(
    fitted: UserFits, dimensions: Sequence[str], settings: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """What all users share, then one line each."""
    from pad_vllm.choices.prior_file import prior_to_json

    shared = {
        **settings,
        "users": len(fitted.fits),
        "choices": sum(one.choices for one in fitted.fits.values()),
        "prior": prior_to_json(fitted.prior, dimensions),
    }
    return [
        shared,
        *({"user": u, **fit_to_json(one, dimensions)} for u, one in fitted.fits.items()),
    ]


def _load_model(base: str, folder: str, template: str | None) -> tuple[PersRM, Any]:
    """The adapter in `folder` on its base, and the base's tokenizer. Warns of another base."""
    from pad_vllm.adapter.adapter_folder import load_adapter
    from pad_vllm.adapter.backbone.backbone import Backbone, require_same_backbone
    from pad_vllm.opened_base import open_base
    from pad_vllm.persrm import PersRM

    adapter = load_adapter(folder)
    backbone, tokenizer, checkpoint = open_base(
        base, chat_template=template or adapter.config.chat_template
    )
    served = Backbone.from_checkpoint(checkpoint)
    # A mismatch only warns: weights for a quantised copy may be fitted on the original model.
    for warning in require_same_backbone(adapter.config.backbone, served, allow_mismatch=True):
        Console(stderr=True).print(f"[yellow]Warning:[/yellow] {escape(warning)}", soft_wrap=True)
    return PersRM.from_adapter(backbone, adapter), tokenizer


def _print_users(fitted: UserFits, dimensions: Sequence[str], form: str | None) -> None:
    """What the users share, and a line each."""
    fits = fitted.fits
    print_line = partial(Console().print, highlight=False, markup=False, soft_wrap=True)
    if (prior := fitted.prior) is not None:
        left_out = ", ".join(f"{kind} {value:.3f}" for kind, value in prior.left_out.items())
        print_line(f"prior: {prior.kind}. Log probability of choices left out: {left_out}.")
        if prior.prior is not None:
            rows = zip(dimensions, prior.prior.mean.tolist(), strict=False)
            mean = ", ".join(f"{name} {value:+.2f}" for name, value in rows)
            print_line(f"the users' mean, in log-odds: {mean}")
    if form is not None:
        print_line(f"answers are compared by: {form}")
    choices = sum(one.choices for one in fits.values())
    right = sum(one.cross_validated * one.choices for one in fits.values()) / choices
    single = sum(one.baseline * one.choices for one in fits.values()) / choices
    print_line(
        f"{len(fits)} users, {choices} choices. Of choices left out of a user's fit the weights predict "
        f"{right:.0%}, each user's best single dimension {single:.0%}."
    )
    for user, one in fits.items():
        clear = [n for n, known in zip(dimensions, one.excludes_zero, strict=True) if known]
        print_line(
            f'{shown(str(user))}: pad_weights: "{one.pad_weights(dimensions)}" '
            f"({one.choices} choices; sign clear: {listed(clear) if clear else 'none'})"
        )


def _print_fit(fitted: WeightFit, dimensions: Sequence[str], form: str | None) -> None:
    table = Table("dimension", "w", "95% interval", "note")
    rows = zip(
        dimensions, fitted.w.tolist(), fitted.interval.tolist(), fitted.excludes_zero, strict=True
    )
    for name, w, (low, high), excludes_zero in rows:
        note = "" if excludes_zero else "sign not clear from these choices"
        table.add_row(escape(name), f"{w:+.2f}", f"{low:+.2f} to {high:+.2f}", note)
    console = Console()
    console.print(table)
    if form is not None:
        console.print(f"answers are compared by: {form}", highlight=False)
    console.print(
        f"{fitted.choices} choices. The weights predict {fitted.accuracy:.0%} of them; of choices left out "
        f"of the fit {fitted.cross_validated:.0%}, the best single dimension {fitted.baseline:.0%}.",
        highlight=False,
    )
    typer.echo(f'pad_weights: "{fitted.pad_weights(dimensions)}"')
