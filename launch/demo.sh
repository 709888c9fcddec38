#!/usr/bin/env bash
# The demo: prepare the embedded corpus, train with two workers, train the random control with the same seed, write the report.
# usage: demo.sh MADS [key=value ...]     MADS is the mads command; the overrides go to every stage.
set -euo pipefail

mads=$1
shift
times=()

stage() {
  local name=$1 start=$SECONDS
  shift
  printf '\n== %s\n' "$name"
  "$@"
  times+=("$(printf '%-40s %5d s' "$name" $((SECONDS - start)))")
}

# Decisions at steps 25, 50, 100, 200: what rewards cost does not shrink with a run as short as this. Not if the caller chooses.
rounds=(selection.first_interval=25 selection.interval=100)
for override in "$@"; do
  if [[ $override == selection[.=]* ]]; then rounds=(); fi
done

stage 'prepare the corpus' "$mads" prepare "$@"
stage 'train, agents choose the data' "$mads" train --workers 2 "${rounds[@]}" "$@" run_dir=runs/mads
stage 'train, random control' "$mads" train --workers 2 "$@" selection=random run_dir=runs/random
stage 'write the report' "$mads" report runs/mads --compare runs/random

printf '\n== wall time\n'
printf '%s\n' "${times[@]}"
printf '\nopen runs/mads/report.html\n'
