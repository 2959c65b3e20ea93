"""vLLM's features around guidance: an answer is the one its request gets alone with a cold cache.

V2 on a small random model of few tokens; in the exhaustive tests V1 on it too, and both on SmolLM2.
"""

from __future__ import annotations

import itertools
import json
import math
import re

import jsonschema
import pytest
import tiny
import tiny_tokenizers
from engine_processes import V2_ENV, engines, pad, plain

from pad_vllm.adapter.manifest import read_config

pytestmark = pytest.mark.engine

LONG = (
    "The old lighthouse keeper climbed the stairs every evening, counting them aloud, though he "
    "had known their number for thirty years. From the gallery he saw the fishing boats come home "
    "one after another, their lanterns swinging, and he wrote the name of each into a book that "
    "nobody but he would ever read. In winter the storms kept the boats in the harbour for weeks, "
    "and then the pages of the book stayed empty, and he wrote about the weather instead, or about "
    "his sister, who had moved to the city and sent him a letter at the end of every month.{}"
)
ENDINGS = (" One day", " The next letter", " His sister said that", " What he liked best was")
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 4},
        "mood": {"enum": ["happy", "sad", "calm"]},
        "age": {"type": "integer", "minimum": 1, "maximum": 99},
    },
    "required": ["name", "mood", "age"],
    "additionalProperties": False,
}
STOP = "e"  # within any 24 tokens
# White space is legal JSON, and strong guidance may like nothing better: a question of taste that
# says nothing about masks.
COMPACT = {"backend": "xgrammar", "disable_any_whitespace": True}
TIGHT = {"small": 29, "real": 20}  # blocks, too few for two of the prompts and their answers
NGRAMS = {
    "method": "ngram",
    "num_speculative_tokens": 3,
    "prompt_lookup_min": 1,
    "prompt_lookup_max": 3,
}
SMALL_BLOCKS = {"block_size": 32, "max_model_len": 512, "disable_log_stats": False}


def ask(prompt, guidance=None, **sampling):
    greedy = {"temperature": 0, "max_tokens": 24, "ignore_eos": True}
    if guidance is not None:
        sampling["extra_args"] = guidance
    return {"prompt": prompt, "sampling": {**greedy, **sampling}}


def mix(first, second, third):
    """Greedy requests of over 100 tokens: several users, several strengths, and unguided ones."""
    a, b, c, d = (LONG.format(ending) for ending in ENDINGS)
    one = {"pad_weights": f"{first}=1"}
    return [
        ask(a),
        ask(a, one),
        ask(a, {"pad_weights": f"{first}=-1", "pad_beta": 4, "pad_explain": True}),
        # Guards that read the answers, which a preemption takes out of the batch and drafts run ahead of.
        ask(
            b,
            {"pad_weights": [f"{second}=1", f"{third}=0.5"], "pad_top_k": 3} | {"pad_no_repeat": 2},
        ),
        ask(
            c,
            {"pad_weights": json.dumps({third: 2}), "pad_beta": 3, "pad_loop_price": 1}
            | {"pad_no_repeat": 3},
        ),
        ask(d),
    ]


def sampled(guidance):
    """n > 1 and seeds: twice the same, another seed, and the same heat without guidance."""
    hot = {"n": 3, "temperature": 1.5, "logprobs": 3}
    few = {**guidance, "pad_top_k": 3, "pad_no_repeat": 2}
    return [
        ask(ENDINGS[0], few, seed=7, **hot),
        ask(ENDINGS[0], few, seed=7, **hot),
        ask(ENDINGS[0], few, seed=70, **hot),
        ask(ENDINGS[0], seed=7, **hot),
    ]


def constrained(guidance, runner):
    """Whatever masks or moves logits before guidance or after it, under strong guidance. Where V2 runs here,
    top-k and top-p cannot: Triton's interpreter does not know all of vLLM's kernel for them.
    """
    strong = {**guidance, "pad_beta": 10}
    narrow = {**strong, "pad_top_k": 2}
    # Long enough for any name: an escape of a character is six bytes, and a byte a token.
    schema = {"structured_outputs": {"json": SCHEMA}, "max_tokens": 72, "ignore_eos": False}
    choice = {"structured_outputs": {"choice": ["yes", "no"]}}
    cut = {"top_p": 0.9, "top_k": 5} if runner == "v1" else {}
    question = "Describe a person as JSON: "
    return {
        "schema": ask(question, strong, **schema),
        "schema, two candidates": ask(question, narrow, **schema),
        "schema, sampled": ask(question, strong, temperature=1.0, seed=3, **schema),
        "schema, unguided": ask(question, **schema),
        "choice": ask(question, strong, ignore_eos=False, **choice),
        "allowed tokens": ask(ENDINGS[0], strong, allowed_token_ids=[28, 30, 253]),
        "one allowed token": ask(ENDINGS[0], strong, allowed_token_ids=[253]),
        "biased up": ask(ENDINGS[0], guidance, logit_bias={"253": 100}),
        "bad words": ask(ENDINGS[0], strong, bad_words=["the", ",", "and", "a", "to"]),
        "at least 20 tokens": ask("Bye.", strong, min_tokens=20, ignore_eos=False),
        "penalties": ask(ENDINGS[0], strong, repetition_penalty=1.5, frequency_penalty=1.0),
        "cut": ask(ENDINGS[0], strong, temperature=1.0, seed=1, min_p=0.1, **cut),
        "prompt scored": ask(LONG.format(ENDINGS[0]), guidance, prompt_logprobs=1),
        "not scored": ask(LONG.format(ENDINGS[0]), guidance),
    }


LEAST = 12  # tokens
LOST, SKIPPED, UNKNOWN = "rewards lost", "processors skipped", "outcomes lost"
BEFORE = {LOST: "lose_rewards", SKIPPED: "skip_processors", UNKNOWN: "lose_outcomes"}
"""Round -> what fails from there on; of engine_runner.py."""
OPEN, CLOSED = "[a-z]+", "(yes|no)"
GRAMMARS = {"finished": CLOSED, "open": OPEN, "either": f"{CLOSED}|q[a-z]+"}


def least_lengths(guidance=None):
    """`min_tokens` beside grammars: one that is finished before, one that lets an answer end at any place,
    one where guidance decides which of both it is. A finished grammar lets only the end token through, and
    vLLM then lets it come before `min_tokens`.
    """
    strong = guidance and {**guidance, "pad_beta": 10}
    return {
        name: ask(
            "Say yes: ",
            strong,
            structured_outputs={"regex": regex},
            min_tokens=LEAST,
            ignore_eos=False,
        )
        for name, regex in GRAMMARS.items()
    }


def free(guidance=None):
    """Without a grammar: one answer, and one that its end token does not end."""
    return [ask(ENDINGS[0], guidance, ignore_eos=ignores) for ignores in (False, True)]


# vLLM refuses logit_bias and min_p beside drafts.
DRAFTED = (
    "schema",
    "choice",
    "allowed tokens",
    "bad words",
    "at least 20 tokens",
    "penalties",
    "prompt scored",
)


def drafted_with(guidance):
    return [constrained(guidance, "v2")[name] for name in DRAFTED]


class Runs:
    """Rounds of one engine by name, as they were asked for and as they came out."""

    def __init__(self, asked, result):
        self.counters = result["counters"]
        self._rounds = dict(zip(asked, result["rounds"], strict=True))

    def __getitem__(self, name):
        return self._rounds[name]

    def texts(self, name):
        return [output["text"] for output in self[name]]


def cases():
    """(runner, model)."""
    for runner, model in itertools.product(("v2", "v1"), ("small", "real")):
        marks = [] if (runner, model) == ("v2", "small") else [pytest.mark.exhaustive]
        yield pytest.param((runner, model), id=f"{runner} {model}", marks=marks)


@pytest.fixture(scope="module", params=cases())
def served(request, tmp_path_factory):
    """(runner, model, base, adapter)."""
    runner, model = request.param
    if model == "real":
        return runner, model, *map(request.getfixturevalue, ("smollm2", "adapter"))
    root = tmp_path_factory.mktemp("features")
    base = tiny.checkpoint("llama", root / "base", tiny_tokenizers.bytewise())
    adapter = tiny.write_adapter(base, root / "adapter", fork_layer=2, std=0.15, beta=1.0)
    return runner, model, base, adapter


@pytest.fixture(scope="module")
def dimensions(served):
    return read_config(served[3]).dimensions[:3]


@pytest.fixture(scope="module")
def guidance(dimensions):
    return {"pad_weights": f"{dimensions[0]}=1"}


@pytest.fixture(scope="module")
def runs(served, dimensions, guidance):
    """Every engine of a case, one after the other in one process: the imports cost the most."""
    runner, model, base, adapter = served
    requests, hard = mix(*dimensions), list(constrained(guidance, runner).values())
    alone = {f"alone {index}": [request] for index, request in enumerate(requests)}
    unguided = [request for request in requests if "extra_args" not in request["sampling"]]
    scored = {**requests[1], "sampling": {**requests[1]["sampling"], "logprobs": 5}}
    bare = ask(requests[1]["prompt"], logprobs=5)
    stopped = {**requests[1], "sampling": {**requests[1]["sampling"], "stop": [STOP]}}
    kept = {**stopped, "sampling": {**stopped["sampling"], "include_stop_str_in_output": True}}
    two = {"requests": requests, "again": requests}
    least = least_lengths(guidance)
    asked = {
        "reference": {
            **alone,
            "together": requests,
            "sampled": sampled(guidance),
            "sampled again": sampled(guidance)[:1],
            "constrained": hard,
            "scored": [scored],
            "stopped": [stopped, kept],
            **{f"least length, {name}": [one] for name, one in least.items()},
            "least length": [*least.values()],
            LOST: [*least.values(), *free(guidance)],
        },
        "stopping": {
            "least length": [*least.values()],
            LOST: [*least.values(), *free(guidance)],
        },
        "plain": {
            "unguided": unguided,
            "scored": [bare],
            "least length": [*least_lengths().values(), *free()],
        },
        "prefix cache": {"unguided first": [unguided[0]], **two},
        "chunked prefill": two,
        "preemption": two,
        "processed": {"scored": [scored], SKIPPED: [requests[1]], UNKNOWN: [requests[1]]},
    }
    llm = {
        "reference": pad(
            base, adapter, enable_prefix_caching=False, structured_outputs_config=COMPACT
        ),
        "stopping": pad(base, adapter, {"on_failure": "stop"}, structured_outputs_config=COMPACT),
        "plain": plain(base, enable_prefix_caching=False, structured_outputs_config=COMPACT),
        "prefix cache": pad(base, adapter, enable_prefix_caching=True, **SMALL_BLOCKS),
        "chunked prefill": pad(
            base,
            adapter,
            enable_prefix_caching=False,
            max_num_batched_tokens=24,
            max_num_seqs=8,
            **SMALL_BLOCKS,
        ),
        "preemption": pad(
            base,
            adapter,
            enable_prefix_caching=False,
            num_gpu_blocks_override=TIGHT[model],
            **SMALL_BLOCKS,
        ),
        "processed": pad(base, adapter, logprobs_mode="processed_logprobs"),
    }
    if runner == "v2":
        asked["drafts"] = {
            "together": requests,
            "constrained": drafted_with(guidance),
            "more": [scored, stopped, *sampled(guidance)[:2]],
            "least length": [*least.values()],
        }
        # Under preemption: prompts in pieces, preemptions, hits in the prefix cache.
        preempting = {"max_num_batched_tokens": 48, "num_gpu_blocks_override": 18}
        llm["drafts"] = {
            **llm["prefix cache"],
            **preempting,
            "structured_outputs_config": COMPACT,
            "speculative_config": NGRAMS,
        }
    jobs = [
        {
            "llm": llm[name],
            "rounds": list(rounds.values()),
            "calls": [(BEFORE.get(round_name), None) for round_name in rounds],
        }
        for name, rounds in asked.items()
    ]
    results = engines(jobs, V2_ENV if runner == "v2" else None)
    assert {result["runner"] for result in results} == {runner}
    return {name: Runs(asked[name], result) for name, result in zip(asked, results, strict=True)}


@pytest.fixture(scope="module")
def reference(runs):
    """What every request of `mix` answers alone, with a cold cache."""
    return [
        runs["reference"][f"alone {index}"][0]["text"]
        for index in range(len(runs["reference"]["together"]))
    ]


@pytest.fixture(scope="module")
def constraint(runs, served, guidance):
    outputs = runs["reference"]["constrained"]
    return dict(zip(constrained(guidance, served[0]), outputs, strict=True))


def test_the_requests_ask_for_different_answers(reference):
    assert len(set(reference)) == len(reference)
    assert all(reference)


def test_a_mixed_batch_answers_as_each_request_alone(runs, reference):
    assert runs["reference"].texts("together") == reference


def test_unguided_requests_beside_guided_ones_answer_as_plain_vllm(runs, reference):
    assert runs["plain"].texts("unguided") == [reference[0], reference[5]]


@pytest.mark.parametrize("engine", ["prefix cache", "chunked prefill", "preemption"])
@pytest.mark.parametrize("name", ["requests", "again"])
def test_the_engine_gives_the_answers_of_the_cold_cache(runs, reference, engine, name):
    assert runs[engine].texts(name) == reference


@pytest.mark.parametrize("engine", ["reference", "prefix cache", "chunked prefill", "preemption"])
def test_explanations_do_not_depend_on_cache_chunks_and_preemption(runs, engine):
    name = "together" if engine == "reference" else "again"
    require_explained(runs, runs[engine][name])


def require_explained(runs, outputs):
    """The third of `mix`, and it alone, as it is alone in the batch."""
    (alone,) = runs["reference"]["alone 2"]
    (expected,), (found,) = (one["pad"]["explained"] for one in (alone, outputs[2]))
    assert len(found) == len(alone["token_ids"])
    assert "".join(one["token"] for one in found) == alone["text"]
    for one, other in zip(found, expected, strict=True):
        assert one == {**other, "reward": pytest.approx(other["reward"], abs=1e-3)}
    assert any(one["changed"] for one in found)
    assert "explained" not in outputs[1]["pad"]


def test_the_prefix_cache_is_hit_also_by_what_unguided_requests_left(runs):
    prompts = [len(output["prompt_token_ids"]) for output in runs["prefix cache"]["again"]]

    first_guided = runs["prefix cache"]["requests"][1]
    again = [output["cached_tokens"] for output in runs["prefix cache"]["again"]]
    assert first_guided["cached_tokens"] >= 96
    assert again == [(length - 1) // 32 * 32 for length in prompts]


def test_prompts_are_longer_than_a_chunk(runs):
    lengths = [len(output["prompt_token_ids"]) for output in runs["chunked prefill"]["requests"]]

    assert min(lengths) > 4 * 24


def test_the_tiny_cache_preempts(runs):
    assert runs["preemption"].counters["vllm:num_preemptions"] > 0
    assert runs["prefix cache"].counters["vllm:num_preemptions"] == 0


def test_a_seed_gives_the_same_answers_and_another_seed_others(runs):
    first, same, other, _ = (
        [choice["text"] for choice in output["choices"]] for output in runs["reference"]["sampled"]
    )
    (again,) = runs["reference"]["sampled again"]

    assert len(set(first)) == 3
    assert same == first
    assert [choice["text"] for choice in again["choices"]] == first
    assert not set(first) & set(other)


def outside(output):
    """Sampled tokens that were not among the base's best three: vLLM lists these in addition."""
    steps = [step for choice in output["choices"] for step in choice["logprobs"]]
    return sum(len(step) > 3 for step in steps)


def test_sampled_tokens_are_among_the_bases_candidates(runs):
    *guided, unguided = runs["reference"]["sampled"]

    assert [outside(output) for output in guided] == [0, 0, 0]
    assert outside(unguided) > 10


def test_a_stop_string_ends_the_answer_where_it_would_have_come(runs, reference):
    cut, kept = runs["reference"]["stopped"]
    end = reference[1].index(STOP)

    assert cut["text"] == reference[1][:end]
    assert kept["text"] == reference[1][: end + len(STOP)]
    assert (cut["finish_reason"], kept["finish_reason"]) == ("stop", "stop")


def test_logprobs_are_the_base_models_by_default(runs):
    guided, base = runs["reference"]["scored"][0], runs["plain"]["scored"][0]

    ours, theirs = guided["logprobs"][0], base["logprobs"][0]
    assert set(theirs) <= set(ours)  # and the token that was chosen, where it is not of the five
    assert all(math.isclose(ours[token], theirs[token], abs_tol=1e-4) for token in theirs)


def test_processed_logprobs_show_the_guided_distribution(runs, served):
    top_k = read_config(served[3]).top_k
    (raw,), (guided,) = runs["reference"]["scored"], runs["processed"]["scored"]

    assert guided["text"] == raw["text"]
    for step, token in zip(guided["logprobs"], guided["token_ids"], strict=True):
        assert max(step, key=step.get) == str(token)
        assert sum(math.exp(one) for one in step.values()) <= 1 + 1e-4
    assert top_k >= 5
    assert guided["logprobs"][0] != raw["logprobs"][0]


@pytest.mark.parametrize(
    "name", ["schema", "schema, two candidates", "schema, sampled", "schema, unguided"]
)
def test_structured_output_stays_valid_under_strong_guidance(constraint, name):
    output = constraint[name]

    assert output["finish_reason"] == "stop"
    # Not strict: the small tokenizer's bytes are letters to the grammar, control characters too.
    jsonschema.validate(json.loads(output["text"], strict=False), SCHEMA)


def test_guidance_chooses_within_the_schema(constraint):
    assert constraint["schema"]["text"] != constraint["schema, unguided"]["text"]


def test_a_choice_is_one_of_those_offered(constraint):
    assert constraint["choice"]["text"] in {"yes", "no"}


def test_allowed_tokens_bound_guidance_also_with_fewer_than_k(constraint):
    assert set(constraint["allowed tokens"]["token_ids"]) <= {28, 30, 253}
    assert set(constraint["one allowed token"]["token_ids"]) == {253}


def test_a_logit_bias_counts_under_guidance(constraint):
    assert set(constraint["biased up"]["token_ids"]) == {253}


def test_bad_words_stay_away_under_guidance(constraint):
    words = constraint["bad words"]["text"].split()

    assert words
    assert not {"the", "and", "a", "to"} & set(words)
    assert "," not in constraint["bad words"]["text"]


def test_an_answer_has_its_least_length_under_guidance(constraint):
    assert len(constraint["at least 20 tokens"]["token_ids"]) >= 20


@pytest.fixture
def least(runs):
    """(engine, round) -> outputs by the name of their grammar; then those of `free`, where they are in it."""

    def outputs(engine, name="least length"):
        return dict(zip([*GRAMMARS, "none", "endless"], runs[engine][name], strict=False))

    return outputs


def test_a_grammar_beside_min_tokens_gives_the_answer_that_its_request_gets_alone(runs, least):
    found = least("reference")
    for name, grammar in GRAMMARS.items():
        (alone,) = runs["reference"][f"least length, {name}"]
        assert found[name]["token_ids"] == alone["token_ids"]
        assert re.fullmatch(grammar, found[name]["text"])
        assert found[name]["pad"] == guided_only(found[name])
    for other in least("stopping"), least("drafts") if "drafts" in runs else {}:
        for name, output in other.items():
            assert output["token_ids"] == found[name]["token_ids"]
            assert output["pad"] == found[name]["pad"]


def guided_only(output):
    """The outcome of an answer that was guided to its end."""
    return {"guided_tokens": len(output["token_ids"]), "unguided_tokens": 0, "stopped": False}


@pytest.mark.parametrize("engine", ["reference", "stopping", "plain"])
def test_a_grammar_that_may_end_anywhere_does_not_before_min_tokens(least, engine):
    assert len(least(engine)["open"]["token_ids"]) >= LEAST


@pytest.mark.parametrize("engine", ["reference", "stopping", "plain"])
def test_a_finished_grammar_ends_before_min_tokens_as_in_plain_vllm(least, engine):
    finished = least(engine)["finished"]
    assert finished["text"] in {"yes", "no"}
    assert finished["finish_reason"] == "stop"


def test_without_rewards_grammars_and_min_tokens_give_plain_vllms_answers(least):
    found, plain_ones = least("reference", LOST), least("plain")
    for name, output in found.items():
        assert output["token_ids"] == plain_ones[name]["token_ids"]
        num_tokens = len(output["token_ids"])
        assert (output["pad"]["guided_tokens"], output["pad"]["unguided_tokens"]) == (0, num_tokens)


def test_an_answer_without_rewards_stops_where_grammar_and_min_tokens_let_it(least):
    found, plain_ones = least("stopping", LOST), least("plain")
    assert len(found["none"]["token_ids"]) == 1  # nothing keeps it
    assert found["endless"]["token_ids"] == plain_ones["endless"]["token_ids"]
    assert not found["endless"]["pad"]["stopped"]
    assert found["finished"]["token_ids"] == plain_ones["finished"]["token_ids"]
    assert len(found["open"]["token_ids"]) == LEAST + 1
    assert found["open"]["token_ids"][:LEAST] == plain_ones["open"]["token_ids"][:LEAST]
    for name, grammar in GRAMMARS.items():
        assert re.fullmatch(grammar, found[name]["text"])
        assert found[name]["pad"]["stopped"]
        assert found[name]["finish_reason"] == "stop"


def test_an_answer_to_which_the_processor_was_never_applied_is_unguided(runs):
    (skipped,) = runs["processed"][SKIPPED]
    assert skipped["pad"] == {"guided_tokens": 0, "unguided_tokens": 24, "stopped": False}


def test_an_answer_whose_outcome_does_not_come_back_is_guided_to_an_unknown_extent(runs):
    (unknown,) = runs["processed"][UNKNOWN]
    assert unknown["pad"] == {"guided_tokens": None, "unguided_tokens": None, "stopped": False}


@pytest.mark.parametrize("name", ["penalties", "cut"])
def test_what_runs_after_guidance_finds_sound_logits(constraint, name):
    tokens = constraint[name]["token_ids"]

    assert len(tokens) == 24
    assert len(set(tokens)) > 5  # NaN would give one token over and over


@pytest.fixture
def drafted(runs):
    """With drafts, under preemption."""
    if "drafts" not in runs:
        pytest.skip("speculative decoding is for V2")
    return runs["drafts"]


def test_drafts_change_no_answer(runs, drafted, reference, served):
    assert drafted.texts("together") == reference
    require_explained(runs, drafted["together"])
    counters = drafted.counters
    assert counters["vllm:spec_decode_num_accepted_tokens"] > 0
    assert counters["vllm:prefix_cache_hits"] > 0
    # The real model's prompts are of fewer tokens, most of which they share.
    assert served[1] == "real" or counters["vllm:num_preemptions"] > 0


@pytest.mark.parametrize("name", DRAFTED)
def test_drafts_change_nothing_under_a_constraint(constraint, drafted, name):
    found = dict(zip(DRAFTED, drafted["constrained"], strict=True))[name]
    assert found["token_ids"] == constraint[name]["token_ids"]
    assert found["pad"] == constraint[name]["pad"]


def test_drafts_change_neither_logprobs_nor_where_a_stop_string_ends(runs, drafted):
    (scored, stopped, *_), (reference,) = drafted["more"], runs["reference"]["scored"]
    for one, other in zip(scored["logprobs"], reference["logprobs"], strict=True):
        assert one == pytest.approx(other, abs=1e-4)
    assert (stopped["text"], stopped["finish_reason"]) == tuple(
        runs["reference"]["stopped"][0][key] for key in ("text", "finish_reason")
    )


def test_a_seed_gives_the_same_answers_with_drafts_too(drafted):
    first, same = (
        [choice["token_ids"] for choice in output["choices"]] for output in drafted["more"][2:]
    )
    assert first == same
    assert len(set(map(tuple, first))) == 3


def test_scoring_the_prompt_does_not_disturb_guidance(constraint):
    assert constraint["prompt scored"]["text"] == constraint["not scored"]["text"]
