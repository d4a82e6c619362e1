"""`python -m benchmarks [--quick]`: ratios of the usual recipe to ours, measured here and now.

A table on stderr, and as the last line of stdout one JSON object with the ratios. Both recipes run on the same clips in
one process with one thread, by turns, and the median counts. The machine should have nothing else to do:
`first_step`, `collate` and `two_workers` are of elapsed time.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from pathlib import Path

from benchmarks.measurements import FULL, QUICK, Bench
from benchmarks.report import show

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="ratios of the usual recipe to ours")
    parser.add_argument("--quick", action="store_true", help="a few clips, once: shows that it runs, not how fast")
    scale = QUICK if parser.parse_args().quick else FULL
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    figures = []
    with tempfile.TemporaryDirectory(prefix="asr-benchmarks-") as folder:
        for figure in Bench(Path(folder), scale).figures():
            logging.info("%s: %.4g", figure.key, figure.ratio)
            figures.append(figure)
    show(figures)
    print(json.dumps({figure.key: float(f"{figure.ratio:.4g}") for figure in figures}))
