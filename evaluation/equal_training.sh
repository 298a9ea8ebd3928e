#!/usr/bin/env bash
# Weights after as much training as evaluation/keyhole.pth had, 600 seconds on one thread, and their scores.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1
mkdir -p runs
train=(.venv/bin/python -m training.train --seed 1)
"${train[@]}" --means --batch 4 --pool 64 --refresh 2 --rate 0.001 --minutes 3 --out runs/equal-means.pth
"${train[@]}" --courses --batch 8 --pool 128 --refresh 1 --rate 0.001 --minutes 1 --weights runs/equal-means.pth --out runs/equal-courses.pth
"${train[@]}" --simulate --batch 1 --refresh 8 --minutes 6 --weights runs/equal-courses.pth --out runs/equal.pth
.venv/bin/python -m evaluation.benchmark --quick --weights runs/equal.pth
