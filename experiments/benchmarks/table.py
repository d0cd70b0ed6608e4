"""The table of README.md, from the records beside it and nothing else.

Command:   .venv/bin/python -m experiments.benchmarks.table      (rewrites the table in README.md)
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
BEGIN, END = "<!-- table: made by `python -m experiments.benchmarks.table` -->", "<!-- end of table -->"


class Row(NamedTuple):
    """One line of the table. met: whether the bar is; None: there is none."""

    what: str
    bar: str
    ours: str
    rival: str
    ratio: str
    met: bool | None = None


def products(record: dict[str, Any]) -> list[Row]:
    mean, counted = record["product_over_gradient"], record["flops"]["product_over_gradient"]
    share, memory = record["matmul"], record["memory"]
    one = f"a gradient of {median(record['layers'][0]['gradient']['wall_seconds']):.2f} s"
    return [
        at_most("one product, mean over layers", 0.45, mean["wall"], rival=one, note=f"FLOPs {counted:.2f}"),
        Row(
            "the same, linearisations made anew each time",
            "",
            "",
            one,
            f"{record['recompute_over_gradient']['wall']:.2f}",
        ),
        Row(
            "share of the matmul rate reached",
            "",
            f"{share['product_share']:.0%}",
            f"the gradient: {share['gradient_share']:.0%}",
            f"{share['product_share'] / share['gradient_share']:.2f}",
        ),
        Row(
            "memory held between products",
            "",
            gibibytes(memory["held_bytes"]),
            f"made anew: {gibibytes(memory['recompute_held_bytes'])}; weights {gibibytes(memory['weights_bytes'])}",
            f"{memory['held_bytes'] / memory['weights_bytes']:.2f} x weights",
        ),
    ]


def all_gains(record: dict[str, Any]) -> list[Row]:
    rows, naive = [], record["naive"]
    for gap in record["gaps"]:
        what, ours = f"all gains, {gap['gap']:.0%} gap", f"{gap['products']} products, {gap['wall_seconds']:.0f} s"
        spent = gap["gradient_equivalents"]["wall"]
        bar = 150 if gap["gap"] == 0.05 else None
        rows.append(at_most(what, bar, spent, ours=ours, rival="one gradient", digits=0))
        bar = 8 if gap["gap"] == record["gaps"][-1]["gap"] else None
        for kind, rival in (("", "naive"), ("_hessian", "naive with Hessian products")):
            faster = gap[f"naive{kind}_granted_over_ours"]["wall"]
            rows.append(at_least(f"{what}, speed", bar, faster, ours=ours, rival=f"{rival}, granted our number"))
    own = naive["own_over_ours"]["wall"]
    tightest = f"all gains, {record['gaps'][-1]['gap']:.0%} gap"
    memory = (record["held_bytes"] + record["temporary_bytes"]) / naive["temporary_bytes"]
    return [
        *rows,
        at_least(f"{tightest}, speed", 8, own, rival="naive, stopped by its residual at the same accuracy"),
        at_most(
            f"{tightest}, held and temporary memory",
            0.5,
            memory,
            ours=gibibytes(record["held_bytes"] + record["temporary_bytes"]),
            rival=f"naive: {gibibytes(naive['temporary_bytes'])}",
        ),
        Row(
            f"{tightest}, peak of the process",
            "",
            gibibytes(record["process_peak_bytes"]),
            f"naive: {gibibytes(naive['process_peak_bytes'])}",
            f"{record['process_peak_bytes'] / naive['process_peak_bytes']:.2f}",
        ),
    ]


def torch_rival(record: dict[str, Any]) -> list[Row]:
    ours = sum(row["ours"]["wall"] for row in record["layers"])
    what = f"gains of {len(record['layers'])} layers, {record['settings']['gap']:.0%} gap, speed"
    versions = next(iter(record["rivals"].values()))["versions"]
    rows = []
    for bar, name, key in ((1, what, "over_ours"), (None, f"{what}, its set-up free", "less_setup_over_ours")):
        for route, rival in record["rivals"].items():
            ratio, threads = record[f"{route}_{key}"], rival["threads"]
            told = f"PyTorch, {route}, {threads} thread{'s' * (threads > 1)} ({ratio['cpu']:.1f} x in core time)"
            rows.append(at_least(name, bar, ratio["wall"], ours=f"{ours:.1f} s", rival=told))
    gradient = record["torch_gradient_over_ours"]["wall"]
    return [*rows, Row("one gradient, speed", "", "", f"PyTorch {versions['torch']}", speed(gradient))]


def fisher(record: dict[str, Any]) -> list[Row]:
    rows, most = [], max((case["layers"], case["columns"]) for case in record["cases"])
    for case in record["cases"]:
        name = {"empirical": "empirical Fisher", "monte_carlo": "Monte Carlo Fisher"}[case["kind"]]
        what = f"{name}, all gains, m = {case['columns']}, {case['layers']} layers"
        ours = f"{case['wall']:.0f} s, {gibibytes(case['process_peak_bytes'])}"
        rows.append(at_most(what, 8, case["gradient_equivalents"]["wall"], ours=ours, rival="one gradient", digits=1))
        if (case["layers"], case["columns"]) == most:
            peak = case["process_peak_bytes"] / 2**30
            rows.append(at_most(f"{what}, peak of the process, GiB", 8, peak, digits=1))
    return rows


def damping_grid(record: dict[str, Any]) -> list[Row]:
    count = len(record["grid"])
    return [
        at_most(f"{count} dampings read off the same run", 1.3, record["read_16_over_1"]["wall"], rival="one damping"),
        at_most(
            f"{count} dampings, all certified",
            1.3,
            record["certified_16_over_1"]["wall"],
            ours=f"{record['certified_16']['products']} products",
            rival=f"the smallest alone: {record['certified_1']['products']} products",
        ),
    ]


def compile_time(record: dict[str, Any]) -> list[Row]:
    first, last = record["depths"][0], record["depths"][-1]
    more = record["growth"]["ours_compilations"]
    return [
        Row(
            f"compilations, {last['layers']} layers against {first['layers']}",
            "no more",
            f"{last['ours']['compilations']}, {last['ours']['compile_seconds']:.1f} s",
            f"{first['ours']['compilations']}, {first['ours']['compile_seconds']:.1f} s",
            f"{more:+d}",
            more <= 0,
        ),
        Row(
            "compiling the whole model's gradient, the same",
            "",
            f"{last['whole_gradient']['compile_seconds']:.1f} s",
            f"{first['whole_gradient']['compile_seconds']:.1f} s",
            f"{record['growth']['whole_gradient_seconds']:.1f}",
        ),
    ]


def scaling(record: dict[str, Any]) -> list[Row]:
    rows = []
    for name, unit in (("depth", "layers"), ("width", "width"), ("tokens", "tokens")):
        first, last = record[name][0], record[name][-1]
        took, counted = (last[key] / first[key] for key in ("product_seconds", "product_flops"))
        sizes = f"{first[name]} to {last[name]}"
        rows.append(
            Row(
                f"product, {unit} {sizes}",
                "",
                f"{took:.1f} x the time",
                f"{counted:.1f} x the FLOPs",
                f"{took / counted:.2f}",
            )
        )
    for case in record["devices"][1:]:
        first = record["devices"][0]
        took = case["product_seconds"] / first["product_seconds"]
        rows.append(
            Row(
                f"product, sequences on {case['devices']} simulated devices",
                "",
                f"{case['product_seconds']:.3f} s",
                f"1 device: {first['product_seconds']:.3f} s",
                f"{took:.2f}",
            )
        )
    return rows


def huge_pages(record: dict[str, Any]) -> list[Row]:
    huge, small = (f"{median(record[kind]['wall_seconds']):.2f} s" for kind in ("huge", "small"))
    kernel = record["kernel_seconds_a_gradient"]
    ours = f"{huge}, {kernel['huge']:.2f} of them the kernel's"
    share = record["huge_over_small"]["wall"]
    return [Row("a gradient in huge pages", "", ours, f"in small ones {small}, {kernel['small']:.2f}", f"{share:.2f}")]


def prices(record: dict[str, Any]) -> list[Row]:
    rows = []
    for case in record["cases"]:
        swept, moved = case["prices"], case["moves"]
        one = f"a gradient of {median(swept['gradient']['wall_seconds']):.2f} s"
        rows.append(
            at_most(f"prices of {case['units']} units by masks", 1.3, swept["over_gradient"]["wall"], rival=one)
        )
        rows.append(
            at_most(
                f"{moved['moves']} measured moves, one round of {case['units']} units",
                {"layer": 12, "module": 75}[case["granularity"]],
                moved["over_gradient"]["wall"],
                ours=f"{moved['round']['wall_seconds'][0]:.0f} s",
                rival=one,
                note=f"passes {moved['counted_gradients']:.1f}",
                digits=1,
            )
        )
    return rows


def prices_memory(record: dict[str, Any]) -> list[Row]:
    sizes = record["bytes"]
    what = f"COUNTED by the compiler: memory of a gradient of a descent, {record['parameters'] / 1e9:.1f} G parameters"
    ours = f"{sizes['peak_bfloat16'] / 1e9:.0f} GB in bfloat16"
    temporary = f"weights {sizes['weights'] / 2e9:.1f} GB, temporaries {sizes['temporaries'] / 2e9:.1f} GB"
    return [Row(what, "", ours, temporary, f"{record['over_weights']:.2f} x weights")]


def gpu_estimate(record: dict[str, Any]) -> list[Row]:
    rows = []
    for name, case in record["cases"].items():
        memory = f"{case['memory_bytes']['all'] / 1e9:.0f} GB"
        for gap, found in case["all_gains"].items():
            rows.append(
                Row(
                    f"ESTIMATE, not measured: all gains of {name}, {case['tokens']} tokens, {float(gap):.0%} gap",
                    "",
                    f"{found['seconds']:.0f} s, {memory}",
                    f"a gradient of {case['gradient']['seconds']:.2f} s",
                    f"{found['gradient_equivalents']:.0f}",
                )
            )
    return rows


SECTIONS: dict[str, Callable[[dict[str, Any]], list[Row]]] = {
    section.__name__: section
    for section in (
        products,
        all_gains,
        torch_rival,
        fisher,
        damping_grid,
        compile_time,
        scaling,
        huge_pages,
        prices,
        prices_memory,
        gpu_estimate,
    )
}


def at_most(
    what: str, bar: float | None, value: float, *, ours: str = "", rival: str = "", note: str = "", digits: int = 2
) -> Row:
    ratio = f"{value:.{digits}f}" + (f" ({note})" if note else "")
    return Row(what, "" if bar is None else f"<= {bar:g}", ours, rival, ratio, None if bar is None else value <= bar)


def at_least(what: str, bar: float | None, value: float, *, ours: str = "", rival: str = "") -> Row:
    return Row(
        what, "" if bar is None else f">= {bar:g} x", ours, rival, speed(value), None if bar is None else value >= bar
    )


def speed(value: float) -> str:
    return f"{value:.1f} x"


def gibibytes(value: float) -> str:
    return f"{value / 2**30:.2f} GiB"


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def machine(record: dict[str, Any]) -> str:
    if record.get("is_estimate"):
        return f"{record['gpu']}, from its data sheet"
    found = record["machine"]
    load = max(found["load_average"]["before"][0], 0.0)
    return f"{found['usable_cores']} cores, {found['processor']}, load {load:.1f}"


def table(folder: Path = HERE) -> str:
    """Every section whose record is in `folder`, in Markdown; what has no record yet is named below."""
    lines = [
        "| what | bar | ours | against | ratio | bar met | machine |",
        "| --- | --- | --- | --- | ---: | --- | --- |",
    ]
    missing = []
    for name, section in SECTIONS.items():
        file = folder / f"{name}.json"
        if not file.is_file():
            missing.append(f"`{name}`")
            continue
        record = json.loads(file.read_text(encoding="utf-8"))
        for row in section(record):
            met = {None: "", True: "yes", False: "**no**"}[row.met]
            lines.append(" | ".join(["", *row[:5], met, machine(record), ""]).strip())
    if missing:
        lines += ["", f"Not measured yet: {', '.join(missing)}."]
    return "\n".join(lines)


def with_table(readme: str, folder: Path = HERE) -> str:
    """`readme` with its table made anew."""
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n{table(folder)}\n{END}{rest.split(END)[1]}"


def main() -> None:
    file = HERE / "README.md"
    file.write_text(with_table(file.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
