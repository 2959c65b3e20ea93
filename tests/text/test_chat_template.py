"""Where a base's chat template comes from, and the message where there is none."""

from __future__ import annotations

import pytest
import tiny
import transformers

from pad_vllm.text.chat_template import (
    chat_token_ids,
    load_chat_tokenizer,
    read_chat_template,
    with_chat_template,
)

TEMPLATE = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
TURN = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def folder(tmp_path):
    """A tokenizer without a template, as a pretrained base has it."""
    plain = tiny.tokenizer()
    plain.chat_template = None
    plain.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def test_a_template_is_a_files_name_or_the_text_itself(tmp_path):
    file = tmp_path / "template.jinja"
    file.write_text(TEMPLATE, "utf-8")
    assert read_chat_template(str(file), "here") == read_chat_template(TEMPLATE, "here") == TEMPLATE


@pytest.mark.parametrize("given", ["/no/such/file", "", "bytes.jinja"])
def test_what_is_neither_is_refused_with_the_place_it_was_given_at(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bytes.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=f"--here is '{given}'.* neither a template nor a file"):
        read_chat_template(given, "--here")


def test_a_base_without_a_template_is_refused_by_name_with_the_flag_that_gives_one(folder):
    with pytest.raises(ValueError, match="org/base has no chat template.*--chat-template FILE"):
        load_chat_tokenizer(folder, "org/base", None)


def test_a_given_template_stands_before_the_bases_own(folder):
    assert chat_token_ids(
        load_chat_tokenizer(folder, "b", TEMPLATE), TURN
    ) == tiny.tokenizer().encode("[Hi]")
    replaced = with_chat_template(tiny.tokenizer(), "b", TEMPLATE)
    assert chat_token_ids(replaced, TURN) == tiny.tokenizer().encode("[Hi]")
    own = with_chat_template(tiny.tokenizer(), "b", None)
    assert chat_token_ids(own, TURN) == tiny.tokenizer().encode("<user>Hi<assistant>")


@pytest.mark.parametrize("template", ["{% if %}", "{{ raise_exception('never') }}"])
def test_a_template_that_takes_no_conversation_is_refused_before_any_is_put_to_it(template):
    with pytest.raises(ValueError, match="the chat template of org/base takes no user's turn"):
        with_chat_template(tiny.tokenizer(), "org/base", template)


def test_a_template_that_leaves_out_what_the_user_says_is_refused():
    with pytest.raises(ValueError, match="the chat template of org/base leaves out what the user"):
        with_chat_template(tiny.tokenizer(), "org/base", "{{ bos_token }}")


@pytest.mark.parametrize(
    "expression",
    [
        "''.__class__.__mro__[1].__subclasses__()",
        "cycler.__init__.__globals__.os.system('true')",
        "messages.append(1)",
        "range(10**9)|list",
    ],
)
def test_a_template_reaches_nothing_of_python(folder, expression):
    template = TEMPLATE + "{{ " + expression + " }}"
    with pytest.raises((ValueError, OverflowError)):
        load_chat_tokenizer(folder, "base", template)


def test_a_tokenizer_is_read_without_code_of_its_own(folder, monkeypatch):
    given = []
    read = transformers.AutoTokenizer.from_pretrained

    def from_pretrained(path, **more):
        given.append(more)
        return read(path, **more)

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", from_pretrained)
    load_chat_tokenizer(folder, "org/base", TEMPLATE)
    assert given == [{"trust_remote_code": False}]


class Copied:
    """As vLLM's: it works on a copy, made before it was given a template."""

    chat_template = None

    def apply_chat_template(self, messages, chat_template=None, **_):
        if chat_template is None:
            raise ValueError("tokenizer.chat_template is not set")
        return chat_template.replace("X", messages[-1]["content"])


def test_a_template_reaches_a_tokenizer_that_works_on_a_copy():
    assert with_chat_template(Copied(), "base", "Q: X").chat_template == "Q: X"
