"""What several commands print."""

from pathlib import Path

from rich.table import Table

from curvjax.artefacts import Record


def allocation_table(record: Record) -> Table:
    """Every unit's quality and amount, under what is spent."""
    budget = record["budget"]
    whole = record["target"] != "sparsity"
    table = Table(
        *("unit", "quality", "continuous", record["target"]),
        title=f"{record['target']}: {budget['planned']:,.0f} of {budget['requested']:,.0f} {budget['unit']}",
        caption=f"dual price {record['dual']:.3g}: {record['dual_meaning']}; residual {record['residual']:.1e}",
    )
    for unit in record["units"]:
        amount = str(unit["amount"]) if whole else f"{unit['amount']:.4f}"
        table.add_row(unit["name"], f"{unit['quality']:.4f}", f"{unit['continuous']:.3f}", amount)
    return table


def allocation_lines(record: Record) -> list[str]:
    """What the table leaves out: the price in plain numbers, the largest rank, the remark, the curve of budgets."""
    price = record["dual"] * 1e6
    lines = [f"one more million {record['budget']['unit']}: {price:.4g} of the objective"] if price else []
    if record["target"] == "rank":
        lines += [
            f"rank at most {max(unit['amount'] for unit in record['units'])}, to which serving engines pad the others"
        ]
    lines += [record["remark"]] if record["remark"] else []
    for point in record["path"] or ():
        lines.append(f"budget {point['budget']:g}: objective {point['objective']:.6g}, dual price {point['dual']:.3g}")
    return lines


def tell(*paths: Path) -> None:
    """Where the results lie, one path a line."""
    for path in paths:
        print(path)
