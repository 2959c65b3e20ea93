"""Heads only on a base that reads images: what its twin says, of texts and of a picture, on both runners."""

from __future__ import annotations

import pytest
import tiny
import torch
from engine_processes import ON_GPU, V2_ENV, EngineFailed, engine, engines, pad, plain
from mixed_requests import KINDS, greedy, mixed_batch, preferences, share_changed, tokens
from pytorch_twin import Twin

pytestmark = pytest.mark.engine

LENGTHS = (3, 40)
TOKENS = 12
QUESTION = "What is on it? <start_of_image>"


class SeeingTwin(Twin):
    """A twin that sees one picture wherever its tokens are.

    As in vLLM's attention on CPUs, no token sees a later one. In Transformers, and in vLLM's attention on
    GPUs, Gemma 3's tokens of one picture see each other.
    """

    def __init__(self, base, adapter, picture):
        from PIL import Image
        from transformers import AutoProcessor

        super().__init__(base, adapter)
        self.wrapper = self.persrm.backbone.model
        prepared = AutoProcessor.from_pretrained(base).image_processor(
            Image.open(picture), return_tensors="pt"
        )
        with torch.no_grad():
            seen = self.wrapper.get_image_features(prepared["pixel_values"])
        self.seen = seen.pooler_output.flatten(0, 1)
        self.persrm.hidden_twice = self.read

    def read(self, ids):
        """Ids [N, T] -> h_B twice, [N, T, H]."""
        embeddings = self.wrapper.get_input_embeddings()(ids)
        places = ids == self.wrapper.config.image_token_id
        pictures = int(places.any(dim=1).sum())
        embeddings[places] = self.seen.repeat(pictures, 1)
        states = self.wrapper.language_model(inputs_embeds=embeddings, use_cache=False)
        return states.last_hidden_state, states.last_hidden_state


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.vision_language_checkpoint(tmp_path_factory.mktemp("vision") / "gemma3")


@pytest.fixture(scope="module")
def adapter(base):
    return tiny.write_adapter(
        base, base.parent / "adapter", fork_layer=4, std=0.3, beta=2.0, constants=True
    )


@pytest.fixture(scope="module")
def picture(base):
    import numpy as np
    from PIL import Image

    pixels = np.random.default_rng(5).integers(0, 256, (28, 40, 3), dtype=np.uint8)
    path = base.parent / "picture.png"
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="module")
def requests(adapter, picture):
    """Two texts and a question about a picture, each under every preference and unguided."""
    prompts = [[3 + (7 * i + length) % 256 for i in range(length)] for length in LENGTHS]
    asked = [
        {**greedy(QUESTION, TOKENS, kind), "image": str(picture)}
        for kind in (*preferences(adapter), None)
    ]
    return [*mixed_batch(adapter, prompts, TOKENS), *asked]


@pytest.fixture(scope="module")
def results(base, adapter, requests):
    """Runner -> result of the batch; "plain": of the unguided requests, in vLLM alone."""
    unguided = requests[KINDS - 1 :: KINDS]
    job = {"llm": pad(base, adapter), "requests": requests, "record": True}
    first, alone = engines([job, {"llm": plain(base), "requests": unguided}])
    return {"v1": first, "v2": engine(job, V2_ENV), "plain": alone}


@pytest.mark.parametrize("runner", ["v1", "v2"])
def test_texts_and_pictures_are_guided_as_the_twin_says(
    base, adapter, picture, requests, results, runner
):
    result = results[runner]
    of_picture = tokens(result)[-KINDS:]
    assert of_picture[0] != of_picture[-1]
    assert share_changed(result) > 0.5
    assert [output["pad"] for output in result["outputs"]] == [
        None
        if "extra_args" not in request["sampling"]
        else {"guided_tokens": TOKENS, "unguided_tokens": 0, "stopped": False}
        for request in requests
    ]
    if ON_GPU:  # the twin is no twin of a picture there
        requests = requests[:-KINDS]
        result = {**result, **{name: result[name][:-KINDS] for name in ("outputs", "steps")}}
    found = SeeingTwin(base, adapter, picture).compare(requests, result)
    print(f"\n{runner}: start {result['start_s']:.1f} s, {result['run_s']:.1f} s: {found}")
    assert result["runner"] == runner
    assert found.differences == []
    assert found.ties <= 1
    assert found.rewards > 0
    assert found.reward_error < 1e-3


def test_unguided_requests_beside_them_answer_as_in_plain_vllm(results):
    assert tokens(results["v1"])[KINDS - 1 :: KINDS] == tokens(results["plain"])


def test_a_fork_and_instructions_are_refused_by_name(base, adapter):
    trunk = tiny.write_adapter(base, base.parent / "trunk", fork_layer=2, std=0.1)
    for settings in (pad(base, trunk), pad(base, adapter, {"instructions": True})):
        with pytest.raises(
            EngineFailed, match="cannot fork Gemma3ForConditionalGeneration; .*"
        ) as caught:
            engine({"llm": settings, "requests": []})
        assert "adapter with heads only (its fork is at the top) and no instructions" in str(
            caught.value
        )
