#!/usr/bin/env bash
# One run over the GPUs of several machines under Slurm: sbatch docs/ranks.sh MOVIES OUTPUT
#SBATCH --job-name=calcium-denoiser
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
set -euo pipefail

# What torch.distributed asks for beside the rank, which each task knows by itself.
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR MASTER_PORT=29500 WORLD_SIZE=$SLURM_NTASKS OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK

# --kill-on-bad-exit: the others would wait for a task that died.
# shellcheck disable=SC2016 # each task's own numbers
srun --kill-on-bad-exit=1 bash -c \
    'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID exec .venv/bin/python process.py --input "$1" --output "$2"' _ "$1" "$2"
