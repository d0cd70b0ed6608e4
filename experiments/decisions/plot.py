"""Regret between the two texts against its bounds, from the record: transfer_rank.svg and transfer_sparsity.svg.

Command:   .venv/bin/python -m experiments.decisions.plot
"""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from curvjax.report import save_figure, transfer_figure

FOLDER = Path(__file__).parent
UNITS = {"rank": "extra rank", "sparsity": "share removed"}


def main() -> None:
    """One figure for each program, the first text's allocation judged by the second."""
    record = json.loads((FOLDER / "record.json").read_text(encoding="utf-8"))
    source = record["settings"]["texts"][0]
    for program, unit in UNITS.items():
        rows = [row for row in record["transfer"] if row["source"] == source and row["program"] == program]
        found = [
            SimpleNamespace(**row | {end: np.asarray(row[f"at_{end}"]) for end in ("source", "target")}) for row in rows
        ]
        index = range(len(found[0].source))
        figure = transfer_figure(found, budgets=[row["budget"] for row in rows], index=list(index), unit=unit)
        svg, png = save_figure(figure, FOLDER, f"transfer_{program}")
        png.unlink()
        print(svg)


if __name__ == "__main__":
    main()
