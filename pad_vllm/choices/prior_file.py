"""What people have in common, as JSON: the first line of what `pad-vllm fit --out` writes for many users.

    {"form": null, "prior": {"kind": ..., "mean": {name: log-odds}, "covariance": [[...]]}, ...}

In: a TastePrior and names of dimensions. Out: plain JSON, and from a file the GaussianPrior [D] of an
adapter's dimensions, in its order. Only choices between guided answers (form null) have a prior per unit
of weight.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ValidationError

from pad_vllm.choices.logistic_posterior import GaussianPrior
from pad_vllm.choices.taste_prior import TastePrior

_ACCEPTED = (
    "accepted: what `pad-vllm fit BASE CHOICES --adapter A --out FILE` writes for ten users and more whose "
    "choices are between guided answers"
)


class _Prior(BaseModel, allow_inf_nan=False):
    mean: dict[str, float] | None = None
    covariance: list[list[float]] | None = None


class _FirstLine(BaseModel):
    form: str | None
    prior: _Prior | None


def prior_to_json(prior: TastePrior | None, dimensions: Sequence[str]) -> dict[str, Any] | None:
    """What users share as plain JSON, in log-odds per unit of a feature; None where nothing was estimated."""
    if prior is None:
        return None
    found: dict[str, Any] = {"kind": prior.kind, "left_out": prior.left_out}
    if prior.prior is not None:
        size = len(dimensions)
        mean = prior.prior.mean[:size].tolist()
        found["mean"] = dict(zip(dimensions, mean, strict=True))
        found["covariance"] = prior.prior.covariance[:size, :size].tolist()
    return found


def read_prior(path: Path, dimensions: Sequence[str]) -> GaussianPrior:
    """The prior of people whose weights have these dimensions.

    Args:
        path: of the file.
        dimensions: D names, in the adapter's order; the file may have more.

    Raises:
        ValueError: no such file, one of other dimensions, or one that says nothing of people.
    """
    try:
        with path.open(encoding="utf-8") as file:
            first = _FirstLine.model_validate(json.loads(file.readline()))
        return _prior(first, dimensions)
    except ValidationError as error:
        why = error.errors()[0]["msg"]
    except (OSError, ValueError, RecursionError) as error:
        why = str(error)
    raise ValueError(f"the prior of people {path}: {why}; {_ACCEPTED}")


def _prior(first: _FirstLine, dimensions: Sequence[str]) -> GaussianPrior:
    if first.form is not None:
        raise ValueError(f"it is of choices between unguided answers (compared by {first.form})")
    if first.prior is None or first.prior.mean is None or first.prior.covariance is None:
        raise ValueError("its users have nothing in common that predicts their choices")
    names = list(first.prior.mean)
    missing = [name for name in dimensions if name not in names]
    if missing:
        raise ValueError(f"it knows {', '.join(names)} and not {', '.join(missing)}")
    chosen = [names.index(name) for name in dimensions]
    mean = torch.tensor(list(first.prior.mean.values())).double()
    rows = first.prior.covariance
    if len(rows) != len(names) or any(len(row) != len(names) for row in rows):
        raise ValueError(f"its covariance is not {len(names)} rows of as many numbers")
    covariance = torch.tensor(rows).double()
    _, failed = torch.linalg.cholesky_ex(covariance)
    if failed or not torch.allclose(covariance, covariance.T):
        raise ValueError("its covariance is not symmetric and positive definite")
    return GaussianPrior(mean[chosen], covariance[chosen][:, chosen])
