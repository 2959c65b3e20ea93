"""Instructions of requests: the tokens of the PyTorch twin, on both runners, whatever else happens in the
engine.
"""

from __future__ import annotations

import pytest
import tiny
from engine_processes import V2_ENV, EngineFailed, engine, engines, pad
from instructed_twin import InstructedTwin, require_twins_tokens
from mixed_requests import greedy, tokens

pytestmark = pytest.mark.engine

FORK = 1
BLOCK = 32
TOKENS = 12
SETTINGS = {
    "instructions": True,
    "fork_layer": FORK,
    "max_instructions": 4,
    "max_instruction_tokens": 96,
}
SENTENCES = ("be funny", "be brief, and kind to all who ask", "answer in rhymes", "no", "why not")
LENGTHS = (5, 60)  # tokens of prompts: the second asks for a third block on its way


def prompt(length, shift=0):
    return [3 + (11 * i + length + shift) % 256 for i in range(length)]


def kinds(*, heads):
    """extra_args of the requests of one prompt."""
    first, second, third = SENTENCES[:3]
    plain = [
        {"pad_preference": first},
        {"pad_preference": second, "pad_beta": -3.0, "pad_min_p": 0.05},
        None,
        {"pad_preference": third, "pad_beta": 4.0, "pad_top_k": 5, "pad_no_repeat": 0},
    ]
    if not heads:
        return plain
    return [
        *plain,
        {"pad_preference": first, "pad_weights": "helpful=1,humor=-0.5", "pad_beta": 2.0},
        {"pad_weights": "brief=1"},
    ]


def mixed(*, heads=True, shift=0):
    """Neighbours in the batch read other instructions, or none."""
    return of_every_length(kinds(heads=heads), shift)


def of_every_length(asked, shift=0):
    return [greedy(prompt(length, shift), TOKENS, kind) for length in LENGTHS for kind in asked]


def with_learned():
    """Two learned prefixes, one with the heads of its name, beside a sentence and nothing."""
    return of_every_length(
        [
            {"pad_preference": "warm", "pad_beta": 1.0},
            {"pad_preference": SENTENCES[0]},
            None,
            {"pad_preference": "curt", "pad_beta": -1.5, "pad_top_k": 7},
            {"pad_preference": "warm", "pad_weights": "brief=1", "pad_beta": 2.0},
        ]
    )


def without_adapter(base, settings=SETTINGS, **llm):
    """LLM(...) arguments for a server that only takes instructions."""
    arguments = pad(base, "", settings, block_size=BLOCK, **llm)
    del arguments["additional_config"]["pad"]["adapter"]
    return arguments


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Checkpoint, and an adapter with heads only."""
    root = tmp_path_factory.mktemp("instructions")
    base = tiny.checkpoint("llama", root / "base")
    layers = tiny.COMMON["num_hidden_layers"]
    return base, tiny.write_adapter(
        base, root / "adapter", fork_layer=layers, std=0.15, beta=1.0, constants=True
    )


@pytest.fixture(scope="module")
def learned(made, tmp_path_factory):
    """An adapter that has learned prefixes too."""
    base, layers = made[0], tiny.COMMON["num_hidden_layers"]
    folder = tmp_path_factory.mktemp("learned") / "adapter"
    names = ("warm", "curt")
    return tiny.write_adapter(
        base, folder, fork_layer=layers, std=0.15, prefixes=names, prefix_fork_layer=FORK
    )


@pytest.fixture(scope="module")
def twin(made):
    return InstructedTwin(*made, fork_layer=FORK, block_size=BLOCK)


@pytest.fixture(scope="module", params=["v2", pytest.param("v1", marks=pytest.mark.exhaustive)])
def runner(request):
    return request.param


@pytest.fixture(scope="module")
def runs(made, runner):
    """[result with an adapter's heads, rounds of a small engine without adapter]."""
    base, adapter = made
    first, second = mixed(heads=False), mixed(heads=False, shift=1)
    others = [greedy(prompt(60), TOKENS, {"pad_preference": text}) for text in SENTENCES[3:]]
    jobs = [
        {
            "llm": pad(base, adapter, SETTINGS, block_size=BLOCK),
            "requests": mixed(),
            "record": True,
        },
        {
            # Chunks of 48 tokens, and eight blocks for requests of up to three.
            "llm": without_adapter(
                base, max_num_batched_tokens=48, num_gpu_blocks_override=8 + 9, max_model_len=96
            ),
            # Four are kept: the other two instructions push out some of the first three.
            "rounds": [first, first, others, second, first],
        },
    ]
    return engines(jobs, V2_ENV if runner == "v2" else None)


def test_mixed_instructions_weights_and_plain_requests_say_what_their_twin_says(runs, twin, runner):
    result = runs[0]
    assert result["runner"] == runner
    require_twins_tokens(twin, mixed(), result)
    assert len({tuple(one) for one in tokens(result)}) > len(mixed()) / 2


def test_so_they_do_in_pieces_preempted_from_the_prefix_cache_and_read_once_more(
    runs, made, runner
):
    twin = InstructedTwin(made[0], None, fork_layer=FORK, block_size=BLOCK)
    rounds = runs[1]["rounds"]
    others = [greedy(prompt(60), TOKENS, {"pad_preference": text}) for text in SENTENCES[3:]]
    first, second = mixed(heads=False), mixed(heads=False, shift=1)
    for asked, outputs in zip((first, first, others, second, first), rounds, strict=True):
        require_twins_tokens(twin, asked, {"outputs": outputs})
    assert [o["token_ids"] for o in rounds[0]] == [o["token_ids"] for o in rounds[4]]


def test_the_prefix_cache_is_shared_by_one_instruction_and_by_no_other(made, runner):
    base, _ = made
    text = prompt(70)
    asked = [
        greedy(text, 4, {"pad_preference": "be funny"}),
        greedy(text, 4, {"pad_preference": "be brief"}),
        greedy(text, 4, {"pad_preference": "be funny", "pad_beta": -1.0}),
        greedy(text, 4),
        greedy(text, 4),
    ]
    job = {"llm": without_adapter(base), "rounds": [[one] for one in asked]}
    result = engine(job, V2_ENV if runner == "v2" else None)
    assert [outputs[0]["cached_tokens"] for outputs in result["rounds"]] == [0, 0, 64, 0, 64]


def test_seeded_answers_and_grammars_are_alone_what_they_are_in_company(made, runner):
    base, _ = made
    drawn = {"temperature": 1.0, "seed": 5, "n": 2, "max_tokens": TOKENS, "ignore_eos": True}
    asked = [
        {"prompt": prompt(20), "sampling": {**drawn, "extra_args": {"pad_preference": "be funny"}}},
        {
            "prompt": prompt(20),
            "sampling": {
                "temperature": 0,
                "max_tokens": TOKENS,
                "structured_outputs": {"choice": ["yes", "no"]},
                "extra_args": {"pad_preference": "be brief", "pad_beta": 3.0},
            },
        },
    ]
    rounds = [[*mixed(heads=False)[:4], *asked], *([one] for one in asked)]
    result = engine(
        {"llm": without_adapter(base, {**SETTINGS, "max_instructions": 8}), "rounds": rounds},
        V2_ENV if runner == "v2" else None,
    )
    company, *alone = result["rounds"]
    for together, (single,) in zip(company[4:], alone, strict=True):
        assert [one["token_ids"] for one in together["choices"]] == [
            one["token_ids"] for one in single["choices"]
        ]
        assert together["pad"]["unguided_tokens"] == 0
    seeded, masked = company[4:]
    assert len({tuple(one["token_ids"]) for one in seeded["choices"]}) == 2
    # The text before it is the prompt's last bytes, which are no characters.
    assert masked["choices"][0]["text"].endswith(("yes", "no"))


LEARNED_SETTINGS = {name: value for name, value in SETTINGS.items() if name != "fork_layer"}


@pytest.mark.parametrize("runner", [pytest.param("v1", marks=pytest.mark.exhaustive), "v2"])
def test_learned_prefixes_beside_sentences_say_what_their_twin_says(made, learned, runner):
    twin = InstructedTwin(made[0], learned, fork_layer=FORK, block_size=BLOCK)
    job = {"llm": pad(made[0], learned, LEARNED_SETTINGS, block_size=BLOCK)}
    # Again, from the prefix cache and with blocks that are written already.
    job["rounds"] = [with_learned(), with_learned()]
    result = engine(job, V2_ENV if runner == "v2" else None)
    for outputs in result["rounds"]:
        require_twins_tokens(twin, with_learned(), {"outputs": outputs})
    first, again = ([one["token_ids"] for one in outputs] for outputs in result["rounds"])
    assert first == again
    assert len({tuple(one) for one in first}) == len(first)


def test_learned_prefixes_that_do_not_fill_blocks_are_refused(made, learned):
    with pytest.raises(EngineFailed, match="not whole KV blocks of 128.*32 on CPUs"):
        engine({"llm": pad(made[0], learned, LEARNED_SETTINGS, block_size=128), "requests": []})


def test_drafts_change_nothing(made, twin):
    base, adapter = made
    drafts = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_min": 1}
    llm = pad(base, adapter, SETTINGS, block_size=BLOCK, speculative_config=drafts)
    result = engine({"llm": llm, "requests": mixed()}, V2_ENV)
    require_twins_tokens(twin, mixed(), {"outputs": result["outputs"]})


@pytest.mark.exhaustive  # test_tensor_parallel.py has two ranks; this one starts four more processes
def test_two_ranks_say_what_one_says_with_learned_prefixes_too(made, learned):
    twin = InstructedTwin(made[0], learned, fork_layer=FORK, block_size=BLOCK)
    settings = {**LEARNED_SETTINGS, "max_instructions": 6}
    llm = pad(made[0], learned, settings, block_size=BLOCK, tensor_parallel_size=2)
    requests = [*mixed(), *with_learned()]
    result = engine({"llm": llm, "requests": requests})
    require_twins_tokens(twin, requests, {"outputs": result["outputs"]})


def test_compiled_in_pieces_as_on_a_gpu_they_say_what_their_twin_says(made, twin, tmp_path):
    base, adapter = made
    cache = {"VLLM_CACHE_ROOT": str(tmp_path), "VLLM_DISABLE_COMPILE_CACHE": "1"}
    llm = pad(base, adapter, SETTINGS, block_size=BLOCK, enforce_eager=False)
    job = {"llm": llm, "requests": mixed(), "gpu_like_compilation": True}
    result = engine(job, {**V2_ENV, **cache})
    require_twins_tokens(twin, mixed(), {"outputs": result["outputs"]})


def test_more_different_instructions_than_are_kept_at_once_are_refused(made):
    asked = [greedy(prompt(5), 4, {"pad_preference": text}) for text in SENTENCES]
    with pytest.raises(EngineFailed, match="max_instructions"):
        engine({"llm": without_adapter(made[0]), "requests": asked})


def test_a_cache_too_small_for_the_instructions_is_refused(made):
    llm = without_adapter(made[0], num_gpu_blocks_override=10, max_model_len=128)
    with pytest.raises(EngineFailed, match="Lower max_instructions"):
        engine({"llm": llm, "requests": []})
