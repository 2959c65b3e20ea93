"""Which run such settings ask for: the three teachers, pairs, scores by credit, and sentences."""

from __future__ import annotations

from pad_vllm.training.credit.credit_run import CreditRun
from pad_vllm.training.distillation.distillation_run import DistillationRun
from pad_vllm.training.settings import Settings
from pad_vllm.training.training_run import TrainingRun


def run_of(settings: Settings) -> type[TrainingRun]:
    if settings.teacher is not None:
        return DistillationRun
    return CreditRun if settings.by_credit else TrainingRun
