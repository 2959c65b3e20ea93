"""An instruction's tokens: two turns of the chat template, a line feed, whole blocks."""

from __future__ import annotations

import pytest
import tiny

from pad_vllm.text.instruction_tokens import fill_blocks, instruction_token_ids

SENTENCE = "Answer in a funny way"
TURNS = "{% for m in messages %}[{{ m['role'] }}|{{ m['content'] }}]{% endfor %}"
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    + TURNS
)
TRIMS = "{% for m in messages %}({{ m['content'] | trim }}){% endfor %}"


def read(template, sentence=SENTENCE):
    """The text whose tokens an instruction has."""
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = template
    return tokenizer.decode(instruction_token_ids(tokenizer, sentence))


@pytest.mark.parametrize("template", [TURNS, NO_SYSTEM])
def test_it_is_said_by_a_user_and_agreed_to_and_then_a_line_feed(template):
    assert read(template) == f"[user|{SENTENCE}][assistant|Sure!]\n"


def test_there_is_no_turn_of_the_answer():
    assert read(tiny.tokenizer().chat_template) == f"<user>{SENTENCE}<assistant>Sure!\n"


def test_blanks_around_it_may_be_trimmed():
    assert read(TRIMS, f"  {SENTENCE} ") == f"({SENTENCE})(Sure!)\n"


@pytest.mark.parametrize("template", [None, ""])
def test_without_a_template_it_is_plain_text(template):
    assert read(template) == f"{SENTENCE}\n\n\n"


@pytest.mark.parametrize(
    "template", ["{{ raise_exception('never') }}", "Hello", "{{ nothing.at }}"]
)
def test_a_template_that_renders_no_turn_is_refused_with_the_flag_that_gives_one(template):
    with pytest.raises(ValueError, match=f"renders no conversation with '{SENTENCE}'.*FILE"):
        read(template)


def test_no_special_token_is_added_to_those_of_the_template():
    tokenizer = tiny.tokenizer()
    asked = []

    class Recording:
        chat_template = None

        def __call__(self, text, **options):
            asked.append(options)
            return tokenizer(text, **options)

    instruction_token_ids(Recording(), SENTENCE)
    assert asked == [{"add_special_tokens": False}] * 2


def test_the_last_token_alone_is_a_line_feed_also_where_two_would_be_one():
    class Pairs:
        """Knows a token for two line feeds, as many tokenizers do."""

        chat_template = None

        def __call__(self, text, add_special_tokens):
            return {"input_ids": [99 if part else 10 for part in text.split("\n")[:-1]]}

    assert instruction_token_ids(Pairs(), SENTENCE)[-1] == 10


@pytest.mark.parametrize("length", range(1, 10))
@pytest.mark.parametrize("block_size", [1, 4, 16])
def test_blocks_are_filled_by_the_last_token_alone(length, block_size):
    tokens = list(range(100, 100 + length))
    filled = fill_blocks(tokens, block_size)
    assert isinstance(filled, tuple)
    assert len(filled) % block_size == 0
    assert 0 <= len(filled) - length < block_size
    assert list(filled[:length]) == tokens
    assert set(filled[length:]) <= {tokens[-1]}
    assert fill_blocks(filled, block_size) == filled
