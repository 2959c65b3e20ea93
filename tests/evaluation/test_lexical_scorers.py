"""Scorers rank what they say they rank; classifiers and judges keep the same contract."""

from __future__ import annotations

import json
import math
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import process_time
from types import SimpleNamespace

import pytest
import tiny

from pad_vllm.evaluation import lexical_scorers
from pad_vllm.evaluation.chat_judge import ChatJudge, judge_prompt, parse_score
from pad_vllm.evaluation.classifier_scorer import ClassifierScorer
from pad_vllm.evaluation.lexical_scorers import (
    LEXICAL_SCORERS,
    lexical_scores,
    score_clean,
    score_personal,
)
from pad_vllm.evaluation.scorer_specs import parse_scorer
from pad_vllm.text.conversation import Conversation

QUESTION = Conversation.model_validate("q")


@pytest.mark.parametrize(
    ("name", "more", "less"),
    [
        ("positive", "What a wonderful day. I love it.", "What an awful day. I hate it."),
        ("brief", "Yes.", "Yes, and here is a good deal more about it."),
        ("simple", "The cat sat on the mat.", "Considerable sophistication characterises it."),
        ("personal", "I'd say you should ask us.", "Questions should be asked."),
        ("clean", "What is this nonsense?", "What the fuck is this?"),
        ("polarity", "What a wonderful day. I love it.", "What an awful day. I hate it."),
        ("afinn", "What a wonderful day. I love it.", "What an awful day. I hate it."),
        ("flesch", "The cat sat on the mat.", "Considerable sophistication characterises it."),
        ("common", "The house is near the road.", "The edifice adjoins the thoroughfare."),
    ],
)
def test_a_scorer_ranks_the_plain_case(name, more, less):
    assert LEXICAL_SCORERS[name](more) > LEXICAL_SCORERS[name](less)


@pytest.mark.parametrize("text", ["", " \n", "...", "1 2 3", "\U0001f600"])
def test_scorers_take_text_without_words(text):
    assert all(math.isfinite(value) for value in lexical_scores(text, tuple(LEXICAL_SCORERS)))
    assert lexical_scores(text, ("personal", "clean")) == [0, 0]


def test_an_unknown_scorer_is_refused_by_name():
    with pytest.raises(ValueError, match="kindness.*positive, brief, simple"):
        lexical_scores("text", ("kindness",))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I'm glad you'll join us.", 60),
        ("You\u2019re right", 50),
        ("MY DOG", 50),
        ("The US economy, i.e. trade", 0),
        ("Miners mined ourselvesish weeds", 0),
    ],
)
def test_personal_counts_pronouns_per_100_words(text, expected):
    assert score_personal(text) == expected


@pytest.mark.parametrize(
    ("text", "profane", "words"),
    [
        ("This is sh1t, f*ck it.", 2, 7),  # the disguised ones are two words each
        ("Shit! Shit? (shit)", 3, 3),
        ("The Scunthorpe class assessed a cocktail in a pot.", 0, 9),
    ],
)
def test_clean_counts_profane_words_per_100_words(text, profane, words):
    assert score_clean(text) == pytest.approx(-100 * profane / words)


def test_clean_gives_cached_words_the_same_score(monkeypatch):
    monkeypatch.setattr(lexical_scorers, "_PROFANITY_CACHE", {})
    text = "That bitch of a damn dog"

    assert score_clean(text) == score_clean(text) == pytest.approx(-100 * 2 / 6)
    assert score_clean("a dog") == 0


def test_clean_caches_a_limited_number_of_words(monkeypatch):
    monkeypatch.setattr(lexical_scorers, "_PROFANITY_CACHE", {})
    monkeypatch.setattr(lexical_scorers, "_PROFANITY_CACHE_SIZE", 10)
    for time in range(5):
        text = " ".join(f"word{time}x{place}" for place in range(8)) + " shit"
        assert score_clean(text) < 0
        assert len(lexical_scorers._PROFANITY_CACHE) <= 10 + 9


def test_a_local_scorer_goes_by_its_name_or_another():
    assert parse_scorer("brief")[0] == "brief"
    dimension, scorer = parse_scorer("cheerful=positive")

    assert (dimension, scorer.name, scorer.complete_only) == ("cheerful", "positive", False)
    assert parse_scorer("b=brief")[1].complete_only
    assert scorer(["?"], ["I love it."]) == [LEXICAL_SCORERS["positive"]("I love it.")]


@pytest.mark.parametrize(
    "spec",
    [
        "classifier:./toxic-bert",
        "classifier:./toxic-bert#toxic",
        "reward:org/reward-model",
        "reward:org/reward-model#helpfulness",
        "judge:http://localhost:8000/v1#org/model",
        "judge:http://localhost:8000/v1?a=b#org/model#Is it kind? #1 matters.",
    ],
)
def test_a_scorers_name_is_the_spec_that_made_it(spec):
    dimension, scorer = parse_scorer(f"some={spec}")

    assert (dimension, scorer.name) == ("some", spec)
    assert parse_scorer(f"some={scorer.name}")[1].name == spec


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("kindness", "'kindness' is not known.*positive, brief.*classifier:MODEL"),
        ("kind=kindness", "'kindness' of kind is not known.*positive, brief"),
        ("judge:http://x/v1?a=b#m", "dimension's name: helpful=judge:http"),
        ("helpful=judge:http://x/v1", "judge:URL#MODEL"),
        ("helpful=classifier:", "classifier:MODEL"),
        ("helpful=reward:", "reward:MODEL"),
        ("a b=positive", "'a b=positive' is not known"),
        ("", "'' is not known"),
    ],
)
def test_a_bad_spec_is_refused_with_what_is_accepted(spec, message):
    with pytest.raises(ValueError, match=message):
        parse_scorer(spec)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A folder with a tiny random classifier of the given labels."""

    def make(*labels, **settings):
        import torch
        from transformers import BertConfig, BertForSequenceClassification

        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=333,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=40,
            initializer_range=0.5,
            pad_token_id=2,
            id2label=dict(enumerate(labels)),
            label2id={label: i for i, label in enumerate(labels)},
            **settings,
        )
        folder = tmp_path_factory.mktemp("classifier")
        BertForSequenceClassification(config).save_pretrained(folder)
        tiny.tokenizer().save_pretrained(folder)
        return str(folder)

    return make


TEXTS = ["short", "a longer one than that", "far too long " * 40, "short"]


def test_probabilities_of_labels_that_exclude_each_other_add_up_to_one(classifier):
    folder = classifier("calm", "Toxic")
    calm, toxic, last = (
        ClassifierScorer(folder, label, batch_size=2)([""] * 4, TEXTS)
        for label in ("calm", "toxic", None)
    )

    assert [c + t for c, t in zip(calm, toxic, strict=True)] == pytest.approx([1] * 4)
    assert last == toxic
    assert calm[0] == pytest.approx(calm[3])
    assert calm[0] != pytest.approx(calm[1])


def test_a_batch_scores_as_its_texts_do_one_by_one(classifier):
    scorer = ClassifierScorer(classifier("a", "b", "c"), "b")
    alone = [scorer([""], [text])[0] for text in TEXTS]

    assert scorer([""] * 4, TEXTS) == pytest.approx(alone, abs=1e-5)
    assert scorer([], []) == []


def test_a_regression_gives_its_raw_logit_and_many_labels_a_sigmoid_each(classifier):
    import torch

    folder = classifier("score")
    scorer = ClassifierScorer(folder)
    model, tokenizer = scorer._loaded.model, scorer._loaded.tokenizer
    logit = model(**tokenizer(["short"], return_tensors="pt").to(model.device)).logits

    assert scorer([""], ["short"]) == pytest.approx([logit.item()])
    many = classifier("mild", "rude", problem_type="multi_label_classification")
    both = [ClassifierScorer(many, label)([""], ["short"])[0] for label in ("mild", "rude")]
    assert sum(both) != pytest.approx(1)
    assert all(0 < value < 1 for value in both)
    assert torch.is_tensor(logit)


def test_an_unknown_label_is_refused_with_the_known_ones(classifier):
    with pytest.raises(ValueError, match="no label 'sad'; it has calm, toxic"):
        ClassifierScorer(classifier("calm", "toxic"), "sad")([""], ["text"])


@pytest.fixture
def endpoint(monkeypatch):
    """A judge on this machine: statuses to answer with first, then 200 and `reply(question)`."""
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    for name in (
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "http_proxy",
        "https_proxy",
        "all_proxy",
    ):
        monkeypatch.delenv(name, raising=False)
    state = SimpleNamespace(statuses=[], reply=lambda asked: "7", asked=[], keys=set())

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state.keys.add(self.headers["Authorization"])
            status = state.statuses.pop() if state.statuses else 200
            answer = {"error": {"message": "not now"}}
            if status == 200:
                state.asked.append(body)
                content = state.reply(body["messages"][0]["content"])
                answer = {"choices": [{"index": 0, "message": {"content": content}}]}
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("retry-after-ms", "1")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    state.url = f"http://127.0.0.1:{server.server_port}/v1"
    yield state
    server.shutdown()
    server.server_close()


def test_a_judge_scores_each_reply_in_order_at_temperature_0(endpoint):
    endpoint.reply = lambda asked: f"Score: {len(asked.split('<reply>')[1].split())}"
    judge = ChatJudge(endpoint.url, "m", "helpful", concurrency=2)

    assert judge([QUESTION] * 3, ["one", "one two", "one two three"]) == [2, 3, 4]
    assert {body["temperature"] for body in endpoint.asked} == {0}
    assert {body["model"] for body in endpoint.asked} == {"m"}
    assert endpoint.keys == {"Bearer secret"}
    assert "Rate how helpful" in endpoint.asked[0]["messages"][0]["content"]


def test_a_judge_that_is_busy_is_asked_again(endpoint):
    endpoint.statuses = [503, 429]

    assert ChatJudge(endpoint.url, "m", "kind", "Is it kind?")([QUESTION], ["text"]) == [7]
    assert endpoint.asked[0]["messages"][0]["content"].startswith("Is it kind?")


def test_a_judge_that_refuses_one_text_leaves_it_unknown(endpoint):
    endpoint.statuses = [400]

    assert ChatJudge(endpoint.url, "m", "kind", concurrency=1)([QUESTION] * 2, ["a", "b"]) == [
        None,
        7,
    ]


def test_a_judge_that_is_not_there_ends_the_run_with_the_way_out(endpoint):
    endpoint.statuses = [404]

    with pytest.raises(ConnectionError, match="not now.*it continues"):
        ChatJudge(endpoint.url, "m", "kind")([QUESTION], ["a"])


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("7", 7),
        ("**8.5**/10", 8.5),
        ("On a scale from 1 to 10, I say 6.", 6),
        ("<think>2? No, 3.</think>\n9", 9),
        ("<think>2? or", None),
        ("I cannot say.", None),
        ("", None),
        ("85", None),
        ("-3", None),
        ("0", None),
        ("Score: 8", 8),
        ("8/10", 8),
        ("Rating: 8 out of 10", 8),
        ("The reply has 3 paragraphs and 2 examples. Score: 8", 8),
        ("The 2 sentences are kind, so I give it 7/10.", 7),
        ("Score (1-10): 6", 6),
        ("**Score:** 9\n\nIt names 3 reasons.", 9),
        ("**Final rating** is 4.5", 4.5),
        ("My first score was 5, but the final score is 7.", 7),
        ("8\n\nThe reply gives 2 examples.", 8),
        ("It has 4 of the 5 parts.\n\n**7**", 7),
        ("I would give it an 8.", 8),
        ("2 of 3 paragraphs are kind.", None),
        ("1. It is kind. 2. It is short.", None),
        ("Score: 80/100", None),
        ("Score: 4/5", None),
        ("4 out of 5", None),
        ("Score: 15", None),
        ("Kindness: 3/10, help: 9/10", None),
        ("Score: between 6 and 7", None),
    ],
)
def test_a_judges_reply_is_a_number_from_1_to_10_or_unknown(reply, expected):
    assert parse_score(reply) == expected


def test_a_judge_sees_prompt_and_reply_apart():
    asked = judge_prompt("Is it kind?", "the prompt", "the reply")

    assert asked.index("<prompt>\nthe prompt\n") < asked.index("<reply>\nthe reply\n")


@pytest.mark.parametrize("reply", ["1" * 50_000, "\n" * 50_000 + "x", "7" + " " * 50_000 + "x"])
def test_a_judge_that_repeats_itself_is_read_in_no_time(reply):
    started = process_time()
    parse_score(reply)
    assert process_time() - started < 1
