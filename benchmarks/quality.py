"""Quality of every ranking on real streams: the published run of `rheos evaluate`.

Prints tables for each stream and writes JSON and a picture. Streams are looked for below
`RHEOS_DATA_DIR`; licences forbid shipping them. The settings are the defaults; another recipe is a
settings file. The figures leave the first quarter of a stream out, so a recipe may be chosen on it.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

from rich.console import Console

from cluster.config import load_settings
from cluster.evaluation import run_evaluation
from recommender.evaluation_settings import RANKINGS

SHOPS = frozenset({"online-retail"})
"""What is predicted of them is the first line of each basket. What a customer had is ranked too: in
online-retail 42 % of the baskets begin with something the customer bought before."""


def main() -> None:
    """Evaluate each stream with each seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    root = Path(os.environ.get("RHEOS_DATA_DIR", "../shared/data"))
    parser.add_argument("--data", type=Path, nargs="*", default=[root / "ml-100k"])
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated")
    parser.add_argument("--out", type=Path, default=Path("demo-out"), help="folder of the results")
    parser.add_argument("--config", type=Path, help="settings file (TOML)")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for data in arguments.data:
        run_evaluation(
            data,
            arguments.out / f"quality-{data.name}.json",
            load_settings(arguments.config),
            rankings=list(RANKINGS),
            seeds=[int(seed) for seed in arguments.seeds.split(",")],
            max_events=None,
            protocol="baskets" if data.name in SHOPS else "events",
            exclude_seen=data.name not in SHOPS,
            console=Console(),
            command=shlex.join(["python", "-m", "benchmarks.quality", *sys.argv[1:]]),
        )


if __name__ == "__main__":
    main()
