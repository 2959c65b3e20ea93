"""Tells of every chat request that vLLM's server has begun to answer.

Wraps the method by which vLLM's server answers chats, also those that come by routes of other forms and by
/invocations. What is told of came through admission: a request that was refused is not. In: a listener. Out:
its calls. A listener cannot change or fail a request.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pad_vllm.vllm_api.patches.wrap_method import wrap_method
from pad_vllm.vllm_api.vllm_names import init_logger

logger = init_logger(__name__)


def listen_to_chats(listener: Callable[[Any], None]) -> None:
    """Have `listener` called with each ChatCompletionRequest whose answer, or stream, this process's server
    returns, instead of one that was given before.
    """
    from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat

    OpenAIServingChat.pad_chat_listener = staticmethod(listener)
    wrap_method(OpenAIServingChat, "create_chat_completion", _then_told)


async def _then_told(original: Any, serving: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
    answer = await original(serving, request, *args, **kwargs)
    if getattr(answer, "error", None) is None:
        try:
            serving.pad_chat_listener(request)
        except Exception:  # the answer is there, and is returned all the same
            logger.exception("PAD: nothing was learned from a conversation")
    return answer
