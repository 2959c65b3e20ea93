"""What this process holds of each vLLM instance: reward engine, outcomes, counters, limits, failure log.

In: what model loader and logits processor register under `VllmConfig.instance_id`, in either order. Out: the
same Instance for both, and for the calls that the front end makes to a worker. One process may have several
instances. An Instance is freed with the model and the processor that hold it.
"""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakValueDictionary, ref

from pad_vllm.engines.failure_log import FailureLog
from pad_vllm.engines.reward_engine import RewardEngine
from pad_vllm.guidance_outcome import WorkerReport
from pad_vllm.serving.worker.accepted_limits import AcceptedLimits
from pad_vllm.serving.worker.outcome_table import OutcomeTable
from pad_vllm.serving.worker.step_counters import StepCounters
from pad_vllm.vllm_api.vllm_names import init_logger

logger = init_logger(__name__)


class Instance:
    """The parts of one vLLM instance in this process, each None until it is registered."""

    def __init__(self) -> None:
        self.failure_log = FailureLog(logger.warning)
        self.outcome_table: OutcomeTable | None = None
        self.step_counters: StepCounters | None = None
        self.accepted_limits: AcceptedLimits | None = None
        self._engine: ref[RewardEngine] | None = None

    @property
    def engine(self) -> RewardEngine | None:
        """The reward engine; None until the model is loaded, and after it was freed."""
        return None if self._engine is None else self._engine()

    def register_engine(self, engine: RewardEngine) -> None:
        """The model loader's part. Held weakly: the model owns its engine, and both are freed together."""
        self._engine = ref(engine)

    def register_processor(
        self,
        *,
        outcome_table: OutcomeTable,
        step_counters: StepCounters,
        accepted_limits: AcceptedLimits,
    ) -> None:
        """The logits processor's part, on processes that compute logits.

        Args:
            outcome_table: outcomes of the answers.
            step_counters: counts for /metrics.
            accepted_limits: what requests may ask for.
        """
        self.outcome_table = outcome_table
        self.step_counters = step_counters
        self.accepted_limits = accepted_limits


_instances: WeakValueDictionary[str, Instance] = WeakValueDictionary()


def get_or_create_instance(instance_id: str) -> Instance:
    """The Instance of this id. The caller must hold it: it is freed with its last holder."""
    instance = _instances.get(instance_id)
    if instance is None:
        instance = _instances[instance_id] = Instance()
    return instance


def find_instance(instance_id: str) -> Instance | None:
    """The Instance of this id, None if this process has none."""
    return _instances.get(instance_id)


def report_outcomes(instance_id: str, outcome_keys: Sequence[str]) -> WorkerReport:
    """The front end's call (vllm_api/patches/outcome_rpc.py): outcomes of answers, and counts.

    Waits for the device.

    Returns:
        The outcome of each key, in their order, None for a key that no answer had; and the counts since the
        last call, None if this process guides no rows.
    """
    instance = find_instance(instance_id)
    if instance is None or instance.outcome_table is None or instance.step_counters is None:
        return [None for _ in outcome_keys], None
    outcomes = instance.outcome_table.pop_outcomes(outcome_keys)
    return outcomes, instance.step_counters.take_counts()
