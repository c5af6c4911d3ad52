#!/usr/bin/env bash
# The whole job in one command: environment, data, the five notebooks, figures and report.
#
#   ./run_all.sh                  on the embedded sample: build/report.html and build/report.pdf
#   ./run_all.sh --data DIR|kaggle --profile studio-lab|full|few-images [--run NAME] [-p NAME VALUE]…
#                [--only 04,05] [--no-pdf]
#   ./run_all.sh setup            the environment alone
#   ./run_all.sh test             the test suite
#
# A second call skips what is done and goes on where the last one broke off.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
unset PYTHONDONTWRITEBYTECODE # without bytecode files every import is slow
export PYTHONPATH=$here${PYTHONPATH:+:$PYTHONPATH} # this checkout's code, whatever else is installed

fail() {
  echo "run_all.sh: $1" >&2
  exit "${2:-1}"
}

find_python() { # prints a Python 3.11 or newer
  for candidate in python3 python3.14 python3.13 python3.12 python3.11 python; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  fail "no Python 3.11 or newer found; install one, or uv, which brings its own" 2
}

make_venv() {
  local venv=$here/.venv
  if command -v uv >/dev/null; then
    [ -x "$venv/bin/python" ] || uv venv --quiet --python '>=3.11' "$venv"
    uv pip install --quiet --python "$venv/bin/python" -e "$here[test]"
  else
    [ -x "$venv/bin/python" ] || "$(find_python)" -m venv "$venv" ||
      fail "cannot make $venv; on Debian and Ubuntu: apt install python3-venv (or install uv)" 2
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -e "$here[test]"
  fi
}

setup() { # sets $python: the active environment where it holds dfd_utils, else .venv
  local active=${CONDA_PREFIX:-${VIRTUAL_ENV:-}}
  if [ -n "$active" ] && "$active/bin/python" -c 'import dfd_utils, torch' 2>/dev/null; then
    python=$active/bin/python
    return
  fi
  python=$here/.venv/bin/python
  local stamp=$here/.venv/.complete wanted
  wanted=$(cksum <"$here/pyproject.toml")
  if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "environment: installing into .venv (PyTorch is large: 1 to 5 minutes) …"
    local start=$SECONDS
    make_venv || fail "the installation failed; see the lines above, then call again"
    echo "$wanted" >"$stamp"
    echo "environment: done in $((SECONDS - start)) s"
  fi
}

case ${1:-} in
-h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}" ;;
setup)
  setup
  echo "environment: $python"
  ;;
test)
  setup
  shift
  cd "$here"
  "$python" -c 'import importlinter, pytest, ruff, statsmodels, torchmetrics' 2>/dev/null ||
    fail "the active environment lacks the test packages: pip install -e '.[test]'" 2
  "$python" -m ruff format --check --quiet . || fail "formatting: run ruff format"
  "$python" -m ruff check --quiet . || fail "lint: run ruff check"
  "${python%/*}/lint-imports" --no-cache >/dev/null || fail "import order: run lint-imports"
  exec "$python" -m pytest "$@"
  ;;
*)
  setup
  exec "$python" -m dfd_utils run "$@"
  ;;
esac
