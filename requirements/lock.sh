#!/bin/sh
# Writes the pins from pyproject.toml: one version of everything, for Python 3.11 to 3.13.
# uv does not read pip's configuration; give it the same links and indexes with UV_FIND_LINKS and
# UV_INDEX where that matters.
set -eu
cd "$(dirname "$0")"
uv=${1:-uv}
pin() { "$uv" pip compile -q --universal --python-version 3.11 --no-header --no-annotate "$@" ../pyproject.toml; }
not_cpu="^(torch|torchvision|torchaudio|torchcodec|triton|nvidia-[^m].*|cuda-.*)=="
pin --extra llm-cpu --extra images --extra training --extra evaluation --extra storyboard --extra vetting --extra loadtests --extra dev --override overrides.txt \
  | grep -vE "$not_cpu" > cpu.txt
unset UV_FIND_LINKS
pin --extra llm-gpu --extra images --extra training --extra evaluation --extra storyboard --extra vetting > gpu.txt
pin --extra images --constraint gpu.txt > images.txt
pin --extra evaluation --constraint cpu.txt > evaluation.txt
pin --extra storyboard --constraint cpu.txt > storyboard.txt
pin --extra vetting --constraint cpu.txt > vetting.txt
pin --constraint cpu.txt > gateway.txt
