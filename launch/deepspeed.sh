#!/usr/bin/env bash
# Train with the deepspeed launcher. Every argument is a Hydra override:  launch/deepspeed.sh selection=mads run_dir=runs/a
#
#   PROCESSES   processes on each node; default: one per GPU, or one
#   HOSTFILE    several nodes: a file with lines "host slots=N". From the first node over passwordless ssh (needs pdsh) ...
#   NODE_RANK   ... or without ssh: the same command on every node, with its place 0, 1, ... in the host file, and MASTER_ADDR
#   MASTER_ADDR the first node's address; several nodes only
#   MASTER_PORT default 29500
#   PYTHON      the interpreter that has mads; default python3
set -euo pipefail

arguments=(--module --master_port "${MASTER_PORT:-29500}" --log_level warning)
if [[ -n ${HOSTFILE:-} ]]; then
  arguments+=(--hostfile "$HOSTFILE")
  [[ -z ${MASTER_ADDR:-} ]] || arguments+=(--master_addr "$MASTER_ADDR")
  if [[ -n ${NODE_RANK:-} ]]; then
    arguments+=(--no_ssh --node_rank "$NODE_RANK" --master_addr "${MASTER_ADDR:?is the address of the first node}")
  fi
fi
# Without this option the launcher takes every GPU; on a CPU it starts one process.
[[ -z ${PROCESSES:-} ]] || arguments+=(--num_accelerators "$PROCESSES")

command=("${PYTHON:-python3}" -m deepspeed.launcher.runner "${arguments[@]}" mads.train "$@")
if [[ -n ${HOSTFILE:-} && -z ${NODE_RANK:-} ]]; then exec "${command[@]}"; fi

# Without ssh deepspeed's first process dies of a signal and leaves the run to itself: what this script is told goes on to the
# second one, which ends the ranks by SIGTERM (they save) and, 30 s later, by SIGKILL.
set -m
"${command[@]}" &
runner=$!
trap 'read -r -a below <"/proc/$runner/task/$runner/children" || true; kill -TERM "${below[@]:-$runner}"' TERM INT HUP USR1
while kill -0 "$runner" 2>/dev/null; do wait "$runner" || true; done
wait "$runner"
