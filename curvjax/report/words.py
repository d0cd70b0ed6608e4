"""Sentences made from the numbers. No sentence claims more than its numbers carry."""
# ruff: noqa: RUF001 (Greek letters are meant)

from collections.abc import Sequence

import numpy as np

from curvjax.allocation import rank_correlation
from curvjax.records import Adaptation, Allocation, Pruning, Scores, TextOrigin
from curvjax.report.comparison import comparison_words
from curvjax.report.descent import descent_words
from curvjax.report.evaluation import evaluation_words
from curvjax.report.gain_tables import allocation_name
from curvjax.report.metrics import METRICS, PairedDifference, paired_differences
from curvjax.report.numbers import (
    count,
    duration,
    fixed,
    listed,
    memory,
    percent,
    setting,
    signed,
    signed_plus_minus,
    significant,
)
from curvjax.report.profile import Profile, extent, gain_profile, leading
from curvjax.report.rebuilt import rebuilt_words
from curvjax.report.run_records import RunRecords
from curvjax.report.settings import Measurement, ProgramSettings
from curvjax.report.transfer import transfer_words

_CURVATURES = {
    "ggn": "the generalised Gauss-Newton matrix (for this loss, the true Fisher information)",
    "hessian": "the exact Hessian block",
    "fisher-mc": "a Monte Carlo Fisher information",
    "empirical-fisher": "the empirical Fisher information of the sequences",
    "empirical-fisher-tokens": "the empirical Fisher information of the tokens",
    "kfac": "the Kronecker factors of the Gauss-Newton matrix (K-FAC)",
    "ekfac": "the Kronecker factors of the Gauss-Newton matrix, its eigenvalues corrected (EKFAC)",
    "diagonal": "the diagonal of the Gauss-Newton matrix",
}


def policy_words(measurement: Measurement) -> str:
    """The damping policy in words."""
    value = measurement.damping
    if value is None:
        return "the choice of the damping was not recorded"
    known = {
        "trust-radius": f"each layer's damping is that at which its step is {setting(value)} of its parameters' norm",
        "absolute": f"every layer has the damping {significant(value)}",
        "relative-mean": f"each layer's damping is {significant(value)} times its mean eigenvalue",
        "relative-largest": f"each layer's damping is {significant(value)} times its largest eigenvalue",
        "promise": "the damping is the smallest whose step still keeps enough of its promise in the loss itself",
        "held-out": "the damping is that whose step lowers the loss on fresh tokens most",
    }
    return known.get(measurement.policy, f"damping policy {measurement.policy} at {significant(value)}")


def kind(scores: Scores) -> str:
    """What the units are, in the plural."""
    return "layers" if scores.granularity == "layer" else "units"


def curvature_words(measurement: Measurement) -> str:
    """The curvature in words."""
    return _CURVATURES.get(measurement.curvature, f"the curvature {measurement.curvature!r}")


def headline(records: RunRecords) -> list[str]:
    """The run in a few sentences: what was scored, how the layers differ, what was done, what came of it."""
    told = [_scored(records.gains), _ordered(records.gains)] if records.gains else []
    told += [descent_words(records.descent)] if records.descent else []
    told += [comparison_words(records.comparison)] if records.comparison else []
    told += [transfer_words(records.transfer)] if records.transfer else []
    told += [rebuilt_words(records.rebuilt, records.rebuilt_from)] if records.rebuilt else []
    told += evaluation_words(records.evaluations)
    told += [_shared_out(records.allocations)] if not told and records.allocations else []
    told += _adapted(records.adaptation) if records.adaptation else []
    return told + (_pruned(records.pruning) if records.pruning else [])


def facts(records: RunRecords) -> dict[str, str]:
    """The few numbers that stand large under the headline, by what they are."""
    found: dict[str, str] = {}
    if scores := records.gains:
        profile = gain_profile(scores)
        found[f"{kind(scores)} scored"] = count(len(profile.names))
        found["widest interval"] = percent(extent(profile.chosen.gap)[1])
        found["cost of all gains, in gradients"] = significant(scores.origin.cost.gradient_equivalents, 3)
    if descent := records.descent:
        kept = descent.iterates[descent.best].selection_nll
        found["selection loss against the start, nats per token"] = signed(kept - descent.iterates[0].selection_nll, 3)
    if comparison := records.comparison:
        found["methods compared"] = count(len(comparison.methods))
    if rebuilt := records.rebuilt:
        found["units rebuilt"] = count(len(rebuilt.units))
    if records.origin:
        found["peak memory"] = memory(records.origin.cost.peak_memory_bytes)
    return found


def paired_words(entry: PairedDifference) -> str:
    """The verdict of one comparison and its numbers, to follow the name of the first arm."""
    metric = METRICS[entry.metric]
    places = 1 if metric.scale > 1 else 3
    error = None if entry.standard_error is None else metric.scale * entry.standard_error
    seeds = f", mean of {len(entry.pairs)} seeds" if len(entry.pairs) > 1 else ""
    numbers = (
        f"{metric.phrase} {signed_plus_minus(metric.scale * entry.difference, error, places)} {metric.unit}{seeds}"
    )
    if entry.verdict in {"better", "worse"}:
        return f"{entry.verdict} than {entry.against} ({numbers})"
    if entry.verdict == "no significant difference":
        return f"no significant difference from {entry.against} ({numbers})"
    return f"no claim against {entry.against}, for want of a standard error ({numbers})"


def order_words(profile: Profile) -> str:
    """How the order of layers depends on the damping."""
    if profile.dampings.size < 2:
        return "Only one damping was computed, so this run cannot show how the order depends on it."
    ends = rank_correlation(profile.grid.middle[:, 0], profile.grid.middle[:, -1])
    agreement = [rank_correlation(column, profile.chosen.middle) for column in profile.grid.middle.T]
    return (
        f"Between the smallest and the largest damping of the grid ({profile.dampings[0]:g} and "
        f"{profile.dampings[-1]:g}) the orders of the layers have a rank correlation of {fixed(ends)}; "
        f"with the order at the chosen policy it lies between {fixed(min(agreement))} and "
        f"{fixed(max(agreement))}."
    )


def gradient_words(profile: Profile) -> str:
    """How near the gain's order is to that of the plain gradient norm."""
    return (
        "At the chosen damping the gains and the squared gradient norms order the layers with a rank "
        f"correlation of {fixed(profile.correlation)}. Where "
        "this is near 1 the curvature changes little of what the gradient norm alone would say. Which of "
        "the two allocates better is not settled by this number."
    )


def step_words(profile: Profile, measurement: Measurement) -> str:
    """How far the steps reach."""
    step, tau = profile.chosen.step, profile.chosen.damping
    if measurement.policy == "trust-radius":
        met = f"At the chosen policy every step is about {percent(float(np.nanmedian(step)))} of its layer"
    else:
        short, long = extent(step)
        met = f"At the chosen policy the steps are {percent(short)} to {percent(long)} of their layers"
    least, most = extent(tau)
    return f"{met}, with dampings from {significant(least, 2)} to {significant(most, 2)}."


def dual_words(allocations: Sequence[Allocation]) -> str:
    """The dual prices with their meaning; and what dropped out because the budget binds."""
    meanings: dict[str, list[str]] = {}
    for allocation in allocations:
        if allocation.dual is None:  # rules have no price
            continue
        meaning = allocation.dual_meaning.rstrip(".") or "its meaning was not recorded"
        meanings.setdefault(meaning, []).append(f"{significant(allocation.dual)} ({allocation_name(allocation)})")
    told = [f"Dual price {listed(prices)}: {meaning}." for meaning, prices in meanings.items()]
    told += dict.fromkeys(filter(None, map(_cancelled, allocations)))
    return " ".join(told)


def limits(records: RunRecords) -> list[str]:
    """What the numbers do and do not show, one statement each."""
    told = _limits_of_gains(records.gains) if records.gains else []
    if records.descent:
        told.append(
            "The step of the descent was chosen by its loss on the selection texts, which is therefore too low. Only "
            "texts that chose nothing can test it."
        )
    if records.comparison:
        told.append(
            "The comparison shows what methods give, and at what cost; which of them loses least, only rebuilt models "
            "and texts that chose nothing can show."
        )
    if records.transfer:
        told.append(
            "The regret of a transfer, and what bounds it, are a surrogate cost in units of the program's objective; "
            "no accuracy or loss follows from them."
        )
    if records.rebuilt:
        told.append("That a rebuilt model has what was planned says nothing of how well it does.")
    told += [
        f"One model ({records.model}) and one task or text each; nothing here says what happens with others.",
        "The texts may have been in the model's pretraining data. Arms of one model are comparable with "
        "each other; absolute perplexities and accuracies are not to be compared with other models.",
    ]
    return told + _power(records)


def _limits_of_gains(scores: Scores) -> list[str]:
    text = scores.origin.text
    sample = f", {count(text.tokens)} tokens of {text.source}" if text else ""
    return [
        "The certificate is numerical, not statistical: the true ζ² of this model on these calibration "
        "tokens lies in the interval, up to rounding. It says nothing of other texts, another sample or "
        "another seed.",
        f"The gains rest on one sample{sample}. How much they would move with another was not measured here.",
        "The damping is the hidden hyper-parameter. Gains, their order and so the allocations change with "
        "it; heavy damping gives back the gradient norm. A different policy is a different question.",
        "The gain is a local, second-order quantity: what a damped quadratic model promises from moving "
        "one layer alone. It knows nothing of layers moving together, nor of large changes such as "
        "removing half the weights.",
        "That a layer has a large gain does not by itself mean that it should get more capacity. That "
        "step is a modelling choice of the allocation programs, and only the outcomes test it.",
    ]


def _shared_out(allocations: Sequence[Allocation]) -> str:
    told = [
        f"{count(each.budget.planned)} {each.budget.unit} over {count(len(each.units))} units of "
        f"{each.origin.model.name} ({allocation_name(each)}, by {each.rule} of {each.score or 'no score'})"
        for each in allocations
    ]
    return f"Shared out: {listed(told)}."


def _scored(scores: Scores) -> str:
    profile, origin = gain_profile(scores), scores.origin
    unmet = [profile.titles[k] for k in np.flatnonzero(~profile.chosen.converged)]
    bracketed, asked = int(np.isfinite(profile.chosen.gap).sum()), Measurement.of(origin.settings).rtol
    which = f"all {bracketed}" if bracketed == len(profile.names) else f"{bracketed} of {len(profile.names)}"
    sample = f" on {count(origin.text.tokens)} tokens" if origin.text else ""
    words = (
        f"The gains of {which} {kind(scores)} of {origin.model.name} were bracketed{sample}: the widest interval is "
        f"{percent(extent(profile.chosen.gap)[1])} of its upper end"
        f"{'' if asked is None else f' ({setting(asked)} was asked for)'}. This took {duration(origin.cost.seconds)}, "
        f"as long as {significant(origin.cost.gradient_equivalents)} gradients of the whole model on the same batch."
    )
    words += _read(origin.text) if origin.text else ""
    if unmet:
        more = [f"{len(unmet) - 6} more"] if len(unmet) > 6 else []
        words += f" The width was not met, or there is no bracket, in {listed(unmet[:6] + more)}."
    return words


def _read(text: TextOrigin) -> str:
    """What stood before each text, and what was cut."""
    words = f" Each text began with {' '.join(text.begin_of_text)}." if text.begin_of_text else ""
    prompts, tokens, completions = text.cut
    if prompts:
        words += f" {count(prompts)} prompts lost their first tokens, {count(tokens)} in all."
    if completions:
        words += f" {count(completions)} completions were longer than a row and cut into pieces."
    return words


def _ordered(scores: Scores) -> str:
    profile, units = gain_profile(scores), kind(scores)
    middle = profile.chosen.middle
    top = listed([profile.labels[k] for k in leading(middle, 3)])
    least, most = extent(middle)
    ratio = f"; the largest is {significant(most / least, 2)} times the smallest" if least > 0 else ""
    return (
        f"At the chosen damping the {units} {top} have the largest gains, in this order{ratio}. "
        f"Ordered by gain and by gradient norm, the {units} have a rank correlation of "
        f"{fixed(profile.correlation)}; the order changes with the damping."
    )


def _adapted(adaptation: Adaptation) -> list[str]:
    entries = paired_differences(adaptation.paired)
    sizes = sorted({arm.parameters for arm in adaptation.arms})
    size = " to ".join(map(count, sizes if len(sizes) < 2 else (sizes[0], sizes[-1])))
    main = [entry for entry in entries if entry.metric == adaptation.metric] or entries[:1]
    return [
        f"Fine-tuned on {adaptation.task} with low-rank adapters of {size} parameters, ranks by "
        f"{arm}: {_compared(main, arm)}."
        for arm in dict.fromkeys(entry.arm for entry in main)
    ]


def _pruned(pruning: Pruning) -> list[str]:
    entries, told = paired_differences(pruning.paired), []
    for level in dict.fromkeys(entry.sparsity for entry in entries):
        mine = [entry for entry in entries if entry.sparsity == level]
        found = {each.arm: each.outcome.perplexity for each in reversed(pruning.arms) if each.sparsity == level}
        values = [f"{significant(value)} ({name})" for name, value in reversed(found.items())]
        arms = [f"Sparsities by {arm}: {_compared(mine, arm)}." for arm in dict.fromkeys(entry.arm for entry in mine)]
        told.append(
            f"With {percent(level)} of the weights removed by {pruning.method.capitalize()}, test perplexity is "
            f"{listed(values)}; it was {significant(pruning.dense.perplexity)} before. {' '.join(arms)}"
        )
    return told


def _compared(entries: list[PairedDifference], arm: str) -> str:
    return "; ".join(paired_words(entry) for entry in entries if entry.arm == arm)


def _cancelled(allocation: Allocation) -> str:
    """[M13] and [M17]: settings that a binding budget cancels, where that happened."""
    if not allocation.dual:
        return "The budget does not bind." if allocation.dual == 0 else ""
    if allocation.target == "sparsity":
        return (
            "The budget is an equality, so the reward b and the weight η of the program cancel: they "
            "change the price, not the sparsities."
        )
    costs = np.array([unit.cost for unit in allocation.units])
    alpha = np.asarray(ProgramSettings.of(allocation.program).alpha, np.float64)
    if np.ptp(costs) == 0 and np.isfinite(alpha).all() and np.ptp(alpha) == 0:
        return (
            "The budget binds and all costs are equal, so α and γ cancel: only β, the costs and the "
            "bounds shape this allocation."
        )
    return ""


def _power(records: RunRecords) -> list[str]:
    """How large a difference would have had to be: 2.8 standard errors, 80% power at a two-sided 5% level."""
    stages = [stage for stage in (records.adaptation, records.pruning) if stage]
    entries = paired_differences(pair for stage in stages for pair in stage.paired)
    known = sorted((entry.standard_error, entry.metric) for entry in entries if entry.standard_error is not None)
    largest = {METRICS[metric]: error for error, metric in known}
    if not largest:
        return []
    sizes = [
        f"{fixed(2.8 * metric.scale * error, 1 if metric.scale > 1 else 3)} {metric.unit} in {metric.phrase}"
        for metric, error in largest.items()
    ]
    return [
        "Test sets of this size see only so much: to be found four times in five, a true difference would "
        f"have to be about {listed(sizes)}. “No significant difference” is no proof of equality.",
        f"{len(entries)} comparisons were made; where nothing differs, about one in twenty still reaches two "
        "standard errors by chance. Standard errors cover the sample of test questions or texts, not the "
        "choice of calibration data, nor training beyond the seeds shown.",
    ]
