"""Starts vLLM up to the engine itself: `start_attempts.py ATTEMPTS.json RESULTS.json`.

In: a list of vllm.LLM's keyword arguments, each with "environment" to set beside them. Out: for each, the
class and text of the exception. The engine is never started: where all checks before it pass, EngineReached
is the exception. So a refusal in the results came before any process or weight.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


class EngineReached(Exception):
    """No check refused these arguments."""


def main(attempts: str, results: str) -> None:
    from vllm.v1.engine.core_client import EngineCoreClient

    EngineCoreClient.make_client = _reached
    done = [_attempt(one) for one in json.loads(Path(attempts).read_text("utf-8"))]
    Path(results).write_text(json.dumps(done), "utf-8")


def _reached(*_args: Any, **_kwargs: Any) -> None:
    raise EngineReached


def _attempt(arguments: dict[str, Any]) -> dict[str, str]:
    from vllm import LLM

    environment = arguments.pop("environment", {})
    os.environ.update(environment)
    try:
        LLM(**arguments)
    except Exception as error:  # noqa: BLE001, whatever it is, the test wants to see it
        return {"class": type(error).__name__, "text": str(error)}
    finally:
        for name in environment:
            del os.environ[name]
    raise AssertionError("an engine without its core")


if __name__ == "__main__":
    main(*sys.argv[1:])
