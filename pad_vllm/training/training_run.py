"""A training run from settings to adapter: data, fork cache, two stages, held-out figures, files.

In: Settings. Out: the adapter's folder with its model card, curves.png and history.json. All state of an
unfinished run lies in `OUT.run`; the same command goes on from there. Runs alone or as one of several
workers (Accelerate finds out which); worker 0 writes.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pad_vllm.adapter.adapter import Adapter
from pad_vllm.adapter.adapter_folder import require_replaceable, save_adapter
from pad_vllm.adapter.backbone.backbone import Backbone
from pad_vllm.text.chat_template import load_chat_tokenizer
from pad_vllm.training.data.data_report import DataReport
from pad_vllm.training.data.prepare_data import PreparedData, checkpoint_folder, prepare_groups
from pad_vllm.training.data.prompt_groups import PromptGroup
from pad_vllm.training.loop.pair_dataset import PairDataset
from pad_vllm.training.loop.trainer import HistoryRow, StageData, StageTrainer, TrainingStage
from pad_vllm.training.loop.training_log import TrainingLog
from pad_vllm.training.objective.loss_module import PreferenceObjective
from pad_vllm.training.objective.training_model import load_backbone, to_adapter, untrained_persrm
from pad_vllm.training.objective.training_store import TrainingStore
from pad_vllm.training.report import held_out_accuracy
from pad_vllm.training.report.model_card import model_card_text
from pad_vllm.training.report.training_curves import PAIR_ACCURACY, plot_training_curves
from pad_vllm.training.settings import CHANGEABLE_SETTINGS, Settings
from pad_vllm.version import __version__

_BESIDE = ("out", "recipe", "chat_template")
"""Settings that stand elsewhere in pad_config.json, or nowhere."""


class TrainingRun:
    """One worker's part of a run. cache: folder of fork activations. command: for the card.

    What is learned from pairs here, and may be learned otherwise (distillation/distillation_run.py,
    credit/credit_run.py), is in `_prepared`,
    `_store`, `_gather`, `_learn`, `_lessons`, `_figures`, `_told` and the two attributes.
    """

    measured = "validation pairs"
    shown = PAIR_ACCURACY

    def __init__(self, settings: Settings, cache: Path, command: str) -> None:
        from accelerate import Accelerator

        self.settings, self.command = settings, command
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available())
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        self.work = run_folder(settings)
        self.log = TrainingLog(self.work if self.rank == 0 else None, accuracy_label=self.measured)
        self.seconds: dict[str, float] = {}
        folder = checkpoint_folder(settings.base)
        self.backbone = Backbone.from_checkpoint(folder, settings.name)
        tokenizer = load_chat_tokenizer(folder, settings.base, settings.chat_template)
        self.tokenizer = tokenizer
        self.prepared = self._prepared()
        torch.manual_seed(settings.recipe.seed)
        model = load_backbone(folder, settings.dtype)
        self.model = untrained_persrm(model, self.prepared.dimensions, settings).to(
            self.accelerator.device
        )
        if settings.recipe.checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        identity = self.backbone.fingerprint or str(folder)
        self.store = self._store(cache, identity)
        # What would be refused when all is trained is refused now, and no run is begun.
        self._adapter({})
        require_replaceable(Path(settings.out).expanduser())
        if self.rank == 0:
            _claim_run_folder(self.work, settings)
        self.accelerator.wait_for_everyone()

    def train(self) -> Adapter | None:
        """The whole run; the adapter on worker 0, None on the others."""
        self.gathered = self._gather()
        history = self._learn()
        if self.rank:
            return None
        with self._timed("evaluation"), torch.no_grad():
            figures = self._figures()
        adapter = self._adapter(figures)
        self._write(adapter, history)
        return adapter

    def _learn(self) -> list[HistoryRow]:
        """The model learns from what was gathered; the rows of curves.png, where there are any."""
        history = self._stage(1)
        if self.settings.recipe.head_epochs:
            with self._timed("trunk"):
                self._freeze(self.gathered)
            history += self._stage(2)
        return history

    def _prepared(self) -> PreparedData:
        prepared = prepare_groups(self.settings, self.tokenizer)
        _require_scored_dimensions(self.settings.dimensions, prepared.report)
        return prepared

    def _store(self, cache: Path, identity: str) -> TrainingStore:
        return TrainingStore(self.model, self.tokenizer, self.settings, cache, identity)

    def _gather(self) -> list[PromptGroup]:
        """All that the stages and the figures read is in the store afterwards: the groups of it."""
        prepared, log = self.prepared, self.log
        for row in prepared.report.table_rows():
            self._say_row(row)
        for line in prepared.report.malformed_lines():
            log.write_line(f"malformed: {line}")
        with self._timed("cache"):
            watched = [*prepared.validation, *prepared.held_out]
            self._build(prepared.train, scored=True)
            self._build(watched, scored=False)
        return [*prepared.train, *watched]

    def _lessons(self) -> tuple[nn.Module, StageData]:
        """The objective and the prompts of a stage."""
        recipe = self.settings.recipe
        prompts = PairDataset(self.store, self.prepared.train, self.prepared.validation, recipe)
        return PreferenceObjective(self.model, recipe), prompts

    def _figures(self) -> dict[str, Any]:
        """What the adapter is worth on the held-out prompts, as the card has it."""
        groups, recipe = self.prepared.held_out, self.settings.recipe
        if not self.settings.prompted:
            return {"held_out": held_out_accuracy.accuracy_rows(self.store, groups, recipe)}
        arguments = self.tokenizer, groups, recipe, self.log.progress
        return {
            "held_out": held_out_accuracy.accuracy_rows_with_prompted_base(self.store, *arguments)
        }

    def _told(self) -> dict[str, Any]:
        """What was learned from, as the card has it."""
        return self.prepared.report.as_dict()

    def _build(self, groups: Sequence[PromptGroup], *, scored: bool) -> None:
        self.store.build(groups, self.rank, self.world, self.log.progress, with_targets=scored)
        self.accelerator.wait_for_everyone()

    def _freeze(self, groups: Sequence[PromptGroup]) -> None:
        lora = self.model.lora_parameters()
        for parameter in lora.values():
            parameter.requires_grad = False
        if lora and self.settings.cached:
            folder = self.work / "trunk"
            self.store.freeze_trunk(groups, folder, self.rank, self.world, self.log.progress)
        self.accelerator.wait_for_everyone()

    def _stage(self, number: int) -> list[HistoryRow]:
        recipe, model = self.settings.recipe, self.model
        lora = model.lora_parameters()
        heads = {"head_A": model.head_A, "head_B": model.head_B}
        groups: list[dict[str, Any]] = [{"params": list(heads.values()), "lr": recipe.head_lr}]
        if number == 1 and lora:
            groups.insert(0, {"params": list(lora.values()), "lr": recipe.lora_lr})
        epochs = recipe.epochs if number == 1 else recipe.head_epochs
        stage = TrainingStage(number, epochs, groups, {**lora, **heads})
        objective, prompts = self._lessons()
        with self._timed(f"stage{number}"):
            return StageTrainer(
                objective,
                prompts,
                recipe,
                stage,
                self.accelerator,
                self.work,
                self.log.write_history_row,
            ).train()

    def _say_row(self, cells: Sequence[object]) -> None:
        self.log.write_line("  ".join(f"{cell!s:>13}" for cell in cells))

    def _timed(self, name: str) -> _Timer:
        return _Timer(self.seconds, name, self.log)

    def _adapter(self, figures: dict[str, Any]) -> Adapter:
        settings = self.settings
        training = {
            "command": self.command,
            "revision": git_revision(),
            "versions": package_versions(),
            "settings": {k: v for k, v in settings.as_dict().items() if k not in _BESIDE},
            "recipe": asdict(settings.recipe),
            "seed": settings.recipe.seed,
            "data": self._told(),
            **figures,
            "seconds": {name: round(value) for name, value in self.seconds.items()},
            "peak_memory_gib": round(peak_memory_gib(), 2),
        }
        return to_adapter(
            self.model,
            self.backbone,
            training,
            beta=settings.beta,
            top_k=settings.top_k,
            no_repeat=settings.no_repeat,
            min_p=settings.min_p,
            chat_template=settings.chat_template,
        )

    def _write(self, adapter: Adapter, history: list[HistoryRow]) -> None:
        out = Path(self.settings.out)
        save_adapter(adapter, out, model_card_text(adapter.config, None))
        if history:
            (out / "history.json").write_text(json.dumps(history))
            plot_training_curves(history, out / "curves.png", self.shown)
        shutil.rmtree(self.work / "trunk", ignore_errors=True)
        self.log.write_line(f"peak memory {adapter.config.training['peak_memory_gib']} GiB")
        self.log.write_line(f"wrote {out}")
        self.log.close()


class _Timer:
    """Measures the seconds of a part of the run and logs them."""

    def __init__(self, seconds: dict[str, float], name: str, log: TrainingLog) -> None:
        self.seconds, self.name, self.log = seconds, name, log

    def __enter__(self) -> None:
        self.start = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.seconds[self.name] = time.monotonic() - self.start
        self.log.write_line(f"{self.name}: {self.seconds[self.name]:.0f} s")


def run_folder(settings: Settings) -> Path:
    """Where an unfinished run lives: beside the adapter, so that the adapter's folder stays clean."""
    out = Path(settings.out)
    return out.with_name(out.name + ".run")


def _require_scored_dimensions(dimensions: Sequence[str], report: DataReport) -> None:
    """Raises ValueError for one of the dimensions asked for that the data says nothing of."""
    pairs: Counter[str] = Counter()
    for lengths in report.grouping.values():
        pairs.update(lengths.pairs)
    for name in dimensions:
        if not pairs[name]:
            raise ValueError(
                f"dimension {name}: no two responses of the data have different scores of it, so "
                "nothing can be learned. Correct --dimensions, or give data that scores it"
            )


def _claim_run_folder(work: Path, settings: Settings) -> None:
    """Write the run's settings; ValueError where the folder holds a run with other settings."""
    note = work / "settings.json"
    if note.exists():
        before = Settings.from_dict(json.loads(note.read_text()))
        if before.digest() != settings.digest():
            raise ValueError(
                f"{work} holds a run with other settings: {_differences(before, settings)}. Give "
                "the settings it was started with, another --out, or --restart to begin anew"
            )
    else:
        work.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps(settings.as_dict(), indent=1))


def _differences(before: Settings, now: Settings) -> str:
    old, new = ({**s.as_dict(), **s.as_dict()["recipe"]} for s in (before, now))
    names = [k for k in old if k not in ("recipe", *CHANGEABLE_SETTINGS) and old[k] != new[k]]
    return ", ".join(f"{name} was {old[name]!r}, now {new[name]!r}" for name in names)


def peak_memory_gib() -> float:
    """Peak resident memory of this process."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def package_versions() -> dict[str, str]:
    """Versions of the packages that a rerun needs."""
    version_of = {"pad_vllm": __version__, "python": sys.version.split()[0]}
    for package in ("torch", "transformers", "peft", "accelerate", "datasets"):
        version_of[package] = version(package)
    return version_of


def git_revision() -> str | None:
    """The commit of a checkout that runs this, None for an installed package."""
    try:
        said = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return said.stdout.strip()
