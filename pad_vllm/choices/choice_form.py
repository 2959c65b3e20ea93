"""What of two answers a choice is explained by: sums or means of the tokens' features, and their length.

    sum     Psi(chosen) - Psi(other),   Psi = sum over the answer's tokens of phi
    mean    Psi(chosen) / length - Psi(other) / length
    ... with length: one column more, the difference of the lengths, which is fitted and then dropped

A user who reads how an answer is written judges means; sums also say how long it is, since features have a
mean of their own. The form is chosen by the choices that it predicts when they are left out. In: sums and
lengths of the answers. Out: differences [N, D] or [N, D + 1] of a form. Knows neither models nor files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pad_vllm.choices.left_out_choices import left_out_log_probability, prior_around_zero

DEFAULT_FORM = "mean with length"
FORMS = (DEFAULT_FORM, "mean", "sum with length", "sum")
MIN_CHOICES_FOR_A_FORM = 20
"""Fewer choices, of all users together, do not say which form is best: they get DEFAULT_FORM."""


@dataclass(frozen=True, eq=False)
class AnswerPairs:
    """N choices of one user between two answers."""

    sums: Tensor
    """[N, 2, D] Psi of the chosen and of the other answer."""

    lengths: Tensor
    """[N, 2] their tokens, at least 1."""

    def differences(self, form: str) -> Tensor:
        """[N, D] float64, or [N, D + 1] with length: chosen less other, in one of FORMS."""
        lengths = self.lengths.double()
        features = self.sums.detach().cpu().double()
        if form.startswith("mean"):
            features = features / lengths.unsqueeze(-1)
        columns = [features]
        if has_length(form):
            columns.append(lengths.unsqueeze(-1))
        chosen, other = torch.cat(columns, -1).unbind(1)
        return chosen - other


def has_length(form: str) -> bool:
    """Whether the last column is the length, which is no dimension."""
    return form.endswith("length")


def choose_form(users: Sequence[AnswerPairs], strength: float = 1.0) -> str:
    """The one of FORMS that makes left-out choices most probable, or DEFAULT_FORM for few choices.

    Args:
        users: choices of each.
        strength: of the prior around 0.
    """
    if sum(len(user.sums) for user in users) < MIN_CHOICES_FOR_A_FORM:
        return DEFAULT_FORM
    prior_of = prior_around_zero(strength)
    by_form = {
        form: left_out_log_probability([user.differences(form) for user in users], prior_of)
        for form in FORMS
    }
    return max(by_form, key=by_form.__getitem__)
