#!/bin/sh
# Installs exactly what cpu.txt names into the virtual environment $1.
# torch comes first, as its CPU build: from the indexes and links that pip is configured with, else
# from PyTorch's own CPU index, else whatever PyPI has for this platform. The rest needs no
# resolving (--no-deps), so it is the same everywhere and takes about two minutes.
set -eu
venv=$1
torch=2.13.0
here=$(dirname "$0")
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }

echo "Installing torch $torch (CPU)"
pip install -qqq --no-deps "torch==$torch+cpu" 2>/dev/null \
  || pip install -qqq --no-deps --index-url https://download.pytorch.org/whl/cpu "torch==$torch+cpu" 2>/dev/null \
  || pip install -qq "torch==$torch"
echo "Installing $(grep -c == "$here/cpu.txt") pinned packages (two minutes or so)"
pip install -qq --no-deps -r "$here/cpu.txt"
pip install -qq --no-deps -e "$here/.."
