"""The stage of a distillation that trains a prefix for each dimension, from the dimension's own sentence.

In: answers with the teacher's rewards of all dimensions. Out: LearnedPrefixes, in the run's folder as soon as
each is trained and in the adapter at the end. Every worker trains some of the dimensions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pad_vllm.adapter.adapter import Adapter
from pad_vllm.adapter.learned_prefix import LearnedPrefix
from pad_vllm.instruction_prefix import InstructedBackbone, InstructionPrefix
from pad_vllm.persrm import PersRM
from pad_vllm.text.instruction_tokens import instruction_tokens
from pad_vllm.training.distillation.instructions import Instruction
from pad_vllm.training.distillation.prefix_training import (
    PrefixText,
    PrefixTexts,
    sentence_prefix,
    train_prefix,
)
from pad_vllm.training.run_context import RunContext
from pad_vllm.training.settings import PrefixSettings


class AnswersWithRewards(NamedTuple):
    """Answers, and [n, K, D] the teacher's rewards of each."""

    texts: Sequence[PrefixText]
    rewards: Sequence[Tensor]

    def rewards_of(self, dimension: int) -> list[Tensor]:
        """[n, K] of each answer."""
        return [rewards[..., dimension] for rewards in self.rewards]


class LearnedPrefixStage:
    """The prefixes of one run, on one worker."""

    def __init__(
        self,
        context: RunContext,
        model: PersRM,
        instructions: Sequence[Instruction],
        settings: PrefixSettings,
    ) -> None:
        """Nothing is trained yet.

        Args:
            context: of the run.
            model: heads only, on its device.
            instructions: of the dimensions.
            settings: of the prefixes.

        Raises:
            ValueError: the adapter has a trunk, the base does not have the fork layer, or layers from there
                up have sliding windows.
        """
        if not model.heads_only:
            raise ValueError(
                f"learned prefixes stand beside heads only, and --fork-layer {model.fork_layer} asks for a "
                "trunk: leave one of the two out (the layer that reads prefixes is --prefix-fork-layer)"
            )
        num_layers = context.backbone.num_layers
        fork_layer = num_layers // 2 if settings.fork_layer is None else settings.fork_layer
        self._backbone = InstructedBackbone(model.backbone, fork_layer)
        self._context, self._model, self._settings = context, model, settings
        self._instructions = instructions

    def train(self, read_answers: Callable[[], AnswersWithRewards]) -> None:
        """Train a prefix for each dimension of this worker; those in the run's folder are done.

        Returns when those of all workers are there. Workers with less to do look for the others' files: a
        barrier would time out.

        read_answers: makes the training answers, where there is something to train.
        """
        own = self._context.share_of(range(len(self._instructions)))
        missing = [index for index in own if not self._file(index).is_file()]
        if missing:
            answers = read_answers()
            texts = PrefixTexts(self._backbone, self._model.embeddings, answers.texts)
            for index in missing:
                self._train_one(index, texts, answers.rewards_of(index))
        files = [self._file(index) for index in range(len(self._instructions))]
        while not all(file.is_file() for file in files):
            time.sleep(1)
        self._context.wait_for_all_workers()

    def shares(
        self, answers: AnswersWithRewards, first_tokens: AnswersWithRewards
    ) -> dict[str, Tensor]:
        """[D] share of the teacher's rewards that is explained: by the sentence as it is read and by the
        trained prefix on held-out answers, and by the latter at first tokens.

        Args:
            answers: held out.
            first_tokens: answers of which only the first token counts.
        """
        texts, firsts = (
            PrefixTexts(self._backbone, self._model.embeddings, one.texts)
            for one in (answers, first_tokens)
        )
        columns: dict[str, list[float]] = {"sentence": [], "prefix": [], "prefix_first": []}
        for index in range(len(self._instructions)):
            rewards = answers.rewards_of(index)
            sentence, trained = self._sentence_prefix(index), self._trained_prefix(index)
            columns["sentence"].append(texts.explained_share(sentence, rewards))
            columns["prefix"].append(texts.explained_share(trained, rewards))
            first_rewards = first_tokens.rewards_of(index)
            columns["prefix_first"].append(firsts.explained_share(trained, first_rewards, 1))
        return {name: torch.tensor(values) for name, values in columns.items()}

    def added_to(self, adapter: Adapter) -> Adapter:
        """An adapter, heads only, with the trained prefixes."""
        prefixes = {}
        for index, instruction in enumerate(self._instructions):
            keys, values = (torch.stack(part).cpu() for part in self._trained_prefix(index))
            prefixes[instruction.dimension] = LearnedPrefix(keys, values)
        return adapter.with_prefixes(self._backbone.fork_layer, prefixes)

    def _train_one(self, index: int, texts: PrefixTexts, rewards: Sequence[Tensor]) -> None:
        name, log = self._instructions[index].dimension, self._context.log
        trained = train_prefix(
            texts,
            rewards,
            self._sentence_prefix(index),
            self._settings,
            seed=self._context.settings.recipe.seed,
            log=lambda epoch, share: log.write_line(
                f"prefix {name}: epoch {epoch} of {self._settings.epochs}, {share:.3f} not explained"
            ),
        )
        keys, values = (torch.stack(part).cpu().contiguous() for part in trained)
        partial = self._file(index).with_suffix(".partial")
        save_file({"keys": keys, "values": values}, partial)
        partial.replace(self._file(index))

    def _sentence_prefix(self, index: int) -> InstructionPrefix:
        sentence = self._instructions[index].sentences[0]
        tokens = instruction_tokens(self._context.tokenizer, sentence)
        return sentence_prefix(self._backbone, tokens, self._settings.tokens)

    def _trained_prefix(self, index: int) -> InstructionPrefix:
        tensors = load_file(self._file(index), device=str(self._backbone.device))
        return InstructionPrefix(tuple(tensors["keys"]), tuple(tensors["values"]))

    def _file(self, index: int) -> Path:
        return self._context.folder / f"prefix-{self._instructions[index].dimension}.safetensors"
