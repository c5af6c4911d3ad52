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
here=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")" && pwd -P) # also through a link
unset PYTHONDONTWRITEBYTECODE # without bytecode files every import is slow
export PYTHONPATH=$here${PYTHONPATH:+:$PYTHONPATH} # this checkout's code, whatever else is installed

fail() {
  echo "run_all.sh: $1" >&2
  exit "${2:-1}"
}

# Ends with the reason if an environment lacks what pyproject.toml lists or does not use this checkout.
check='
import sys
if sys.version_info < (3, 11):
    sys.exit("its Python is older than 3.11")
import packaging.requirements, pathlib, tomllib
from importlib.metadata import version
import dfd_utils
if pathlib.Path(dfd_utils.__file__).resolve().parents[1] != pathlib.Path.cwd():
    sys.exit(f"it uses {dfd_utils.__file__}")
version("dfd-utils") # a run notes it
for line in tomllib.loads(pathlib.Path("pyproject.toml").read_text())["project"]["dependencies"]:
    wanted = packaging.requirements.Requirement(line)
    if not wanted.specifier.contains(version(wanted.name), prereleases=True):
        sys.exit(f"it has {wanted.name} {version(wanted.name)}, not {wanted.specifier}")
import papermill, torch, accelerate # accelerate uses torch
'

runs() { # whether a Python runs and is new enough
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() { # prints a Python 3.11 or newer
  for candidate in python3 python3.14 python3.13 python3.12 python3.11 python; do
    if runs "$candidate"; then
      command -v "$candidate"
      return
    fi
  done
  fail "no Python 3.11 or newer found; install one, or uv, which brings its own" 2
}

sizes() { # of what make_venv installs
  if command -v uv >/dev/null; then
    echo "about 3 GB to download and 7 GB on disk for CUDA, 0.6 and 2 GB for the CPU alone"
  else
    echo "about 3 GB to download and 7 GB on disk (less for the CPU alone: see README.md)"
  fi
}

make_venv() {
  local venv=$here/.venv uv base
  uv=$(command -v uv || true)
  if ! { runs "$venv/bin/python" && { [ -n "$uv" ] || "$venv/bin/python" -m pip --version; }; } &>/dev/null; then
    rm -rf "$venv" # absent, half-made or of a Python that is gone
    if [ -n "$uv" ]; then
      uv venv --quiet --python '>=3.11' "$venv" || return
    else
      base=$(find_python) || exit
      "$base" -m venv "$venv" ||
        fail "cannot make $venv; on Debian and Ubuntu: apt install python3-venv (or install uv)" 2
    fi
  fi
  if [ -z "$uv" ]; then
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -e "$here[test]"
    return
  fi
  set -- pip install --quiet --python "$venv/bin/python" -e "$here[test]"
  if [ -n "${DFD_TORCH_BACKEND:-}" ]; then
    uv "$@" --torch-backend "$DFD_TORCH_BACKEND"
  elif ! uv "$@" --torch-backend auto 2>/dev/null; then
    echo "environment: no answer from PyTorch's own index: installing PyPI's build, with CUDA …"
    uv "$@"
  fi
}

setup() { # sets $python: an active environment that can do the job, else .venv
  local prefix reason reasons=() stamp=$here/.venv/.complete wanted
  local checked=${DFD_OUTPUT_DIR:-$here}/build/.environment key # the check takes seconds
  for prefix in "${VIRTUAL_ENV:-}" "${CONDA_PREFIX:-}"; do
    python=$prefix/bin/python
    [ -n "$prefix" ] && [ "$prefix" != "$here/.venv" ] || continue
    key="$prefix $PYTHONPATH $(cksum <"$here/pyproject.toml")"
    # What is installed; a file that is missing says so in the key.
    key+=" $(stat -c %y "$python" "$prefix"/lib/python3*/site-packages 2>&1 || true)"
    [ "$(cat "$checked" 2>/dev/null)" != "$key" ] || return 0
    if reason=$(cd "$here" && "$python" -c "$check" 2>&1); then
      mkdir -p "${checked%/*}" 2>/dev/null && echo "$key" 2>/dev/null >"$checked" || true
      return
    fi
    reasons+=("environment: $prefix is not used: ${reason##*$'\n'}")
  done
  python=$here/.venv/bin/python
  wanted=$(cksum <"$here/pyproject.toml")
  if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ] || ! runs "$python"; then
    [ ${#reasons[@]} = 0 ] || printf '%s\n' "${reasons[@]}"
    echo "environment: installing into .venv: $(sizes); 1 to 5 minutes …"
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
  lacks=$("$python" -c 'import importlinter, onnxscript, pytest, ruff, statsmodels, torchmetrics' 2>&1) ||
    fail "$python lacks test packages (${lacks##*$'\n'}); in this environment: pip install -e '.[test]'" 2
  "$python" -m ruff format --check --quiet . || fail "formatting: run ruff format"
  "$python" -m ruff check --quiet . || fail "lint: run ruff check"
  "${python%/*}/lint-imports" --no-cache >/dev/null || fail "import order: run lint-imports"
  exec "$python" -m pytest "$@"
  ;;
*)
  setup
  exec "$python" -P -m dfd_utils run "$@"
  ;;
esac
