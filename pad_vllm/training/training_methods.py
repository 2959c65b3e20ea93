"""Which run such settings ask for: the three teachers, pairs, scores by credit, and sentences."""

from __future__ import annotations

from pad_vllm.training.credit.credit_run import CreditRun
from pad_vllm.training.distillation.distillation_run import TaughtRun
from pad_vllm.training.settings import Settings
from pad_vllm.training.training_run import Run


def run_of(settings: Settings) -> type[Run]:
    if settings.teacher is not None:
        return TaughtRun
    return CreditRun if settings.by_credit else Run
