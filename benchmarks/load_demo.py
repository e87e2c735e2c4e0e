"""Seconds to load the demo model in a fresh process, after the first time: imports and load apart.

Usage: python benchmarks/load_demo.py [processes]. Prints a table for people, then one JSON line.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

CHILD = """
import json, time
start = time.perf_counter()
import torch, transformers
from transformers import LlamaForCausalLM
libraries = time.perf_counter()
from shortviz.model.load import load
from shortviz.records.model import ModelRef
imported = time.perf_counter()
load(ModelRef(id="demo"))
done = time.perf_counter()
print(json.dumps({"libraries": libraries - start, "shortviz": imported - libraries, "load": done - imported,
                  "total": done - start}))
"""


def main(processes: int) -> None:
    rows = []
    for number in range(processes + 1):
        run = [sys.executable, "-c", CHILD]
        done = subprocess.run(run, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
        if number:  # the first may de-quantise, and fills the disk cache
            rows.append(json.loads(done.stdout))
    medians = {name: round(statistics.median(row[name] for row in rows), 2) for name in rows[0]}
    print(f"Demo model in a fresh process, median of {processes}:")
    print(f"  torch and transformers imports {medians['libraries']:6.2f} s")
    print(f"  shortviz imports               {medians['shortviz']:6.2f} s")
    print(f"  load(ModelRef(id='demo'))      {medians['load']:6.2f} s")
    print(f"  all                            {medians['total']:6.2f} s")
    print(json.dumps({"benchmark": "load_demo", "processes": processes, "seconds": medians}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("processes", nargs="?", type=int, default=3, help="at least 1, after the one that warms up")
    asked = parser.parse_args().processes
    if asked < 1:
        parser.error(f"{asked} processes measure nothing; give at least 1")
    main(asked)
