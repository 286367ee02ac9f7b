"""The paper's accuracy claims at our scale: a table with a verdict on each, and the figures.

    python benchmarks/validation/figures.py --readme README.md

A verdict follows from what lies in `results/` by the rule beside it in `claims.py`; what has no
results is not tested.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from drawings import draw_correlations, draw_costs, draw_retraining
from measured import HERE, tasks
from tables import table

BEGIN, END = (
    "<!-- validation: written by benchmarks/validation/figures.py -->",
    "<!-- /validation -->",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--readme", type=Path, required=True)
    options = parser.parse_args()
    import matplotlib

    matplotlib.use("Agg")
    found = tasks()
    lines = table(found)
    print("\n".join(lines))
    draw_correlations(found, HERE / "correlations.png")
    draw_costs(found, HERE / "costs.png")
    draw_retraining(HERE / "retraining.png")
    text = options.readme.read_text()
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    inside = "\n".join([BEGIN, "", *lines, "", END])
    options.readme.write_text(before + inside + after)


if __name__ == "__main__":
    main()
