"""The one room that knows vLLM's versions and internals; nothing of PAD is known here."""
