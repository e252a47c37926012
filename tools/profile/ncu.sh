#!/bin/bash
# Counters of every kernel of one forward of each point that moe bench measures, by Nsight Compute (2024 or later; the driver must allow counters):
#
#   tools/profile/ncu.sh DIR ./moe bench --device cuda --backend marlin --dtype int4 --adapters 0 [--shape NAME] [--tokens T,...]
#   tools/profile/table.py DIR/bench.json DIR/kernels.csv
#
# Writes DIR/kernels.ncu-rep, DIR/kernels.csv, and bench.md and bench.json. Five passes a kernel, the cache emptied before each, clocks as they are:
# a forward's own time is the report's, taken from a graph beside the profile.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2; }
dir=$1
shift
mkdir -p "$dir"
percent=avg.pct_of_peak_sustained_elapsed
metrics=gpu__time_duration.sum,dram__bytes_read.sum,dram__bytes_write.sum,dram__throughput.$percent,lts__t_sectors.$percent
metrics+=,sm__pipe_tensor_cycles_active.$percent,sm__inst_executed_pipe_alu.$percent,sm__inst_issued.$percent
metrics+=,sm__warps_active.avg.per_cycle_active,sm__warps_active.sum,smsp__warps_eligible.avg.per_cycle_active
metrics+=,launch__registers_per_thread,launch__waves_per_multiprocessor
for s in long_scoreboard wait math_pipe_throttle not_selected short_scoreboard barrier gmma mio_throttle lg_throttle no_instruction; do
  metrics+=,smsp__warps_issue_stalled_$s.sum
done
ncu --target-processes all --profile-from-start off --cache-control all --clock-control none --metrics "$metrics" -f -o "$dir/kernels" \
  "$@" --profile --out "$dir"
ncu -i "$dir/kernels.ncu-rep" --page raw --csv --print-units base > "$dir/kernels.csv"
