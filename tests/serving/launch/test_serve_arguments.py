"""The command line handed to vLLM: PAD's flags, the user's, and what happens where they meet."""

import json

import pytest

from pad_vllm.config import LOGITS_PROCESSOR
from pad_vllm.serving.launch.serve_arguments import num_ranks, serve_argv


def config_of(argv):
    assert argv.count("--additional-config") == 1
    return json.loads(argv[argv.index("--additional-config") + 1])


def test_pad_is_switched_on_by_three_flags():
    assert serve_argv("base", "/adapter") == [
        "serve",
        "base",
        "--load-format",
        "pad",
        "--logits-processors",
        LOGITS_PROCESSOR,
        "--additional-config",
        '{"pad": {"adapter": "/adapter"}}',
    ]


def test_other_flags_pass_through_in_their_order():
    extra = ["-tp", "2", "--port=8001", "--lora-modules", "a=b", "c=d", "-O3", "--enforce-eager"]

    assert serve_argv("base", "/adapter", extra)[-len(extra) :] == extra


def test_the_underlying_load_format_and_the_mismatch_go_to_pads_section():
    argv = serve_argv("base", "/adapter", load_format="dummy", allow_backbone_mismatch=True)

    assert config_of(argv)["pad"] == {
        "adapter": "/adapter",
        "allow_backbone_mismatch": True,
        "load_format": "dummy",
    }


@pytest.mark.parametrize(
    "given",
    [
        ["--load-format", "dummy"],
        ["--load-format=dummy"],
        ["--load_format", "dummy"],
        ["--load-form", "dummy"],
    ],
)
def test_another_load_format_is_sent_to_its_own_flag(given):
    with pytest.raises(ValueError, match="--load-format dummy: .*say --pad-load-format dummy"):
        serve_argv("base", "/adapter", given)


def test_the_load_format_pad_may_be_said_again():
    argv = serve_argv("base", "/adapter", ["--load-format=pad", "--seed", "1"])

    assert argv.count("--load-format") == 1
    assert argv[-2:] == ["--seed", "1"]


@pytest.mark.parametrize(
    "given",
    [
        ["--additional-config", '{"pad": {"max_beta": 5}, "other": {"x": [1]}}'],
        ['--additional-config={"pad": {"max_beta": 5}, "other": {"x": [1]}}'],
        ["--additional_config", '{"pad": {"max_beta": 5}}', "--additional-config.other.x=[1]"],
        ["--additional-config.pad.max_beta", "5", "--additional-config.other.x", "[1]"],
    ],
)
def test_the_users_additional_config_is_kept_in_every_spelling(given):
    assert config_of(serve_argv("base", "/adapter", given)) == {
        "other": {"x": [1]},
        "pad": {"adapter": "/adapter", "max_beta": 5},
    }


def test_a_dotted_value_that_is_no_json_is_a_string():
    argv = serve_argv("base", "/adapter", ["--additional-config.pad.load_format", "dummy"])

    assert config_of(argv)["pad"]["load_format"] == "dummy"


def test_saying_the_same_twice_is_no_contradiction():
    argv = serve_argv("base", "/a", ["--additional-config.pad.adapter", "/a"])

    assert config_of(argv) == {"pad": {"adapter": "/a"}}


def test_two_adapters_are_refused_naming_both():
    with pytest.raises(
        ValueError, match=r"pad\.adapter is given twice: '/b', and '/a' by the flags"
    ):
        serve_argv("base", "/a", ["--additional-config", '{"pad": {"adapter": "/b"}}'])


@pytest.mark.parametrize("text", ["[1]", "not json", "3"])
def test_an_additional_config_that_is_no_object_is_refused(text):
    with pytest.raises(ValueError, match="not a JSON object. Accepted: "):
        serve_argv("base", "/adapter", ["--additional-config", text])


@pytest.mark.parametrize("extra", [["--additional-config"], ["--additional-config", "--seed", "1"]])
def test_a_flag_without_its_value_is_refused(extra):
    with pytest.raises(ValueError, match="--additional-config has no value"):
        serve_argv("base", "/adapter", extra)


def test_a_setting_that_pad_does_not_know_is_refused_before_vllm_starts():
    with pytest.raises(ValueError, match="max_bta"):
        serve_argv("base", "/adapter", ["--additional-config.pad.max_bta", "5"])


def test_the_users_logits_processors_come_after_pads_and_pads_only_once():
    extra = [
        "--logits-processors",
        "a:A",
        LOGITS_PROCESSOR,
        "--logits-processors=b:B",
        "--seed",
        "1",
    ]
    argv = serve_argv("base", "/adapter", extra)

    assert argv.count("--logits-processors") == 1
    start = argv.index("--logits-processors") + 1
    assert argv[start : start + 4] == [LOGITS_PROCESSOR, "a:A", "b:B", "--additional-config"]


def test_a_fetched_model_is_served_under_its_short_name_unless_told_otherwise():
    named = serve_argv("/cache/tiny", "/adapter", served_name="tiny")
    told = serve_argv("/cache/tiny", "/adapter", ["--served_model_name", "x"], served_name="tiny")

    assert named[-2:] == ["--served-model-name", "tiny"]
    assert "tiny" not in told


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], 1),
        (["-tp", "2", "--max-num-seqs", "8"], 2),
        (["--tensor-parallel-size=2", "--data_parallel_size", "3"], 6),
        (["-tp", "many", "-pp", "2"], 2),
    ],
)
def test_ranks_are_counted(flags, expected):
    assert num_ranks(flags) == expected


def test_a_default_is_said_unless_the_user_says_something():
    defaults = {"--block-size": "32"}
    assert serve_argv("base", "/adapter", defaults=defaults)[-2:] == ["--block-size", "32"]
    typed = serve_argv("base", "/adapter", ["--block-size=16"], defaults=defaults)
    assert [flag for flag in typed if "block-size" in flag] == ["--block-size=16"]
    assert "--block-size" not in serve_argv("base", "/adapter")
