#!/bin/bash
# A training on Slurm: a task for each worker. The arguments are those of `capfilt train`:
#   sbatch deploy/slurm-train.sh manifest.yaml --name blip
# With GPUs, add --gpus-per-task=1. A job that is cut off continues from its last checkpoint.
#SBATCH --job-name=capfilt-train
#SBATCH --nodes=1
#SBATCH --ntasks=2
#SBATCH --cpus-per-task=1
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

# The tasks meet at the first node, at a port of this job.
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export MASTER_ADDR MASTER_PORT

srun --kill-on-bad-exit=1 capfilt train "$@"
