#!/usr/bin/env bash
# Train with torchrun. Every argument is a Hydra override:  launch/torchrun.sh selection=mads run_dir=runs/a
#
#   PROCESSES    processes on each node; default: one per GPU, or one
#   NODES        number of nodes; default 1. Start the same command on each of them, with
#   MASTER_ADDR  the first node's address,
#   MASTER_PORT  a free port there (default 29500), and
#   JOB_ID       any word that the nodes share (default mads)
#   PYTHON       the interpreter that has mads; default python3
set -euo pipefail

if [[ ${NODES:-1} -gt 1 ]]; then
  endpoint="${MASTER_ADDR:?is the address of the first node}:${MASTER_PORT:-29500}"
  rendezvous=(--nnodes "$NODES" --rdzv-backend c10d --rdzv-id "${JOB_ID:-mads}" --rdzv-endpoint "$endpoint")
else
  rendezvous=(--standalone)
fi

# "auto" counts the CPUs where there is no GPU, "gpu" fails there: one process is the safe default.
if [[ -z ${PROCESSES:-} ]]; then
  PROCESSES=$("${PYTHON:-python3}" -c 'import torch; print(max(1, torch.cuda.device_count()))')
fi

exec "${PYTHON:-python3}" -m torch.distributed.run "${rendezvous[@]}" --nproc-per-node "$PROCESSES" --module mads.train "$@"
