"""PADLogitsProcessor as both runners call it: which rows are guided, which are not, and nothing raises."""

from __future__ import annotations

import re
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from reference_guidance import guide_row
from threaded_ranks import ThreadedRanks

pytest.importorskip("vllm")

from vllm import SamplingParams
from vllm.v1.sample.logits_processor.interface import BatchUpdate, MoveDirectionality
from vllm.v1.worker.gpu.spec_decode.rejection_sampler import _iter_request_chunks

from benchmarks.common.random_adapter import random_adapter
from pad_vllm import guidance
from pad_vllm.adapter.adapter_folder import save_adapter
from pad_vllm.adapter.backbone.backbone import Backbone
from pad_vllm.engines.override_methods import mix_in
from pad_vllm.engines.shared.lm_head_rows import LmHeadRows
from pad_vllm.engines.shared.model_fork import ForkedModel
from pad_vllm.engines.shared.shared_rewards import SharedRewards
from pad_vllm.serving.start import vocabulary
from pad_vllm.serving.worker import guided_step, instance, logits_processor
from pad_vllm.serving.worker.logits_processor import PADLogitsProcessor
from pad_vllm.vllm_api.patches import draft_rows

H, V, D, R = 8, 12, 2, 4
HELPFUL = {"pad_weights": "helpful=1"}
BAD = [
    {"pad_weights": "nope=1"},
    {"pad_weights": 7},
    {"pad_weights": "helpful=1", "pad_beta": "nan"},
    {"pad_weights": "helpful=1", "pad_top_k": 10_000},
    {"pad_beta": 1.0},
    {"pad_wieghts": "helpful=1"},
    {"pad_preference": "be kind"},
    {"pad_weights": None},
]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    backbone = Backbone("tiny", ("LlamaForCausalLM",), H, 2, V, None)
    made = random_adapter(
        backbone, 1, ("helpful", "humor"), 2, 2, shapes={"q_proj": (H, H)}, std=1.0, seed=0
    )
    folder = tmp_path_factory.mktemp("processor") / "adapter"
    save_adapter(made, folder, "x")
    return folder


@pytest.fixture
def config(adapter, request):
    """As much of a VllmConfig as is asked for."""
    parallel = dict.fromkeys(
        ("pipeline_parallel_size", "tensor_parallel_size", "data_parallel_size"), 1
    )
    return SimpleNamespace(
        instance_id=request.node.name,
        load_config=SimpleNamespace(load_format="pad"),
        additional_config={"pad": {"adapter": str(adapter)}},
        parallel_config=SimpleNamespace(**parallel),
        lora_config=None,
        speculative_config=None,
        kv_transfer_config=None,
        quant_config=None,
        cache_config=SimpleNamespace(cache_dtype="auto"),
        scheduler_config=SimpleNamespace(max_num_seqs=16),
        model_config=SimpleNamespace(
            runner_type="generate",
            architectures=["LlamaForCausalLM"],
            logits_processors=[PADLogitsProcessor],
            model_impl="auto",
            dtype=torch.float32,
            get_vocab_size=lambda: V,
            get_hidden_size=lambda: H,
            skip_tokenizer_init=True,
            hf_text_config=SimpleNamespace(eos_token_id=None),
            try_get_generation_config=dict,
        ),
    )


@pytest.fixture
def engine(config):
    """A running engine with random hidden states for R rows."""
    torch.manual_seed(0)
    heads = guidance.HeadTensors(torch.randn(D, 2, H), torch.randn(D, H, 2))
    made = SharedRewards(heads, LmHeadRows(torch.randn(V, H)))
    made.store_states(torch.randn(R, H), torch.randn(R, H))
    config.held = instance.get_or_create_instance(config.instance_id)
    config.held.register_engine(made)
    return made


class V1:
    """The V1 runner's way in: rows are slots."""

    order = np.arange(R)

    def __init__(self, config):
        self.processor = PADLogitsProcessor(config, torch.device("cpu"), False)

    def add(self, slot, extra_args, answer=(), **sampling):
        added = [(slot, SamplingParams(extra_args=extra_args, **sampling), [1], list(answer))]
        self.processor.update_state(BatchUpdate(R, [], added, []))

    def apply(self, logits):
        return self.processor.apply(logits)


class V2:
    """The V2 runner's: rows are mapped to slots."""

    order = np.array([9, 2, 5, 0], dtype=np.int32)

    def __init__(self, config):
        self.tokens = torch.zeros(16, 32, dtype=torch.int32)
        self.length = np.ones(16, dtype=np.int32)
        states = SimpleNamespace(
            device=torch.device("cpu"),
            max_num_reqs=16,
            vocab_size=V,
            all_token_ids=SimpleNamespace(gpu=self.tokens),
            prompt_len=SimpleNamespace(
                gpu=torch.ones(16, dtype=torch.int32), np=np.ones(16, dtype=np.int32)
            ),
            prefill_len=SimpleNamespace(np=self.length),
        )
        self.processor = PADLogitsProcessor(config, states)

    def add(self, slot, extra_args, answer=(), **sampling):
        text = [1, *answer]  # the prompt is one token
        self.tokens[slot, : len(text)] = torch.tensor(text)
        self.length[slot] = len(text)
        params = SamplingParams(extra_args=extra_args, **sampling)
        return self.processor.add_request(slot, params)

    def verify(self, logits, drafted, limit):
        """A step whose requests have drafts: slot -> their tokens, in slices of at most `limit` rows."""
        self.processor.apply_staged_writes()
        fed = [[int(self.tokens[s, self.length[s] - 1]), *drafted[s]] for s in self.order.tolist()]
        counts = [len(one) for one in fed]
        batch = SimpleNamespace(
            idx_mapping_np=self.order, cu_num_logits_np=np.array([0, *np.cumsum(counts)])
        )
        inputs = torch.tensor([token for one in fed for token in one], dtype=torch.int32)
        offsets = [offset for count in counts for offset in range(count)]
        lengths = np.repeat(self.length[self.order], counts) + offsets

        def slices(*_):
            for first, last in _iter_request_chunks(batch.cu_num_logits_np, limit):
                rows = slice(*batch.cu_num_logits_np[[first, last]])
                context = SimpleNamespace(
                    idx_mapping_np=self.order[first:last],
                    input_ids=inputs[rows],
                    pos=torch.from_numpy(lengths[rows]) - 1,
                    seq_lens_upper_bound_np=(self.length[self.order] + counts)[first:last],
                )
                self.processor.apply(logits[rows], context)

        draft_rows._with_batch_noted(slices, None, logits, batch)

    def apply(self, logits):
        self.processor.apply_staged_writes()
        lengths = self.length[self.order]
        context = SimpleNamespace(
            idx_mapping_np=self.order,
            input_ids=self.tokens[self.order, lengths - 1],
            pos=torch.from_numpy(lengths) - 1,
            seq_lens_upper_bound_np=np.append(lengths, 0),  # as padded for a captured graph
        )
        return self.processor.apply(logits, context)


@pytest.fixture(params=[V1, V2])
def runner(request, config):
    return request.param(config)


def fill(runner, *extra_args):
    """Row i of the next step gets the i-th arguments."""
    for slot, one in zip(runner.order.tolist(), extra_args, strict=False):
        runner.add(slot, one)


def test_only_guided_rows_change_and_they_change_as_the_rule_says(runner, engine):
    fill(runner, None, HELPFUL, {}, {"pad_weights": "humor=-2", "pad_beta": 3, "pad_top_k": 4})
    h_B, h_T = engine._states
    logits = torch.randn(R, V)
    before = logits.clone()
    result = runner.apply(logits)
    assert result is logits
    assert torch.equal(result[[0, 2]], before[[0, 2]])
    for row, w, beta, k in ((1, [1.0, 0.0], 1.0, 10), (3, [0.0, -2.0], 3.0, 4)):
        d_w = guidance.reward_direction(h_B[row], h_T[row], torch.tensor(w), *engine._heads)
        expected = guide_row(before[row], engine._rows.weight @ d_w, beta, k)
        torch.testing.assert_close(result[row], expected, rtol=1e-5, atol=1e-5)


def test_a_candidate_that_would_close_a_loop_gets_at_most_the_average_reward(runner, engine):
    guarded = {**HELPFUL, "pad_beta": 5, "pad_no_repeat": 2}
    answers = [[3, 7, 3], [], [2, 2, 2, 2], [3, 7, 3]]
    asked = [guarded, guarded, {**guarded, "pad_no_repeat": 3}, {**HELPFUL, "pad_beta": 5}]
    for slot, one, answer in zip(runner.order.tolist(), asked, answers, strict=True):
        runner.add(slot, one, answer)
    h_B, h_T = engine._states
    # The tokens that would loop get high rewards.
    engine._rows.weight[[7, 2]] += (h_T - h_B).mean(0)
    logits = torch.randn(R, V)
    before = logits.clone()
    runner.apply(logits)
    for row, (answer, n) in enumerate(zip(answers, (2, 2, 3, 0), strict=True)):
        d_w = guidance.reward_direction(
            h_B[row], h_T[row], torch.tensor([1.0, 0.0]), *engine._heads
        )
        reward = engine._rows.weight @ d_w
        expected = guide_row(before[row], reward, 5.0, 10, answer, n)
        torch.testing.assert_close(logits[row], expected, rtol=1e-5, atol=1e-5)
        free = guide_row(before[row], reward, 5.0, 10)
        assert torch.equal(free, expected) or row in (0, 2)


@pytest.mark.parametrize("limit", [100, 5, 1])
def test_v2_the_row_of_each_draft_is_guided_by_its_own_state_and_the_text_before_it(
    config, engine, limit
):
    config.speculative_config = SimpleNamespace(method="ngram", num_speculative_tokens=3)
    config.use_v2_model_runner = True
    runner = V2(config)
    guarded = {**HELPFUL, "pad_beta": 5, "pad_no_repeat": 2}
    asked = {9: None, 2: guarded, 5: {**HELPFUL, "pad_beta": 2}, 0: marked("a", **guarded)}
    answers = {9: [4], 2: [3, 7], 5: [6], 0: [3, 7, 2, 3]}
    drafted = {9: [1, 2, 3], 2: [3, 7, 3], 5: [], 0: [7, 2]}
    for slot, one in asked.items():
        runner.add(slot, one, answers[slot])
    count = sum(len(one) + 1 for one in drafted.values())
    h_B, h_T = torch.randn(count, H), torch.randn(count, H)
    # The tokens that would loop get high rewards.
    engine._rows.weight[[7, 3]] += (h_T - h_B).mean(0)
    engine.store_states(h_B, h_T)
    logits = torch.randn(count, V)
    before, row, looping = logits.clone(), 0, 0
    runner.verify(logits, drafted, limit)
    for slot in runner.order.tolist():
        for said in range(len(drafted[slot]) + 1):
            expected = before[row]
            if asked[slot] is not None:
                d_w = guidance.reward_direction(
                    h_B[row], h_T[row], torch.tensor([1.0, 0.0]), *engine._heads
                )
                text = [*answers[slot], *drafted[slot][:said]]
                beta, n = asked[slot]["pad_beta"], asked[slot].get("pad_no_repeat", 0)
                reward = engine._rows.weight @ d_w
                expected = guide_row(before[row], reward, beta, 10, text, n)
                without = guide_row(before[row], reward, beta, 10, answers[slot], n)
                looping += not torch.equal(without, expected)
            torch.testing.assert_close(logits[row], expected, rtol=1e-5, atol=1e-5)
            row += 1
    assert looping > 2  # the drafts before a row matter
    assert engine._states is None
    assert not runner.processor._failure_log.counts
    assert outcomes(config, "a")[0]["unguided_tokens"] == 0


def test_v2_rows_that_belong_to_no_known_request_stay_as_they_came(config, engine):
    runner = V2(config)
    fill(runner, marked("a"))
    logits = torch.randn(R + 1, V)
    before = logits.clone()
    assert torch.equal(runner.apply(logits), before)
    assert runner.processor._failure_log.counts == {"engine failed": 1}
    assert outcomes(config, "a")[0]["unguided_tokens"] is None


def test_rows_of_lm_head_that_are_no_token_are_no_candidates(config, engine, monkeypatch):
    monkeypatch.setattr(vocabulary, "num_token_columns", lambda _: V - 10)
    runner = V2(config)
    fill(runner, HELPFUL, {"pad_weights": "helpful=1", "pad_top_k": 100}, None)
    before = torch.randn(R, V)
    before[:, -10:] += 5  # what the base itself would take
    after = runner.apply(before.clone())
    assert (after[:2, -10:] == -torch.inf).all()
    assert (after[1] > -torch.inf).sum() == min(100, V - 10)
    assert torch.equal(after[2:], before[2:])


@pytest.mark.parametrize("nothing", [None, {}, {"kv_transfer_params": {"a": 1}, "other": 3}])
def test_requests_without_pad_arguments_are_left_alone(runner, engine, nothing):
    fill(runner, *[nothing] * R)
    logits = torch.randn(R, V)
    before = logits.clone()
    assert torch.equal(runner.apply(logits), before)


@pytest.mark.parametrize("bad", BAD, ids=[re.sub(r"\W+", "-", str(bad)) for bad in BAD])
def test_bad_arguments_that_got_past_the_front_end_raise_nothing_and_guide_nothing(
    runner, engine, bad
):
    fill(runner, bad, HELPFUL)
    logits = torch.randn(R, V)
    before = logits.clone()
    runner.apply(logits)
    assert torch.equal(logits[0], before[0])
    assert not torch.equal(logits[1], before[1])
    assert runner.processor._failure_log.counts == {"bad request": 1}


@pytest.mark.parametrize("kept", [None, R - 1, R + 1])
def test_hidden_states_of_other_rows_leave_the_logits_as_they_came(runner, engine, kept):
    fill(runner, HELPFUL)
    engine._states = None if kept is None else (torch.randn(kept, H), torch.randn(kept, H))
    logits = torch.randn(R, V)
    before = logits.clone()
    assert torch.equal(runner.apply(logits), before)
    runner.apply(logits)
    assert runner.processor._failure_log.counts == {"misaligned": 2}


def test_hidden_states_serve_one_step_only(runner, engine):
    fill(runner, HELPFUL)
    runner.apply(torch.randn(R, V))
    logits = torch.randn(R, V)
    before = logits.clone()
    assert torch.equal(runner.apply(logits), before)


def test_an_engine_that_fails_leaves_the_logits_as_they_came_and_raises_nothing(
    runner, engine, monkeypatch
):
    def fail(_step):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(engine, "rewards", fail)
    said = []
    monkeypatch.setattr(runner.processor._failure_log, "_log", said.append)
    fill(runner, HELPFUL)
    logits = torch.randn(R, V)
    for _ in range(3):
        assert torch.equal(runner.apply(logits.clone()), logits)
    assert runner.processor._failure_log.counts == {"engine failed": 3}
    assert len(said) == 1
    assert "RuntimeError: out of memory" in said[0]


def test_without_a_running_engine_nothing_is_guided_and_nothing_raises(runner):
    fill(runner, HELPFUL)
    logits = torch.randn(R, V)
    before = logits.clone()
    assert torch.equal(runner.apply(logits), before)


def test_rows_with_broken_rewards_are_counted_and_reported(runner, engine, monkeypatch):
    said = []
    monkeypatch.setattr(logits_processor, "_COUNT_EVERY", 1)
    monkeypatch.setattr(runner.processor._failure_log, "_log", said.append)
    fill(runner, HELPFUL, HELPFUL)
    engine._states[1][0] = float("nan")
    logits = torch.randn(R, V)
    before = logits.clone()
    runner.apply(logits)
    assert torch.equal(logits[0], before[0])
    assert not torch.equal(logits[1], before[1])
    assert runner.processor._failure_log.counts == {"not finite": 1}
    assert len(said) == 1


def test_rows_that_failed_for_another_reason_are_not_counted_as_broken(runner, engine, monkeypatch):
    monkeypatch.setattr(logits_processor, "_COUNT_EVERY", 1)
    fill(runner, HELPFUL)
    engine._states = None
    runner.apply(torch.randn(R, V))
    runner.apply(torch.randn(R, V))
    assert runner.processor._failure_log.counts == {"misaligned": 2}


def outcomes(config, *outcome_keys):
    """What the worker reports of answers, by their outcome keys."""
    return instance.report_outcomes(config.instance_id, list(outcome_keys))[0]


def marked(outcome_key, **more):
    return {**HELPFUL, "_pad_answer": outcome_key, **more}


def test_an_answers_unguided_tokens_are_counted_for_that_answer_alone(runner, config, engine):
    fill(runner, marked("a"), marked("b"), None, marked("c"))
    for _ in range(3):
        engine.store_states(torch.randn(R, H), torch.randn(R, H))
        engine._states[1][0] = float("nan")
        runner.apply(torch.randn(R, V))
    assert outcomes(config, "a", "b") == [
        {"guided_tokens": 0, "unguided_tokens": 3, "stopped": False},
        {"guided_tokens": 3, "unguided_tokens": 0, "stopped": False},
    ]
    runner.apply(torch.randn(R, V))  # nothing was kept for this step
    assert outcomes(config, "c", "nobody") == [
        {"guided_tokens": 3, "unguided_tokens": 1, "stopped": False},
        None,
    ]


def test_an_answer_that_comes_back_after_a_preemption_keeps_its_count(runner, config, engine):
    engine.discard_states()
    for _ in range(2):
        fill(runner, marked("a"))
        runner.apply(torch.randn(R, V))
        fill(runner, None)
    assert outcomes(config, "a")[0]["unguided_tokens"] == 2


@pytest.fixture
def stopping(config, adapter, request):
    """A processor that ends answers which cannot go on guided, with token 5."""
    config.additional_config["pad"]["on_failure"] = "stop"
    config.model_config.hf_text_config = SimpleNamespace(eos_token_id=5)


@pytest.mark.usefixtures("stopping")
def test_an_answer_that_is_to_stop_does_so_as_soon_as_its_grammar_lets_it(runner, config, engine):
    fill(runner, marked("a"), marked("b"))
    masked = torch.randn(R, V)
    masked[0, 5] = float("-inf")
    engine._states[1][0] = float("nan")
    before = masked.clone()
    runner.apply(masked)
    assert torch.equal(masked[0], before[0])  # unguided, and not cut off
    engine.store_states(torch.randn(R, H), torch.randn(R, H))
    logits = torch.randn(R, V)
    runner.apply(logits)
    assert logits[0].isfinite().nonzero().tolist() == [[5]]
    assert logits[1].isfinite().sum() > 1
    assert outcomes(config, "a", "b") == [
        {"guided_tokens": 1, "unguided_tokens": 1, "stopped": True},
        {"guided_tokens": 2, "unguided_tokens": 0, "stopped": False},
    ]


@pytest.mark.usefixtures("stopping")
def test_an_answer_that_ignores_its_end_token_goes_on_unguided(runner, config, engine):
    runner.add(int(runner.order[0]), marked("a"), ignore_eos=True)
    engine.discard_states()
    logits = torch.randn(R, V)
    before = logits.clone()
    runner.apply(logits)
    assert torch.equal(logits, before)
    assert outcomes(config, "a")[0]["stopped"] is False


@pytest.mark.parametrize(
    "where",
    ["candidates", "guide", "token_rewards", "guided_rows", "store_states", "count_step"],
)
def test_whatever_fails_in_a_step_raises_nothing_and_is_reported(
    runner, config, engine, monkeypatch, where
):
    def fail(*_args, **_kwargs):
        raise RuntimeError("out of memory")

    fill(runner, marked("a"))
    processor = runner.processor
    owner = {
        "guided_rows": processor._slots,
        "store_states": engine,
        "count_step": processor._outcome_table,
    }
    if where == "store_states":
        kept(engine, torch.randn(R, H), torch.randn(R, H))
    with monkeypatch.context() as patch:
        patch.setattr(owner.get(where, guidance), where, fail)
        if where == "store_states":
            kept(engine, torch.randn(R, H), torch.randn(R, H))
        logits = torch.randn(R, V)
        before = logits.clone()
        runner.apply(logits)
    unknown = where in ("guided_rows", "count_step")
    assert torch.equal(logits, before) or where == "count_step"
    assert outcomes(config, "a")[0]["unguided_tokens"] == (None if unknown else 1)
    engine.store_states(torch.randn(R, H), torch.randn(R, H))
    runner.apply(logits)
    assert not torch.equal(logits, before)


@pytest.mark.parametrize("where", ["candidates", "token_rewards", "below_min_p", "store_states"])
def test_what_fails_on_one_rank_leaves_the_same_rows_unguided_on_all(config, monkeypatch, where):
    """No rank waits for another, and all have the same bits: now, and in the next step."""
    world = ThreadedRanks(2)
    torch.manual_seed(0)
    heads = guidance.HeadTensors(torch.randn(D, 2, H), torch.randn(D, H, 2))
    e = torch.randn(V, H)
    parts = e.chunk(2)
    engines = [SharedRewards(heads, LmHeadRows(parts[rank], rank, 2)) for rank in range(2)]
    runners = [V2(config) for _ in range(2)]
    monkeypatch.setattr(guided_step, "parallel_ranks", world)
    own_engine = property(lambda _: engines[world.tp_rank_and_size()[0]])
    monkeypatch.setattr(instance.Instance, "engine", own_engine)
    broken, original = [], getattr(guidance, where, None)

    def fail_on_the_second(*args, **kwargs):
        if broken and world.tp_rank_and_size()[0] == 1:
            raise RuntimeError("out of memory")
        return original(*args, **kwargs)

    if original is not None:
        monkeypatch.setattr(guidance, where, fail_on_the_second)
    for runner in runners:
        fill(runner, {**marked("a"), "pad_min_p": 0.1}, None)

    def step(states, logits):
        def one(rank):
            if where != "store_states" or not broken or rank == 0:
                engines[rank].store_states(*states)
            return runners[rank].apply(logits.clone())

        first, second = world.run(one)
        assert torch.equal(first, second)
        return first

    states, logits = (torch.randn(R, H), torch.randn(R, H)), torch.randn(R, V)
    guided = step(states, logits)
    assert (guided != logits).any(1).tolist() == [True, False, False, False]
    broken.append(True)
    assert torch.equal(step(states, logits), logits)
    broken.clear()
    assert torch.equal(step(states, logits), guided)
    for runner in runners:
        (outcome,) = runner.processor._outcome_table.pop_outcomes(["a"])
        assert outcome == {"guided_tokens": 2, "unguided_tokens": 1, "stopped": False}


class Model:
    """A model whose logits are its hidden states."""

    def compute_logits(self, hidden_states):
        return hidden_states


def kept(engine, h_B, h_T):
    """As the forked model hands its hidden states over."""
    model = Model()
    model.pad_rewards = engine
    mix_in(model, ForkedModel)
    model.compute_logits(torch.cat((h_B, h_T), dim=-1))


def test_v1_tables_that_cannot_follow_the_batch_guide_nothing_rather_than_another(
    config, engine, monkeypatch
):
    runner = V1(config)
    fill(runner, marked("a"), marked("b"))
    monkeypatch.setattr(runner.processor._slots, "move", None)
    runner.processor.update_state(BatchUpdate(3, [], [], [(1, 0, MoveDirectionality.SWAP)]))
    logits = torch.randn(R, V)
    before = logits.clone()
    assert torch.equal(runner.apply(logits), before)
    assert [told["unguided_tokens"] for told in outcomes(config, "a", "b")] == [None, None]


def test_v1_rows_are_guided_also_where_the_reward_model_cannot_start_early(
    config, engine, monkeypatch
):
    runner = V1(config)
    with monkeypatch.context() as patch:
        patch.setattr(engine, "before_forward_v1", None)
        fill(runner, marked("a"), marked("b"))
    logits = torch.randn(R, V)
    before = logits.clone()
    runner.apply(logits)
    assert (logits != before).any(1).tolist() == [True, True, False, False]
    assert [told["unguided_tokens"] for told in outcomes(config, "a", "b")] == [0, 0]
    assert set(runner.processor._failure_log.counts) == {"late start"}


def test_a_request_whose_text_cannot_be_read_costs_no_other_its_guidance(
    runner, engine, monkeypatch
):
    joined = []

    def join(request):
        if not joined:
            joined.append(None)
            raise RuntimeError("can't start new thread")
        joined.append(request.tokens)

    processor = runner.processor
    monkeypatch.setattr(processor, "_reads_tokens", True)
    monkeypatch.setattr(engine, "on_request_joined", join)
    processor._v2_states = SimpleNamespace(
        prefill_len=SimpleNamespace(np=[1] * 10),
        prompt_len=SimpleNamespace(np=[1] * 10),
        all_token_ids=SimpleNamespace(gpu=torch.ones(10, 1, dtype=torch.int64)),
    )
    fill(runner, marked("a"), marked("b"), marked("c"))
    processor.apply_staged_writes()
    assert joined == [None, [1], [1]]
    assert len(processor._slots) == 3
    assert processor._failure_log.counts == {"text lost": 1}


def test_v2_tokens_that_cannot_be_read_raise_nothing(config, engine, monkeypatch):
    runner = V2(config)
    monkeypatch.setattr(runner.processor, "_reads_tokens", True)
    assert runner.add(5, HELPFUL) is True
    runner.processor.apply_staged_writes()
    assert runner.processor._v2_unread == []


def test_v1_follows_requests_that_leave_move_and_swap(config):
    runner = V1(config)
    fill(runner, HELPFUL, None, HELPFUL, None)
    moved = [(3, 0, MoveDirectionality.UNIDIRECTIONAL), (1, 2, MoveDirectionality.SWAP)]
    runner.processor.update_state(None)
    runner.processor.update_state(BatchUpdate(3, [0], [], moved))
    assert runner.processor._slots.guided_rows(np.arange(3)).rows.tolist() == [1]


def test_v2_says_which_requests_it_guides_and_forgets_a_slots_last_one(config):
    runner = V2(config)
    assert runner.add(5, HELPFUL) is True
    assert runner.add(5, None) is False
    assert len(runner.processor._slots) == 0


def test_nothing_is_allocated_with_the_model(runner):
    """vLLM makes V2's processors while it loads the model, and discards what was allocated then."""
    seen, unseen = set(), [runner.processor]
    while unseen:
        one = unseen.pop()
        if id(one) in seen or isinstance(one, type | ModuleType | torch.device):
            continue
        seen.add(id(one))
        assert not isinstance(one, torch.Tensor) or one is getattr(runner, "tokens", None)
        inside = vars(one) if hasattr(one, "__dict__") else {}
        unseen += [value for name, value in inside.items() if name not in {"_v2_states", "_states"}]
        unseen += one if isinstance(one, list | tuple | set) else ()
        unseen += one.values() if isinstance(one, dict) else ()


def test_greedy_requests_need_it_too(runner):
    assert runner.processor.is_argmax_invariant() is False


@pytest.mark.parametrize("bad", BAD[1:3] + BAD[4:6] + BAD[7:])
def test_what_is_wrong_under_every_adapter_is_refused_at_admission(bad):
    with pytest.raises(ValueError, match="pad_"):
        PADLogitsProcessor.validate_params(SamplingParams(extra_args=bad))


@pytest.mark.parametrize("good", [None, {}, HELPFUL, {"other": 1}])
def test_what_may_be_right_passes_admission(good):
    PADLogitsProcessor.validate_params(SamplingParams(extra_args=good))


class Joined(SharedRewards):
    """Notes the tokens of the requests that join."""

    def __init__(self):
        self.joined = []

    def before_forward_v1(self, requests):
        pass

    def on_request_joined(self, request):
        self.joined.append((list(request.tokens), request.num_prompt_tokens))


def test_an_engine_that_reads_tokens_gets_a_guided_request_when_it_joins(config):
    engine = Joined()
    v1, v2 = V1(config), V2(config)
    instance.find_instance(config.instance_id).register_engine(engine)
    v1.processor._reads_tokens = v2.processor._reads_tokens = True
    v1.add(0, HELPFUL)
    v1.add(1, None)
    assert engine.joined == [([1], 1)]
    v2.processor._v2_states = SimpleNamespace(
        prefill_len=SimpleNamespace(np=[3]),
        prompt_len=SimpleNamespace(np=[2]),
        all_token_ids=SimpleNamespace(gpu=torch.tensor([[5, 6, 7, 0]])),
    )
    v2.add(0, HELPFUL)
    v2.processor.apply_staged_writes()
    assert engine.joined[1:] == [([5, 6, 7], 2)]


def test_v2_gives_the_engine_the_last_tokens_before_the_next_forward(config, engine, monkeypatch):
    told = []
    monkeypatch.setattr(
        engine,
        "before_forward_v2",
        lambda requests, fed: told.append((list(requests), fed().tolist())),
    )
    runner = V2(config)
    processor = runner.processor
    monkeypatch.setattr(processor, "_reads_tokens", True)
    monkeypatch.setattr(processor, "_announce_request", lambda request, read: None)
    processor._v2_states.total_len = SimpleNamespace(gpu=torch.tensor(runner.length))
    processor.apply_staged_writes()
    first, second, third, fourth = (int(slot) for slot in runner.order)
    for slot, text in ((first, [7]), (third, [5, 6]), (fourth, [])):
        runner.add(slot, HELPFUL, text)
    runner.add(second, None)
    processor.apply_staged_writes()
    runner.apply(torch.randn(R, V))
    assert told == []  # no request has an answer yet
    runner.add(fourth, HELPFUL, [3])  # another one, as the first left
    processor._v2_states.total_len.gpu[:] = torch.tensor(runner.length)
    here = [processor._slots.guided_requests[slot] for slot in (first, third)]
    processor.apply_staged_writes()
    assert told == [(here, [[7, 1], [6, 2]])]
    processor.apply_staged_writes()  # a step without a forward
    assert len(told) == 1


def test_v2_goes_on_where_the_engine_cannot_begin_early(config, engine, monkeypatch):
    runner = V2(config)
    monkeypatch.setattr(runner.processor, "_reads_tokens", True)
    monkeypatch.setattr(runner.processor, "_announce_request", lambda request, read: None)
    fill(runner, *[HELPFUL] * R)
    monkeypatch.setattr(
        engine, "before_forward_v2", lambda requests, fed: fed()
    )  # no lengths are known
    runner.apply(torch.randn(R, V))
    runner.processor.apply_staged_writes()
    assert runner.processor._failure_log.counts == {"late start": 1}


@pytest.mark.usefixtures("engine")
def test_reasoning_may_be_left_unguided_and_does_not_count_as_lost(config):
    known = SimpleNamespace(reasoning_start_token_ids=[7], natural_reasoning_end_token_ids=[8])
    config.additional_config["pad"]["reasoning"] = "unguided"
    config.reasoning_config, config.use_v2_model_runner = known, True
    runner = V2(config)
    first, second, third, _ = (int(slot) for slot in runner.order)
    runner.add(first, marked("thinks"), [7, 3])
    runner.add(second, marked("answers"), [7, 3, 8])
    runner.add(third, marked("never thinks"), [3])
    before = torch.randn(R, V)
    after = runner.apply(before.clone())
    assert torch.equal(after[0], before[0])
    assert not torch.equal(after[1], before[1])
    assert not torch.equal(after[2], before[2])
    assert [one["unguided_tokens"] for one in outcomes(config, "thinks", "answers")] == [0, 0]


def test_reasoning_is_left_unguided_on_v2_alone(config):
    config.additional_config["pad"]["reasoning"] = "unguided"
    with pytest.raises(ValueError, match="V2 runner alone"):
        PADLogitsProcessor(config, torch.device("cpu"), False)


def test_v1_who_leaves_a_slot_leaves_before_another_joins(config, engine):
    runner, now = V1(config), []
    for slot in (0, 1):
        runner.add(slot, HELPFUL)
    engine.on_request_left = lambda request: now.append(("left", request))
    engine.on_request_assigned = lambda request: now.append(("joined", request))
    # vLLM does not list slots as removed that others take in the same step.
    added = [(slot, SamplingParams(extra_args=HELPFUL), [1], []) for slot in (0, 1)]
    runner.processor.update_state(BatchUpdate(R, [], added, []))
    assert [what for what, _ in now] == ["left", "left", "joined", "joined"]
