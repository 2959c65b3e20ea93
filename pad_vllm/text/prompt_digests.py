"""Which prompts an adapter was trained on, as digests: enough to find them again, too little to read them.

In: keys of prompts (`conversation.prompt_key`). Out: a text for JSON, five bytes a prompt, and which of other
prompts are among them. One of a million others is taken for one of a million by chance.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence

from pad_vllm.text.conversation import Conversation, prompt_key

_BYTES = 5


def digest_prompts(keys: Iterable[str]) -> str:
    """The prompts with these keys as a text; the order of the keys does not matter."""
    return base64.b64encode(b"".join(sorted(set(map(_digest, keys))))).decode("ascii")


def find_digested(digests: str, prompts: Sequence[Conversation]) -> list[Conversation]:
    """Those of the prompts that are in `digests`, from `digest_prompts`."""
    raw = base64.b64decode(digests)
    known = {raw[start : start + _BYTES] for start in range(0, len(raw), _BYTES)}
    return [prompt for prompt in prompts if _digest(prompt_key(prompt)) in known]


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()[:_BYTES]
