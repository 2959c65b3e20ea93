"""What a training method provides: the one interface between `TrainingRun` and the three ways of training.

A method decides what is learned from (scored pairs, scores, instructions) and how. The run does everything
else: it loads the base, makes the untrained PersRM, saves the adapter. `training_methods.py` has the table.
"""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

from pad_vllm.adapter.adapter import Adapter
from pad_vllm.adapter.manifest import AdapterConfig
from pad_vllm.persrm import PersRM
from pad_vllm.training.loop.trainer import HistoryRow
from pad_vllm.training.report.training_curves import CurveLabels
from pad_vllm.training.run_context import RunContext


class TrainingMethod(Protocol):
    """One way to train an adapter. The run calls the constructor and the methods in the order written here,
    each once, but `describe_data` and `made_from`, which it may call at any time.
    """

    accuracy_label: ClassVar[str]
    """What the log calls the shares that early stopping goes by, such as "validation pairs"."""

    curve_labels: ClassVar[CurveLabels]
    """Titles of curves.png."""

    dimensions: tuple[str, ...]
    """Names of the adapter's D dimensions, set by the constructor."""

    def __init__(self, context: RunContext) -> None:
        """Read the data or the prompts, without a model.

        Raises ValueError for settings that the method cannot train with, and for data that no dimension can
        be learned from.
        """

    def attach_model(self, model: PersRM) -> None:
        """Take the untrained model and open the store of its activations.

        Called twice: with a model without weights, on PyTorch's meta device, so that what does not fit is
        refused before anything is drawn or loaded; then with the real one, on this worker's device.

        Raises ValueError for a model that the method cannot train.
        """

    def draw(self) -> None:
        """Draw what an engine of vLLM must answer, in a process that has ended when this returns.

        Runs before the base is loaded: the engine takes nearly all of a GPU's memory.
        """

    def gather(self) -> None:
        """Compute everything that `learn` and `evaluate` read of the frozen base, into the store."""

    def learn(self) -> list[HistoryRow]:
        """Train the attached model; its parameters change.

        Returns:
            The rows of history.json and curves.png; none if the method has no steps.
        """

    def evaluate(self) -> dict[str, Any]:
        """What the model is worth on held-out prompts: keys of the `training` section of pad_config.json.

        Runs on worker 0 only, without gradients. May rescale the heads to one unit.
        """

    def describe_data(self) -> dict[str, Any]:
        """What the adapter was trained on: `training.data` of pad_config.json."""

    def made_from(self) -> dict[str, Any]:
        """What the method reads, as JSON that changes with its content: digests of files, how answers are
        drawn. An unfinished run goes on only if it is the same. The key `revisions` is not compared.
        """

    def complete(self, adapter: Adapter) -> Adapter:
        """The adapter with what was learned beside its trunk and heads; the same one where there is nothing.

        Runs on worker 0 only.
        """

    def save_control(self, config: AdapterConfig) -> None:
        """Save in the run's folder the control adapter that this one has to beat, where there is one.

        It has the dimensions' best constant directions (a bias over the vocabulary) and nothing else.
        """
