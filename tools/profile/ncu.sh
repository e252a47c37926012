#!/bin/bash
# Counters of every kernel of one forward of each point that moe bench measures, by Nsight Compute (2024 or later; the driver must allow counters):
#
#   tools/profile/ncu.sh DIR ./moe bench --device cuda --backend marlin --dtype int4 --adapters 0 [--shape NAME] [--tokens T,...]
#   tools/profile/table.py DIR/bench.json DIR/kernels.csv
#
# Runs the command twice: first as it is, for the times (DIR/bench.json, bench.md), then under ncu with --profile (DIR/kernels.ncu-rep, kernels.csv),
# where one forward of each point is replayed kernel by kernel, a few passes each, the cache emptied before each pass, clocks as they are.
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
for s in long_scoreboard wait barrier short_scoreboard math_pipe_throttle; do
  metrics+=,smsp__warps_issue_stalled_$s.sum
done
"$@" --out "$dir" > /dev/null
ncu --target-processes all --profile-from-start off --cache-control all --clock-control none --metrics "$metrics" -f -o "$dir/kernels" "$@" --profile
ncu -i "$dir/kernels.ncu-rep" --page raw --csv --print-units base > "$dir/kernels.csv"
