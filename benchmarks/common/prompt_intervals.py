"""95% intervals of a number that is made of means over prompts, by bootstrap over the prompts.

In: columns by prompt, a function of their means. Out: the number and its interval. A rate, whose interval by
bootstrap is empty where all prompts are won, has `win_rates_and_fluency.win_rate_interval`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

BOOTSTRAPS = 2000


def mean_and_interval(values: Sequence[float]) -> list[float]:
    """[mean, low, high] of values of any range, rounded; values: one a prompt."""
    return statistic_and_interval([[value] for value in values], lambda means: means[..., 0])


def statistic_and_interval(
    by_prompt: Sequence[Sequence[float]], statistic: Callable[[np.ndarray], np.ndarray]
) -> list[float]:
    """[number, low, high], rounded.

    Args:
        by_prompt: N prompts, C numbers each.
        statistic: of means [..., C] over prompts -> [...].
    """
    columns = np.asarray(by_prompt)
    draws = np.random.default_rng(0).integers(len(columns), size=(BOOTSTRAPS, len(columns)))
    low, high = np.quantile(statistic(columns[draws].mean(1)), (0.025, 0.975))
    return [round(float(x), 3) for x in (statistic(columns.mean(0)), low, high)]
