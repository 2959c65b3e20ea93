"""What `pad-vllm fit` knows of a person before any choice: a file on people, a sentence, or both.

In: --prior and --sentence. Out: the prior of the fit, and the sentence's own weights. torch is
imported when one of them is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from pad_vllm.choices.logistic_posterior import GaussianPrior
    from pad_vllm.choices.sentence_weights import SentenceWeights
    from pad_vllm.persrm import PersRM


@dataclass(frozen=True)
class StatedPreference:
    """A sentence and the weights that it became."""

    sentence: str
    weights: SentenceWeights

    def to_json(self, dimensions: Sequence[str]) -> dict[str, Any]:
        """Plain JSON; dimensions: D names."""
        return {
            "sentence": self.sentence,
            "pad_weights": self.pad_weights(dimensions),
            "explained": round(self.weights.explained, 3),
        }

    def pad_weights(self, dimensions: Sequence[str]) -> str:
        """The request argument; dimensions: D names."""
        from pad_vllm.choices.fitted_weights import weights_text

        return weights_text(self.weights.w, dimensions)

    def print_remarks(self, dimensions: Sequence[str]) -> None:
        """What it became, and a warning where the adapter can hardly say it; dimensions: D names."""
        from pad_vllm.choices.sentence_weights import is_foreign

        typer.echo(
            f"the sentence alone: {self.pad_weights(dimensions)} (these dimensions explain "
            f"{self.weights.explained:.0%} of what it teaches)"
        )
        if is_foreign(self.weights.explained):
            typer.echo(
                "These dimensions have little to do with the sentence. `pad-vllm train --teacher prompt` "
                "makes a dimension of it; pad_preference takes it as it is.",
                err=True,
            )


def read_sentence(model: PersRM, tokenizer: Any, sentence: str, top_k: int) -> StatedPreference:
    """The sentence's weights, by the prompts that ship.

    Args:
        model: the adapter on its base.
        tokenizer: the base's, with a chat template.
        sentence: as a user would add it to a prompt.
        top_k: candidates of a token.
    """
    from pad_vllm.choices.candidate_reader import CandidateReader
    from pad_vllm.choices.sentence_weights import SentenceReader, sentence_prompts

    reader = SentenceReader(CandidateReader(model, tokenizer, top_k), sentence_prompts())
    return StatedPreference(sentence, reader.weights(sentence))


def known_prior(
    file: Path | None, stated: StatedPreference | None, dimensions: Sequence[str]
) -> GaussianPrior | None:
    """The prior of one person; None where nothing is known.

    Args:
        file: on people (prior_file.py).
        stated: what the person said.
        dimensions: D names.
    """
    from pad_vllm.choices.logistic_posterior import GaussianPrior
    from pad_vllm.choices.prior_file import read_prior

    if file is None and stated is None:
        return None
    people = (
        GaussianPrior.of_unit_weights(len(dimensions))
        if file is None
        else read_prior(file, dimensions)
    )
    return people if stated is None else people.around_stated(stated.weights.w)
