#!/bin/sh
# Makes .venv with clip-pipe and its pinned requirements in it. A second call finds nothing to do.
#
#   BACKEND=auto|cpu|gpu   which pins: requirements/cpu.txt (torch without CUDA) or gpu.txt
#   PYTHON=python3.11      which interpreter (3.11 or newer)
#
# uv is used from PATH, or put into .uv/ of this folder. uv does not read pip's own configuration, so
# a `find-links` set there (a folder of wheels) is handed on to it.
set -eu
cd "$(dirname "$0")/.."

BACKEND="${BACKEND:-auto}"
python="${PYTHON:-}"
if [ -z "$python" ]; then
    for name in python3.11 python3.12 python3.13 python3.14 python3; do
        if command -v "$name" >/dev/null 2>&1 && "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            python="$name"
            break
        fi
    done
fi
[ -n "$python" ] || { echo "error: no Python 3.11 or newer found. hint: install one, or set PYTHON=/path/to/python3.11" >&2; exit 2; }

stamp=".venv/.clip-pipe-setup"
wanted="$(cat requirements/cpu.txt requirements/gpu.txt pyproject.toml tools/setup.sh | cksum) $BACKEND"
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
    exit 0
fi

if command -v uv >/dev/null 2>&1; then
    uv="uv"
else
    if [ ! -x .uv/bin/uv ]; then
        echo "setup: putting uv into .uv/" >&2
        "$python" -m venv .uv
        .uv/bin/python -m pip install --quiet --disable-pip-version-check uv
    fi
    uv=".uv/bin/uv"
fi

links="${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}"
[ -n "$links" ] || links="$("$python" -m pip config get global.find-links 2>/dev/null || true)"
[ -z "$links" ] || export UV_FIND_LINKS="$links"

[ -x .venv/bin/python ] || "$uv" venv --quiet --python "$python" .venv

install() { "$uv" pip sync --quiet --python .venv/bin/python --require-hashes "$@"; }
install_cpu() {
    if [ -n "$links" ]; then install requirements/cpu.txt; else install --torch-backend cpu requirements/cpu.txt; fi
}

case "$BACKEND" in
    cpu) install_cpu ;;
    gpu) install requirements/gpu.txt ;;
    auto)
        if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi >/dev/null 2>&1; then
            install requirements/gpu.txt
        elif ! install_cpu 2>.venv/cpu-install.log; then
            echo "setup: no CPU build of the pinned torch for this Python here (.venv/cpu-install.log); taking the larger default build" >&2
            install requirements/gpu.txt
        fi
        ;;
    *) echo "error: BACKEND=$BACKEND. hint: auto, cpu or gpu" >&2; exit 2 ;;
esac
"$uv" pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation --editable .
printf '%s' "$wanted" > "$stamp"
echo "setup: .venv is ready" >&2
