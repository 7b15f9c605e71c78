#!/bin/sh
# install_engine.sh SOURCE FOLDER: a virtual environment in FOLDER with inrtomo from SOURCE (checkout, wheel, requirement).
# PYTHON names the interpreter to use, TORCH the requirement for torch ("" to leave it to the engine's own).
set -eu
source=${1:-}
folder=${2:?give the folder of the environment}
fail() { printf 'install_engine: %s\n' "$*" >&2; exit 1; }
[ -n "$source" ] || fail "what to install is not known; set INR_SOURCE in scipion.conf to a checkout of inrtomo or a wheel of it"

unset PYTHONPATH PYTHONHOME || true
python=
for candidate in ${PYTHON:-python3.12 python3.11 python3.13 python3.10 python3}; do
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info)' 2>/dev/null; then
        python=$candidate
        break
    fi
done
[ -n "$python" ] || fail "no Python 3.10 or newer with the venv module found; install one or name it: PYTHON=/path/to/python3"

"$python" -m venv "$folder"
pip() { "$folder/bin/python" -m pip install --disable-pip-version-check "$@"; }
# torch without CUDA where there is no NVIDIA GPU: the usual wheel brings several GB of libraries nobody would use
torch=${TORCH-torch>=2.6}
if [ -n "$torch" ] && ! command -v nvidia-smi >/dev/null 2>&1; then
    pip --index-url https://download.pytorch.org/whl/cpu "$torch" || echo "no CPU build of torch to be had; taking the usual one"
fi
pip "$source"
"$folder/bin/inr-align" --version
