"""Tables of outcomes, and of settings, data and versions."""

from collections.abc import Iterator, Mapping, Sequence

from curvjax.records import Adaptation, Allocation, Pair, Pruning, TaskOutcome, TextOutcome, plain
from curvjax.report.gain_tables import allocation_name
from curvjax.report.metrics import METRICS, OF_TASKS, PairedDifference, known_error, paired_differences
from curvjax.report.numbers import MINUS, UNKNOWN, count, plus_minus, setting, signed, signed_plus_minus
from curvjax.report.tables import Table, table


def adaptation_table(adaptation: Adaptation) -> Table:
    """Every arm and seed of the fine-tuning, and the model before it."""
    rows = [("before training", UNKNOWN, UNKNOWN, UNKNOWN, *task_cells(adaptation.base))]
    rows += [
        (arm.arm, count(arm.seed), count(arm.parameters), count(arm.max_rank), *task_cells(arm.outcome))
        for arm in adaptation.arms
    ]
    caption = (
        f"Fine-tuning on {adaptation.task}: {count(adaptation.train_documents)} training documents, "
        f"{count(adaptation.steps)} steps of {count(adaptation.tokens_per_step)} tokens, "
        f"{count(adaptation.test_questions)} test questions. Loss of the right answer in {METRICS['gold_nll'].unit}; "
        "accuracy by the answer's summed log-probability, and by that per character. ± one standard error over the "
        "test questions."
    )
    columns = (
        "arm", "seed", "trained parameters", "largest rank", "loss of right answer", "accuracy (%)", "per char. (%)",
    )  # fmt: skip
    return table(caption, columns, "lrrrrrr", rows)


def pruning_table(pruning: Pruning) -> Table:
    """Perplexity of every pruned arm, and of the dense model."""
    rows = [("dense", UNKNOWN, UNKNOWN, UNKNOWN, *_losses(pruning.dense))]
    rows += [
        (arm.arm, count(arm.seed), setting(arm.sparsity), f"{100 * arm.realised:.3f}%", *_losses(arm.outcome))
        for arm in sorted(pruning.arms, key=lambda arm: arm.sparsity)
    ]
    caption = (
        f"Pruning by {pruning.method.capitalize()}, calibrated on {pruning.calibration}, tested on {pruning.test} "
        f"({count(pruning.dense.tokens)} tokens). ± one standard error over the test text."
    )
    columns = ("arm", "seed", "asked", "removed", "test perplexity", "test loss (nats per token)")
    return table(caption, columns, "lrrrrr", rows)


def paired_table(paired: Sequence[Pair], *, of: str) -> Table:
    """Paired differences, the seeds of a comparison together, with what they allow to say."""
    rows = [
        (
            f"{entry.arm} {MINUS} {entry.against}" + ("" if entry.sparsity is None else f", {setting(entry.sparsity)}"),
            f"{METRICS[entry.metric].title.lower()} ({METRICS[entry.metric].unit})",
            *_differences(entry),
            entry.verdict,
        )
        for entry in paired_differences(paired)
    ]
    caption = (
        f"Paired differences, first arm minus second on the {of}, ± one standard error. Over several "
        "seeds: the mean, and the mean of the standard errors, which is an upper bound of the mean's own. "
        "“Better” or “worse” is said of the first arm only where two standard errors are reached and all "
        "seeds agree in sign."
    )
    return table(caption, (f"first {MINUS} second", "metric", "difference", "seeds", "verdict"), "llrrl", rows)


def program_table(allocations: Sequence[Allocation]) -> Table:
    """Settings, certificate and residual of every allocation side by side."""
    columns = [dict(flattened(_evidence(allocation))) for allocation in allocations]
    settings = list(dict.fromkeys(key for column in columns for key in column))
    settings.sort(key=lambda setting: not setting.startswith("program."))
    rows = [(key, *(column.get(key, UNKNOWN) for column in columns)) for key in settings]
    names = [allocation_name(allocation) for allocation in allocations]
    long = len(rows) > 20
    return table("Programs and their certificates.", ("setting", *names), "l" * (len(names) + 1), rows, long=long)


def settings_table(caption: str, settings: Mapping[str, object]) -> Table:
    """Nested settings as rows `outer.inner`, value."""
    rows = list(flattened(settings))
    return table(caption, ("setting", "value"), "ll", rows, long=len(rows) > 30)


def flattened(settings: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every leaf of nested settings.

    Yields:
      Its dotted name and its text.
    """
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from flattened(value, f"{name}.")
        elif isinstance(value, list | tuple):
            yield name, ", ".join(map(str, value)) or UNKNOWN
        else:
            yield name, _plain(value)


def task_cells(outcome: TaskOutcome) -> list[str]:
    """Loss of the right answer and both accuracies, each with its standard error."""
    shown = []
    for metric, measured in OF_TASKS.items():
        scale, (value, error) = METRICS[metric].scale, measured(outcome)
        error = known_error(error)
        shown.append(plus_minus(scale * value, None if error is None else scale * error, 1 if scale > 1 else 3))
    return shown


def _evidence(allocation: Allocation) -> dict[str, object]:
    """What the program was, in the order in which it is shown, and what is proved of its result."""
    found: dict[str, object] = {"program": allocation.program, "rule": allocation.rule}
    found |= {"control": allocation.control, "score": allocation.score}
    if allocation.certificate:
        ranges = allocation.certificate
        proved = f"{ranges.certified} of {len(ranges.least)} units"
        found |= {"certificate": {"certified": proved, "widest range": ranges.widest}}
    if allocation.whole:
        found |= {"whole amounts": plain(allocation.whole)}
    return found | {"gap": allocation.gap, "residual": allocation.residual}


def _plain(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: UNKNOWN, True: "yes", False: "no"}[value]
    return f"{value:.6g}" if isinstance(value, float) else str(value) or UNKNOWN


def _losses(outcome: TextOutcome) -> tuple[str, str]:
    """Perplexity and nats; the perplexity's error is that of the nats, carried over to first order."""
    error = known_error(outcome.standard_error)
    carried = None if error is None else error * outcome.perplexity
    return plus_minus(outcome.perplexity, carried, 1), plus_minus(outcome.nll, error, 3)


def _differences(entry: PairedDifference) -> tuple[str, str]:
    scale = METRICS[entry.metric].scale
    places = 1 if scale > 1 else 4
    error = None if entry.standard_error is None else scale * entry.standard_error
    shown = signed_plus_minus(scale * entry.difference, error, places)
    each = sorted(pair.difference for pair in entry.pairs)
    ends = (
        "1"
        if len(each) == 1
        else f"{len(each)}: {signed(scale * each[0], places)} to {signed(scale * each[-1], places)}"
    )
    return shown, ends
