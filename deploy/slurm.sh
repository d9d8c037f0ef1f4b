#!/bin/bash
# A run on Slurm: one Ray on the nodes of the job, then the same command as anywhere.
#   sbatch deploy/slurm.sh s3://my-bucket/manifests/pairs.yaml
# Further arguments go to `capfilt run`. A job that is cut off resumes when it is submitted again.
#SBATCH --job-name=capfilt
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
set -euo pipefail

manifest=${1:?the manifest, a file or a URL}
shift

# Others share the network: only who knows the token of this job may speak to its Ray.
export RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(openssl rand -hex 32)
export RAY_AUTH_TOKEN
export RAY_USAGE_STATS_ENABLED=0 NO_ALBUMENTATIONS_UPDATE=1 CAPFILT_LOG=json

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)  # reads all, so that no pipe breaks
port=$((20000 + SLURM_JOB_ID % 20000))
export RAY_ADDRESS="$head:$port"

srun --nodes=1 --ntasks=1 --nodelist="$head" --overlap \
    ray start --head --node-ip-address="$head" --port="$port" \
    --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="$SLURM_GPUS_PER_NODE" \
    --metrics-export-port=8080 --block &
sleep 20
if ((SLURM_JOB_NUM_NODES > 1)); then
    srun --nodes=$((SLURM_JOB_NUM_NODES - 1)) --ntasks=$((SLURM_JOB_NUM_NODES - 1)) \
        --exclude="$head" --overlap \
        ray start --address="$RAY_ADDRESS" \
        --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="$SLURM_GPUS_PER_NODE" \
        --metrics-export-port=8080 --block &
fi

# The nodes join while it runs, and are used as they come.
srun --nodes=1 --ntasks=1 --nodelist="$head" --overlap \
    capfilt run "$manifest" --address "$RAY_ADDRESS" "$@"
