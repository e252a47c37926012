#!/usr/bin/env python3
"""Turns a profile of `moe bench --profile` by Nsight Compute into a Markdown table: a row a kernel, under the time and floor of its point.

    tools/profile/ncu.sh DIR ./moe bench --device cuda --backend marlin --dtype int4 --adapters 0
    tools/profile/table.py DIR/bench.json DIR/kernels.csv [--share 5] [--first topk]

A forward begins with the kernel whose name has --first in it; forwards come in the order of the report's rows. Kernels with less than --share percent
of the forward's kernel time are summed up in one row. Needs nothing but Python 3.8.
"""
import argparse
import csv
import json
import sys

STALLS = "smsp__warps_issue_stalled_"
WORDS = {
    "long_scoreboard": "loads",  # global or local memory
    "short_scoreboard": "shared memory",
    "wait": "fixed latency",
    "math_pipe_throttle": "pipe busy",
    "barrier": "barrier",
}


def number(text):
    try:
        return float(text.replace(",", ""))
    except (AttributeError, ValueError):
        return float("nan")


def kernels(path):
    """Rows of the raw page in the order of the launches; the line of units is left out."""
    with open(path, newline="") as f:
        rows = list(csv.DictReader(line for line in f if line.startswith('"')))
    return [r for r in rows if r.get("ID", "").strip()]


def forwards(rows, first):
    all_ = []
    for r in rows:
        if first in r["Kernel Name"]:
            all_.append([])
        if not all_:
            sys.exit("the first kernel is %s, not one with %r in its name; see --first" % (r["Kernel Name"], first))
        all_[-1].append(r)
    return all_


def stalls(r):
    """What a resident warp waited for most, in percent of its time."""
    warps = number(r.get("sm__warps_active.sum"))
    shares = []
    for key, value in r.items():
        name = (key or "")[len(STALLS):].split(".")[0]
        if key and key.startswith(STALLS) and name in WORDS:
            shares.append((100 * number(value) / warps, WORDS[name]))
    shares.sort(reverse=True)
    return ", ".join("%s %.0f" % (word, share) for share, word in shares[:2] if share >= 1)


def micros(r):
    return number(r["gpu__time_duration.sum"]) / 1e3


def line(r):
    def get(name):
        return number(r.get(name))

    mb = (get("dram__bytes_read.sum") + get("dram__bytes_write.sum")) / 1e6
    return [
        r["Kernel Name"],
        "%.1f" % micros(r),
        "%.0f" % get("dram__throughput.avg.pct_of_peak_sustained_elapsed"),
        "%.4g" % mb if mb < 1000 else "%.0f" % mb,
        "%.0f" % get("lts__t_sectors.avg.pct_of_peak_sustained_elapsed"),
        "%.0f" % get("sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_elapsed"),
        "%.0f" % get("sm__inst_executed_pipe_alu.avg.pct_of_peak_sustained_elapsed"),
        "%.0f" % get("sm__inst_issued.avg.pct_of_peak_sustained_elapsed"),
        "%.1f" % get("sm__warps_active.avg.per_cycle_active"),
        "%.2f" % get("smsp__warps_eligible.avg.per_cycle_active"),
        "%.1f" % get("launch__waves_per_multiprocessor"),
        "%.0f" % get("launch__registers_per_thread"),
        stalls(r),
    ]


HEAD = ["us", "DRAM %", "MB", "L2 %", "tensor %", "ALU %", "slots %", "warps", "ready", "waves", "registers", "waits %"]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("report", help="bench.json")
    p.add_argument("profile", help="ncu's raw page as CSV, in base units")
    p.add_argument("--share", type=float, default=5, help="least percent of a forward that a kernel has a row for (default: %(default)s)")
    p.add_argument("--first", default="topk", help="in the name of the first kernel of a forward (default: %(default)s)")
    a = p.parse_args()
    with open(a.report) as f:
        points = json.load(f)["rows"]
    found = forwards(kernels(a.profile), a.first)
    if len(found) != len(points):
        print("%d points, %d profiled forwards: the rest is left out" % (len(points), len(found)), file=sys.stderr)
    shape = None
    for point, launches in zip(points, found):
        if point["shape"] != shape:
            shape = point["shape"]
            print("\n| %s | %s |" % (shape, " | ".join(HEAD)))
            print("|---|" + "---:|" * (len(HEAD) - 1) + "---|")
        total = sum(micros(r) for r in launches)
        text = "**T=%d" % point["T"]
        if point["adapters"]:
            text += ", rank %d x %d" % (point["rank"], point["adapters"])
        text += "**: %.1f us" % point["us"]
        if "floor_us" in point:
            text += ", floor %.1f, ratio %.2f" % (point["floor_us"], point["us"] / point["floor_us"])
        print("| %s | %.1f |%s" % (text, total, " |" * (len(HEAD) - 1)))
        rest = []
        for r in launches:
            if 100 * micros(r) >= a.share * total:
                print("| " + " | ".join(line(r)) + " |")
            else:
                rest.append(r)
        if rest:
            print("| %d other%s | %.1f |%s" % (len(rest), "s" if len(rest) > 1 else "", sum(micros(r) for r in rest), " |" * (len(HEAD) - 1)))


main()
