"""The resident engine's bookkeeping: whatever the runner feeds, the reward model scores that text."""

from __future__ import annotations

import threading

import pytest
import torch

from pad_vllm.engines import token_columns
from pad_vllm.engines.failure_log import FailureLog
from pad_vllm.engines.resident_engine import ResidentRewards
from pad_vllm.engines.reward_engine import GuidedRequest, StepCandidates
from pad_vllm.params import Guidance
from pad_vllm.text.token_alignment import AlignedTokens

K = 3


class SameTokensAligner:
    """A TokenAligner whose reward model has the base's own tokens."""

    def __init__(self):
        self.opened = []

    def start(self, prompt, preference=""):
        self.opened.append((list(prompt), preference))
        return AlignedTokens(prompt)


class LengthScorer:
    """Stores each step's requests; the reward of a candidate is its token plus the length of the text."""

    def __init__(self):
        self.steps = []

    def __call__(self, requests):
        self.steps.append(requests)
        found = torch.zeros(len(requests), max(len(scored.candidates) for scored in requests))
        for row, scored in enumerate(requests):
            for index, (_, (token,)) in enumerate(scored.candidates):
                found[row, index] = token + 100 * len(scored.tokens)
        return found


@pytest.fixture
def logged():
    return []


@pytest.fixture
def engine(logged):
    return ResidentRewards(SameTokensAligner(), LengthScorer(), FailureLog(logged.append))


def request(tokens, prompt, *, top_k=K, preference=""):
    return GuidedRequest(Guidance((1.0, 0.0), 1.0, top_k, preference), list(tokens), prompt)


def joined(engine, request):
    """The request, announced and its prompt translated."""
    engine.on_request_joined(request)
    request.engine_state.opened.result(10)
    return request


def step(engine, requests, fed, *, total=None):
    """One step in which each request was fed (token, position)."""
    count = len(requests)
    engine.receive(torch.tensor(fed))
    ids = torch.arange(count * K).view(count, K)
    w = torch.zeros(count, 2)
    rows = torch.arange(count)
    return engine.rewards(StepCandidates(total or count, rows, ids, w, tuple(requests)))


def texts(engine):
    return [list(scored.tokens) for scored in engine.scorer.steps[-1]]


def test_a_request_grows_by_what_it_is_fed(engine):
    one = request([5, 6, 7], 3)
    found = step(engine, [one], [(7, 2)])
    assert found.tolist() == [[300.0, 301.0, 302.0]]
    step(engine, [one], [(8, 3)])
    step(engine, [one], [(9, 4)])
    assert texts(engine) == [[5, 6, 7, 8, 9]]
    assert engine._prompts._aligner.opened == [([5, 6, 7], "")]
    assert len({scored.key for requests in engine.scorer.steps for scored in requests}) == 1


def test_while_the_base_reads_its_prompt_the_reward_model_only_looks_ahead(engine):
    one = request([5, 6, 7, 8], 4)
    step(engine, [one], [(6, 1)])
    (scored,) = engine.scorer.steps[-1]
    assert (scored.must_finish, list(scored.candidates), list(scored.tokens)) == (
        False,
        [],
        [5, 6, 7, 8],
    )
    step(engine, [one], [(8, 3)])
    assert engine.scorer.steps[-1][0].must_finish


def test_a_resumed_request_goes_on_with_its_answer(engine):
    one = request([5, 6, 7, 50, 51], 3, preference="kind")
    step(engine, [one], [(51, 4)])
    assert engine._prompts._aligner.opened == [([5, 6, 7], "kind")]
    assert texts(engine) == [[5, 6, 7, 50, 51]]


def test_the_fed_token_counts_where_the_list_has_another(engine):
    one = request([5, 6, 7, 50], 3)
    step(engine, [one], [(50, 3)])
    first = engine.scorer.steps[-1][0].key
    step(engine, [one], [(60, 3)])
    assert texts(engine) == [[5, 6, 7, 60]]
    assert engine.scorer.steps[-1][0].key != first


def test_a_request_with_a_gap_stays_unguided_and_is_counted(engine, logged):
    lost, sound = request([5], 1), request([6], 1)
    found = step(engine, [lost, sound], [(9, 3), (6, 0)])
    assert found[0].isnan().all()
    assert found[1].tolist() == [103.0, 104.0, 105.0]
    assert engine.failure_log.counts == {"text lost": 1}
    assert "lost" in logged[0]


def test_a_row_requests_no_more_candidates_than_it_may_take(engine):
    found = step(engine, [request([5], 1, top_k=1), request([6], 1)], [(5, 0), (6, 0)])
    assert [len(scored.candidates) for scored in engine.scorer.steps[-1]] == [1, K]
    assert found.tolist() == [[100.0, 0.0, 0.0], [103.0, 104.0, 105.0]]


def test_a_row_without_rewards_has_none_for_any_candidate_of_the_step():
    def declines(requests):
        widest = max(len(scored.candidates) for scored in requests)
        return torch.tensor([[float("nan")] * widest, [1.0] * widest])

    engine = ResidentRewards(SameTokensAligner(), declines, FailureLog(print))
    found = step(engine, [request([5], 1, top_k=1), request([6], 1, top_k=1)], [(5, 0), (6, 0)])
    assert found[0].isnan().all()
    assert found[1].tolist() == [1.0, 0.0, 0.0]


def test_a_row_whose_prompt_the_base_is_still_reading_needs_no_reward(engine):
    found = step(engine, [request([5, 6, 7], 3)], [(6, 1)])
    assert found.tolist() == [[0.0, 0.0, 0.0]]


def test_rows_that_are_not_the_ones_fed_get_nothing(engine):
    one = request([5], 1)
    assert step(engine, [one], [(5, 0)], total=2) is None
    assert (
        engine.rewards(StepCandidates(1, torch.tensor([0]), torch.zeros(1, K).long(), None, (one,)))
        is None
    )


def test_it_begins_with_the_text_when_the_forward_starts_and_does_not_read_it_twice():
    early = []
    engine = ResidentRewards(
        SameTokensAligner(),
        LengthScorer(),
        FailureLog(print),
        start_early=early.append,
        last_token_indices=lambda: torch.tensor([0, 3]),
    )
    running, joining = request([5, 6], 2), joined(engine, request([7, 8, 9], 3))
    step(engine, [running], [(6, 1)])
    engine.before_forward_v1({0: running, 1: joining})
    engine.on_forward_start(torch.tensor([40, 7, 8, 9]), torch.tensor([2, 0, 1, 2]))
    assert [list(scored.tokens) for scored in early[-1]] == [[5, 6, 40], [7, 8, 9]]
    assert all(not scored.candidates and scored.must_finish for scored in early[-1])
    step(engine, [running, joining], [(40, 2), (9, 2)])
    assert texts(engine) == [[5, 6, 40], [7, 8, 9]]
    engine.on_forward_start(
        torch.tensor([1]), torch.tensor([0])
    )  # this batch's requests are not known
    assert len(early) == 1


def test_it_starts_with_the_last_tokens_before_the_forward():
    early = []
    engine = ResidentRewards(
        SameTokensAligner(), LengthScorer(), FailureLog(print), start_early=early.append
    )
    running, reading = request([5, 6], 2), joined(engine, request([7, 8, 9], 3))
    step(engine, [running, reading], [(6, 1), (8, 1)])
    engine.before_forward_v2([running, reading], lambda: torch.tensor([[40, 2], [9, 2]]))
    assert [(list(scored.tokens), scored.must_finish) for scored in early[-1]] == [
        ([5, 6, 40], True),
        ([7, 8, 9], False),  # the base is still reading this one's prompt
    ]
    step(engine, [running, reading], [(40, 2), (9, 2)])
    assert texts(engine) == [[5, 6, 40], [7, 8, 9]]
    engine.before_forward_v2([], lambda: torch.tensor([]))
    assert len(early) == 1


def test_without_an_early_start_the_device_is_not_waited_for(engine):
    def waited():
        raise AssertionError

    engine.before_forward_v2([request([5], 1)], waited)


def test_an_error_at_the_start_of_a_forward_is_reported_and_not_raised(logged):
    def broken(_asks):
        raise RuntimeError("no actor")

    engine = ResidentRewards(
        SameTokensAligner(),
        LengthScorer(),
        FailureLog(logged.append),
        start_early=broken,
        last_token_indices=lambda: torch.tensor([0]),
    )
    engine.before_forward_v1({0: request([5], 1)})
    engine.on_forward_start(torch.tensor([5]), torch.tensor([0]))
    assert "no actor" in logged[0]
    engine.before_forward_v1({0: request([5], 1)})
    engine.on_forward_start(torch.tensor([5]), torch.tensor([0]))
    assert len(logged) == 1
    assert engine.failure_log.counts == {"late start": 2}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_token_and_position_travel_in_every_float_type(dtype):
    ids = torch.tensor([0, 1, 255, 256, 262_143, 16_777_215])
    positions = torch.tensor([0, 131_072, 7, 65_535, 1, 1_000_000])
    found = token_columns.decode_columns(token_columns.encode_columns(ids, positions, dtype))
    assert found.tolist() == torch.stack((ids, positions), -1).tolist()
    assert token_columns.encode_columns(ids, positions, dtype).dtype == dtype


def test_a_scoring_request_holds_the_rows_own_tokens_and_says_how_many_are_unchanged(engine):
    one = request([5, 6, 7], 3)
    step(engine, [one], [(7, 2)])
    tokens = engine.scorer.steps[-1][0].tokens
    assert engine.scorer.steps[-1][0].num_unchanged == 0
    for number in range(3):
        step(engine, [one], [(8, 3 + number)])
        (scored,) = engine.scorer.steps[-1]
        assert scored.tokens is tokens, "copied"
        assert scored.num_unchanged == 3 + number == len(tokens) - 1


def test_after_a_step_without_rewards_only_what_stayed_all_the_time_counts(engine):
    one, scorer = request([5, 6, 7], 3), engine.scorer
    step(engine, [one], [(7, 2)])

    def broken(_asks):
        raise RuntimeError("out of memory")

    engine.scorer = broken
    with pytest.raises(RuntimeError):
        step(engine, [one], [(8, 3)])
    engine.scorer = scorer
    step(engine, [one], [(9, 4)])
    assert engine.scorer.steps[-1][0].num_unchanged == 3
    assert texts(engine) == [[5, 6, 7, 8, 9]]


class WaitingAligner(SameTokensAligner):
    """Does not finish a prompt before `may` is set."""

    def __init__(self):
        super().__init__()
        self.may = threading.Event()

    def start(self, prompt, preference=""):
        assert self.may.wait(10)
        return super().start(prompt, preference)


def test_no_step_waits_for_a_prompt_while_the_base_itself_still_reads_it(logged):
    aligner = WaitingAligner()
    engine = ResidentRewards(aligner, LengthScorer(), FailureLog(logged.append))
    long = request([5, 6, 7, 8], 4)
    engine.on_request_joined(long)
    # Not NaN: no token goes unguided, as none is taken from these rows.
    assert not step(engine, [long], [(5, 0)]).any()
    assert not step(engine, [long], [(6, 1)]).any()
    assert engine.scorer.steps == []
    aligner.may.set()
    assert step(engine, [long], [(8, 3)]).tolist() == [[400.0, 401.0, 402.0]]
    assert (logged, len(aligner.opened)) == ([], 1)


def test_rows_whose_prompt_is_late_are_counted_and_no_other_row_waits_for_them(logged):
    aligner = WaitingAligner()
    engine = ResidentRewards(
        SameTokensAligner(), LengthScorer(), FailureLog(logged.append), longest_prompt_wait_s=0.05
    )
    running, late = request([5, 6], 2), request([7, 8, 9], 3)
    step(engine, [running], [(6, 1)])
    engine._prompts._aligner = aligner
    engine.on_request_joined(late)
    found = step(engine, [running, late], [(50, 2), (9, 2)])
    assert found[0].tolist() == [300.0, 301.0, 302.0]
    assert found[1].isnan().all()
    assert engine.failure_log.counts == {"late prompt": 1}
    assert engine.failure_log.unguided_rows == 1
    assert "not translated yet" in logged[0]
    step(engine, [running, late], [(51, 3), (60, 3)])
    assert engine.failure_log.counts == {"late prompt": 2}
    aligner.may.set()
    late.engine_state.opened.result(10)
    found = step(engine, [running, late], [(52, 4), (61, 4)])
    assert found.tolist() == [[500.0, 501.0, 502.0], [503.0, 504.0, 505.0]]
    assert texts(engine) == [[5, 6, 50, 51, 52], [7, 8, 9, 60, 61]]
    assert engine.failure_log.counts == {"late prompt": 2}


def test_a_prompt_that_comes_within_the_wait_is_guided_from_its_first_token(logged):
    aligner = WaitingAligner()
    engine = ResidentRewards(
        aligner, LengthScorer(), FailureLog(logged.append), longest_prompt_wait_s=10.0
    )
    one = request([5], 1)
    engine.on_request_joined(one)
    threading.Timer(0.05, aligner.may.set).start()
    assert step(engine, [one], [(5, 0)]).tolist() == [[100.0, 101.0, 102.0]]
    assert logged == []


def test_a_forward_does_not_wait_for_a_prompt_either():
    early, aligner = [], WaitingAligner()
    engine = ResidentRewards(
        aligner,
        LengthScorer(),
        print,
        start_early=early.append,
        last_token_indices=lambda: torch.tensor([0]),
    )
    one = request([5], 1)
    engine.on_request_joined(one)
    engine.before_forward_v1({0: one})
    engine.on_forward_start(torch.tensor([5]), torch.tensor([0]))
    assert early == [[]]
    aligner.may.set()
    assert step(engine, [one], [(5, 0)]).tolist() == [[100.0, 101.0, 102.0]]


def test_prompts_of_requests_that_left_are_not_read(logged):
    aligner = WaitingAligner()
    engine = ResidentRewards(aligner, LengthScorer(), FailureLog(logged.append))
    first, left, last = request([5], 1), request([6], 1), request([7], 1)
    for one in (first, left, last):
        engine.on_request_joined(one)
    del left, one
    aligner.may.set()
    assert step(engine, [last], [(7, 0)]).tolist() == [[100.0, 101.0, 102.0]]
    assert aligner.opened == [([5], ""), ([7], "")]


class FailingAligner(SameTokensAligner):
    """Fails on one prompt."""

    def start(self, prompt, preference=""):
        if list(prompt) == [66]:
            raise ValueError("cannot be read")
        return super().start(prompt, preference)


def test_a_text_that_cannot_be_read_costs_no_other_row_its_early_start(logged):
    early = []
    engine = ResidentRewards(
        FailingAligner(),
        LengthScorer(),
        FailureLog(logged.append),
        start_early=early.append,
        last_token_indices=lambda: torch.tensor([0, 1]),
    )
    lost, sound = request([66], 1), request([5], 1)
    step(engine, [lost, sound], [(66, 0), (5, 0)])
    engine.before_forward_v1({0: lost, 1: sound})
    engine.on_forward_start(torch.tensor([8, 9]), torch.tensor([1, 1]))
    assert [[list(scored.tokens) for scored in requests] for requests in early] == [[[5, 9]]]
    assert step(engine, [lost, sound], [(8, 1), (9, 1)]).isnan().all(1).tolist() == [True, False]
    assert engine.failure_log.counts == {"text lost": 2}


def test_before_the_bases_weights_are_loaded_again_the_reward_models_own_are_looked_at(logged):
    looked = []
    engine = ResidentRewards(
        SameTokensAligner(),
        LengthScorer(),
        FailureLog(logged.append),
        require_own_weights=lambda: looked.append(True),
    )
    engine.on_weights_changed()
    assert looked
