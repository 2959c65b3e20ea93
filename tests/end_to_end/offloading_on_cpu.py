"""Has vLLM offload weights on a CPU as it does on a GPU without unified addressing: for tests, before an
engine is made.

Real here: vLLM's own code, which gives each layer a forward that fetches its weights first. It is compiled
without its two questions whether a tensor is on a CPU, where vLLM offloads nothing.
"""

from __future__ import annotations

import inspect
import textwrap

_QUESTIONS = ('device == torch.device("cpu")', 'p.device.type == "cpu"')


def enable() -> None:
    """For every engine made in this process from here on."""
    from vllm.model_executor.offloader import uva

    source = textwrap.dedent(inspect.getsource(uva.UVAOffloader._maybe_offload_to_cpu))
    for question in _QUESTIONS:
        assert source.count(question) == 1, question
        source = source.replace(question, "False")
    made: dict[str, object] = {}
    exec(source, vars(uva), made)
    uva.UVAOffloader._maybe_offload_to_cpu = made["_maybe_offload_to_cpu"]
    uva.is_uva_available = lambda: False


def offloaded_bytes() -> int:
    """Of the engine that was made last."""
    from vllm.model_executor.offloader import get_offloader

    return getattr(get_offloader(), "cpu_offload_bytes", 0)
