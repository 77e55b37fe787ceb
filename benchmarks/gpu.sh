#!/usr/bin/env bash
# Everything that wants a CUDA device: the gpu tests, speed on it, and some minutes of training per model.
#
#   benchmarks/gpu.sh OUTPUT [MINUTES] [MODEL ...]
#
# Training starts from models/NAME and writes to OUTPUT/NAME, which replaces models/NAME if quality.py says it is better.
# Every step can be repeated: training resumes if OUTPUT/runs holds the state of an earlier call.
set -euo pipefail
cd "$(dirname "$0")/.."
output=${1:?usage: benchmarks/gpu.sh OUTPUT [MINUTES] [MODEL ...]}
minutes=${2:-8}
shift $(($# < 2 ? $# : 2))
models=("$@")
mkdir -p "$output"
[ ${#models[@]} -gt 0 ] || models=(gp-1d gp-1d-noisy sawtooth)
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1

python -c 'import torch; assert torch.cuda.is_available(), "no CUDA device"; print(torch.cuda.get_device_name())'
python -m pytest -q -m gpu tests
python benchmarks/speed.py --device cuda | tee "$output/speed-gpu.txt"
for model in "${models[@]}"; do
  start=() # of a model that is not shipped yet there are no weights to start from
  [ ! -d "models/$model" ] || start=(--from "models/$model" --learning-rate 3e-3) # at 6e-3 it would first lose what it has learned
  python -m pyro_arbuf.cli train "$model" --output "$output/$model" "${start[@]}" --runs "$output/runs" \
    --batch-size 512 --minutes "$minutes" --auto-resume
done
