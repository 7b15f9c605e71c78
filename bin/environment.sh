# Shared by bin/quickstart and bin/test: the virtual environment .venv of this checkout. Source it in the root.
# PYTHON names the interpreter to use, TORCH_SPEC the torch to install.

venv=.venv

say() { printf '%s\n' "$*"; }
fail() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; exit 1; }

# PYTHON, or else the first one that is new enough and can make virtual environments.
find_python() {
    if [ -n "${PYTHON:-}" ]; then
        set -- "$PYTHON"
    else
        set -- python3 python3.12 python3.11 python3.13 python3.10 python
    fi
    for candidate; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info)' 2>/dev/null; then
            say "$candidate"
            return
        fi
    done
    [ -z "${PYTHON:-}" ] || fail "$PYTHON is not a Python 3.10 or newer with the venv module; name another"
    fail "no Python 3.10 or newer with the venv module found; install one (Debian, Ubuntu: apt install python3 python3-venv) or name it: PYTHON=/path/to/python3 bin/$(basename "$0")"
}

make_venv() {
    if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        python=$(find_python) || exit 1
        say "making $venv with $("$python" --version) ($(command -v "$python"))"
        rm -rf "$venv"
        "$python" -m venv "$venv" || fail "$python could not make a virtual environment in $PWD/$venv"
    fi
}

pip_install() { "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }

# torch without CUDA where there is no NVIDIA GPU: the usual wheel brings several GB of libraries nobody would use.
install_torch() {
    if "$venv/bin/python" -c 'import torch, sys; sys.exit(tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6))' 2>/dev/null; then
        return
    fi
    spec=${TORCH_SPEC:-torch==2.13.0}
    say "installing $spec"
    if [ "$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null 2>&1; then
        case $spec in
            *==*+*) ;;
            # a wheel named so can only come from a local folder or index that pip is configured with
            *==*) pip_install "$spec+cpu" 2>/dev/null && return ;;
        esac
        pip_install --retries 1 --timeout 20 --index-url https://download.pytorch.org/whl/cpu "$spec" 2>/dev/null && return
        say "no CPU build of $spec found; taking the package index's own, which may be large"
    fi
    pip_install "$spec" 2>/dev/null && return
    say "no $spec for this Python; taking any torch >= 2.6"
    pip_install 'torch>=2.6' || fail "torch could not be installed; see the message above, or install it into $venv by hand"
}

# install_package EXTRAS: the checkout, editable, with what it needs; nothing when that is up to date.
install_package() {
    make_venv
    stamp=$venv/installed${1:+-$1}
    wanted=$(cat setup.cfg pyproject.toml | cksum)
    if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
        install_torch
        say "installing inrtomo${1:+ and its $1 tools} into $venv"
        pip_install --editable ".${1:+[$1]}" || fail "installing failed; see the message above"
        say "$wanted" >"$stamp"
    fi
}
