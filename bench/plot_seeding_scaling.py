"""Time of k-means++ on the CPU over three decades of pool size and of picks: measured, fitted and drawn.

python bench/plot_seeding_scaling.py      # bench/results/seeding_scaling.{json,png}
"""

from __future__ import annotations

import json
import platform
from pathlib import Path

import matplotlib
import numpy as np
import torch
from floors import copy_bandwidth, seconds

from alges_fast._native import native_status
from alges_fast.seeding import kmeans_plusplus

matplotlib.use("Agg")
from matplotlib import pyplot as plt

RESULTS = Path(__file__).parent / "results"
COLUMNS = 208
SIZES = [1_000, 3_162, 10_000, 31_623, 100_000, 316_228, 1_000_000]
PICKS = [10, 32, 100, 316, 1_000, 3_162, 10_000]


def main() -> None:
    points = torch.randn(max(SIZES), COLUMNS)
    by_size = [seconds(lambda n=n: kmeans_plusplus(points[:n], 32), 3) for n in SIZES]
    by_picks = [seconds(lambda n=n: kmeans_plusplus(points[:20_000], n), 2) for n in PICKS]
    found = {
        "machine": platform.processor() or platform.machine(),
        "native": native_status(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "copy_gb_per_s": copy_bandwidth() / 1e9,
        "columns": COLUMNS,
        "by_size": {"picks": 32, "points": SIZES, "seconds": by_size},
        "by_picks": {"points": 20_000, "picks": PICKS, "seconds": by_picks},
    }
    (RESULTS / "seeding_scaling.json").write_text(json.dumps(found, indent=1) + "\n")

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained", sharey=True)
    for axis, x, y, label, title in (
        (left, SIZES, by_size, "points N", "32 picks"),
        (right, PICKS, by_picks, "picks n", "N = 20 000"),
    ):
        slope = np.polyfit(np.log10(x[2:]), np.log10(y[2:]), 1)[0]
        axis.loglog(x, y, "o-", color="tab:blue", label=f"measured, slope {slope:.2f} from {x[2]:,} on")
        axis.loglog(x, np.array(x) * y[-1] / x[-1], ":", color="0.5", label="linear")
        axis.set(xlabel=label, title=f"{title}, D = {COLUMNS}, float32")
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    left.set_ylabel("seconds")
    floor = np.array(SIZES) * COLUMNS * 4 * 32 / copy_bandwidth()
    left.loglog(SIZES, floor, "--", color="tab:orange", label="pool read once a pick")
    left.legend(frameon=False)
    figure.savefig(RESULTS / "seeding_scaling.png", dpi=130)


if __name__ == "__main__":
    main()
