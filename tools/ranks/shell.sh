#!/bin/bash
# moe run in several processes of this host, started by hand:
#
#   tools/ranks/shell.sh N [moe run's options]
#
# Variables as torchrun sets them; with torchrun at hand the same is: torchrun --no-python --nproc-per-node N ./moe run ...
set -euo pipefail
cd "$(dirname "$0")/../.."
n=$1
shift
export WORLD_SIZE=$n MASTER_ADDR=127.0.0.1 MASTER_PORT=${MASTER_PORT:-29500}
ranks=()
for ((r = 0; r < n; r++)); do
  RANK=$r LOCAL_RANK=$r ./moe run --threads "$(($(nproc) / n > 0 ? $(nproc) / n : 1))" "$@" &
  ranks+=($!)
done
code=0
for p in "${ranks[@]}"; do
  wait "$p" || code=$?
done
exit "$code"
