#!/usr/bin/env bash
# Written by mads submit. A job of this script that is submitted again goes on from the newest checkpoint.

#SBATCH --job-name=mads
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --chdir=/where
#SBATCH --output=/where/runs/a/slurm/%x-%j.log
#SBATCH --open-mode=append

# Not those of the shell that submitted.
unset RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT
# This shell outlives what it is told, to see how the run ends.
trap : TERM USR1

export OMP_NUM_THREADS=8

# The address by which Slurm itself reaches the first node: a node's name need not be one that resolves.
if [[ -z ${MASTER_ADDR:-} ]]; then
  read -r first < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
  MASTER_ADDR=$(scontrol --oneliner show node "$first" | grep -o 'NodeAddr=[^ ]*')
  MASTER_ADDR=${MASTER_ADDR#NodeAddr=}
fi
export MASTER_ADDR

overrides=(
  data=prepared
  data.dir=data/mine
  selection=mads
)

# One task is one process of the run; Slurm's variables tell it its rank.
srun --kill-on-bad-exit=0 --wait=60 --label --cpus-per-task=8 \
  python3 -u -m mads.train "${overrides[@]}"
code=$?
# 85: the run was told to leave and has saved. The same job waits for its turn again and goes on from there.
if [[ $code -eq 85 ]]; then
  if [[ ${SLURM_RESTART_COUNT:-0} -ge 100 ]]; then
    echo "mads submit: job $SLURM_JOB_ID was queued again 100 times, which is cluster.requeues; submit it again to go on" >&2
  else
    echo "mads submit: start $((${SLURM_RESTART_COUNT:-0} + 1)) of job $SLURM_JOB_ID has ended; it is queued again"
    scontrol requeue "$SLURM_JOB_ID" || echo 'mads submit: Slurm refused; submit the script again to go on' >&2
  fi
fi
exit "$code"
