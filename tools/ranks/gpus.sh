#!/bin/bash
# A program on N GPUs of this host, one process each, started by hand:
#
#   tools/ranks/gpus.sh N COMMAND [ARGUMENTS...]
#
# Variables as torchrun sets them, for RankInfo.fromEnvironment(); each process is shown one card, which it opens as cuda:0. With torchrun at
# hand the same is: torchrun --no-python --nproc-per-node N COMMAND..., where a process opens the card of its local rank.
set -euo pipefail
n=$1
shift
export WORLD_SIZE=$n MASTER_ADDR=127.0.0.1 MASTER_PORT=${MASTER_PORT:-29500}
ranks=()
for ((r = 0; r < n; r++)); do
  CUDA_VISIBLE_DEVICES=$r RANK=$r LOCAL_RANK=$r "$@" &
  ranks+=($!)
done
code=0
for p in "${ranks[@]}"; do
  wait "$p" || code=$?
done
exit "$code"
