"""Quality of every ranking on real streams: the published run of `rheos evaluate`.

Prints tables for each stream and writes JSON and a picture. Streams are looked for below
`RHEOS_DATA_DIR`; licences forbid shipping them. Settings of a stream are in the TOML file of its
name beside this module, where it has one; they were chosen on the first quarter of the stream,
which the figures leave out.
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

BASKET_STREAMS = frozenset({"online-retail"})
"""Shops: what is predicted is the first line of each basket."""


def main() -> None:
    """Evaluate each stream with each seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    root = Path(os.environ.get("RHEOS_DATA_DIR", "../shared/data"))
    parser.add_argument("--data", type=Path, nargs="*", default=[root / "ml-100k"])
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated")
    parser.add_argument("--out", type=Path, default=Path("demo-out"), help="folder of the results")
    parser.add_argument("--include-seen", action="store_true", help="also rank what a user had")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for data in arguments.data:
        recipe = Path(__file__).with_name(f"{data.name}.toml")
        run_evaluation(
            data,
            arguments.out / f"quality-{data.name}.json",
            load_settings(recipe if recipe.exists() else None),
            rankings=list(RANKINGS),
            seeds=[int(seed) for seed in arguments.seeds.split(",")],
            max_events=None,
            protocol="baskets" if data.name in BASKET_STREAMS else "events",
            exclude_seen=not arguments.include_seen,
            console=Console(),
            command=shlex.join(["python", "-m", "benchmarks.quality", *sys.argv[1:]]),
        )


if __name__ == "__main__":
    main()
