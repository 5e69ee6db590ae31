#!/usr/bin/env bash
# Trains on a GPU, puts the weights into the package and measures them. Usage: tests/microworld/gpu.sh OUT [SECONDS x4]
# A training that fails with CUDA graphs goes on without them, from the last finished part.
set -u
cd "$(dirname "$0")/../.."
out=$1
shift
parts=$(mktemp -d)
seconds=("$@")
[ $# = 4 ] || seconds=(45 150 12 30)
export PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=2
train() { python3 -m tests.microworld.train "$parts" --out "$out/microworld.safetensors" --seconds "${seconds[@]}" "$@"; }
train || train --no-graph
cp "$parts/log.txt" "$out/"
[ -f "$out/microworld.safetensors" ] || exit 1
cp "$out/microworld.safetensors" saferegion_lab/microworld/data/microworld.safetensors
python3 -m tests.microworld.measure --device cuda --scenes 2000 --sheet "$out/sheet.png" >"$out/measure.md"
head -30 "$out/measure.md"
