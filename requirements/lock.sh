#!/bin/sh
# Writes cpu.txt and gpu.txt from pyproject.toml: one version of everything, for Python 3.11-3.13.
# uv does not read pip's configuration; give it the same links and indexes with UV_FIND_LINKS and
# UV_INDEX where that matters.
set -eu
cd "$(dirname "$0")"
uv=${1:-uv}
common="--universal --python-version 3.11 --no-header --no-annotate --extra evaluation --extra gateway"
not_cpu="^(torch|torchvision|torchaudio|torchcodec|triton|nvidia-[^m].*|cuda-.*)=="
$uv pip compile -q $common --extra llm-cpu --extra dev --override overrides.txt ../pyproject.toml \
  | grep -vE "$not_cpu" > cpu.txt
env -u UV_FIND_LINKS $uv pip compile -q $common --extra llm-gpu ../pyproject.toml > gpu.txt
