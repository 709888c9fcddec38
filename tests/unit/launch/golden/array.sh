#!/usr/bin/env bash
# Written by mads submit. A job of this script that is submitted again goes on from the newest checkpoint.

#SBATCH --job-name=mads
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --no-requeue
#SBATCH --array=0-1
#SBATCH --chdir=/where
#SBATCH --output="/where/it's/slurm/%x-%A_%a.log"
#SBATCH --open-mode=append

# Not those of the shell that submitted.
unset RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT
# This shell outlives what it is told, to see how the run ends.
trap : TERM USR1

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

case $SLURM_ARRAY_TASK_ID in
  0) overrides+=(train.seed=1 'run_dir='"'"'/where/it\'"'"'s/task-0'"'"'') ;;
  1) overrides+=(train.seed=2 optim.lr=1e-3 'run_dir='"'"'/where/it\'"'"'s/task-1'"'"'') ;;
esac

# One task is one process of the run; Slurm's variables tell it its rank.
srun --kill-on-bad-exit=0 --wait=60 --label \
  python3 -u -m mads.train "${overrides[@]}"
