"""An instruction's tokens: its own in a user's turn, and what the chat template puts before them."""

from __future__ import annotations

import pytest
import tiny

from pad_vllm.instruction import InstructionTokens
from pad_vllm.text.instruction_tokens import instruction_tokens

SENTENCE = "Answer in a funny way"
TURNS = "{% for m in messages %}[{{ m['role'] }}|{{ m['content'] }}]{% endfor %}"
DEFAULT_SYSTEM = "[system|Be helpful.]" + TURNS
ALTERNATING = "{% if messages | length != 1 %}{{ raise_exception('turns') }}{% endif %}" + TURNS
TRIMS = "{% for m in messages %}({{ m['content'] | trim }}){% endfor %}"


def read(template, sentence=SENTENCE):
    """The texts of the opening and of the sentence."""
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = template
    tokens = instruction_tokens(tokenizer, sentence)
    return tuple(tokenizer.decode(part) for part in tokens)


@pytest.mark.parametrize("template", [TURNS, ALTERNATING])
def test_it_ends_where_the_sentence_ends(template):
    assert read(template) == ("[user|", SENTENCE)


def test_a_default_system_prompt_is_before_it():
    assert read(DEFAULT_SYSTEM) == ("[system|Be helpful.][user|", SENTENCE)


def test_words_of_the_template_may_be_in_the_sentence():
    assert read(DEFAULT_SYSTEM, "user") == ("[system|Be helpful.][user|", "user")
    assert read(DEFAULT_SYSTEM, "]") == ("[system|Be helpful.][user|", "]")


def test_blanks_around_it_are_left_out():
    assert read(TRIMS, f"  {SENTENCE} ") == read(TRIMS) == ("(", SENTENCE)


@pytest.mark.parametrize("template", [None, ""])
def test_without_a_template_it_is_plain_text(template):
    opening, sentence = read(template)
    assert sentence == SENTENCE
    assert opening == tiny.tokenizer().decode(tiny.tokenizer()("")["input_ids"])


def test_both_together_are_the_tokens_of_the_text():
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = DEFAULT_SYSTEM
    tokens = instruction_tokens(tokenizer, SENTENCE)
    text = f"[system|Be helpful.][user|{SENTENCE}"
    assert [*tokens.opening, *tokens.sentence] == tokenizer(text, add_special_tokens=False)[
        "input_ids"
    ]


def test_a_token_across_the_edge_belongs_to_the_sentence():
    class Pairs:
        """Two characters a token."""

        chat_template = None

        def __call__(self, text, **options):
            text = "<b>" + text
            return {"input_ids": [text[at : at + 2] for at in range(0, len(text), 2)]}

    assert instruction_tokens(Pairs(), "Hey") == (("<b",), (">H", "ey"))


@pytest.mark.parametrize(
    "template", ["{{ raise_exception('never') }}", "Hello", "{{ nothing.at }}"]
)
def test_a_template_that_renders_no_turn_is_refused_with_the_flag_that_gives_one(template):
    with pytest.raises(ValueError, match=f"renders no user's turn with '{SENTENCE}'.*FILE"):
        read(template)


def test_a_template_that_changes_the_sentence_is_refused():
    with pytest.raises(ValueError, match="renders no user's turn"):
        read("{{ messages[0]['content'] | upper }}")


@pytest.mark.parametrize("length", range(1, 10))
@pytest.mark.parametrize("block_size", [1, 4, 16])
def test_the_prefix_has_it_twice_and_fills_whole_blocks(length, block_size):
    prefix_length = InstructionTokens((1, 2), tuple(range(length))).prefix_length(block_size)
    assert prefix_length % block_size == 0
    assert 0 <= prefix_length - 2 * length < block_size


@pytest.mark.parametrize(
    ("opening", "sentence", "places"), [(0, 3, 6), (2, 3, 6), (3, 3, 6), (4, 3, 7), (20, 1, 21)]
)
def test_it_has_to_fit_when_it_is_read_and_when_it_is_kept(opening, sentence, places):
    assert InstructionTokens((1,) * opening, (2,) * sentence).num_places == places
