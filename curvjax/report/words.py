"""Sentences made from the numbers. No sentence claims more than its numbers carry."""
# ruff: noqa: RUF001 (Greek letters are meant)

from collections.abc import Mapping

import numpy as np

from curvjax.report.metrics import METRICS, Comparison, comparisons
from curvjax.report.numbers import count, duration, fixed, listed, percent, setting, signed, significant
from curvjax.report.profile import extent, gain_profile, leading, rank_correlation
from curvjax.report.records import Record, Run

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


def policy_words(policy: Record) -> str:
    """The damping policy in words."""
    value = policy["value"]
    known = {
        "trust_radius": f"each layer's damping is that at which its step is {setting(value)} of its parameters' norm",
        "absolute": f"every layer has the damping {significant(value)}",
        "relative_mean": f"each layer's damping is {significant(value)} times its mean eigenvalue",
        "relative_largest": f"each layer's damping is {significant(value)} times its largest eigenvalue",
    }
    return known.get(policy["name"], f"damping policy {policy['name']} at {significant(value)}")


def kind(gains: Record) -> str:
    """What the units are, in the plural."""
    return "layers" if gains.get("granularity", "layer") == "layer" else "units"


def curvature_words(gains: Record) -> str:
    """The curvature in words."""
    return _CURVATURES.get(gains.get("curvature", ""), f"the curvature {gains.get('curvature')!r}")


def headline(run: Run) -> list[str]:
    """The run in a few sentences: what was scored, how the layers differ, what came of it."""
    return [_scored(run.gains), _ordered(run.gains), *_adapted(run.adaptation), *_pruned(run.pruning)]


def comparison_words(entry: Comparison) -> str:
    """The verdict of one comparison and its numbers, to follow the name of the first arm."""
    metric = METRICS[entry.metric]
    places = 1 if metric.scale > 1 else 3
    error = "" if entry.standard_error is None else f" ± {fixed(metric.scale * entry.standard_error, places)}"
    seeds = f", mean of {len(entry.pairs)} seeds" if len(entry.pairs) > 1 else ""
    numbers = f"{metric.phrase} {signed(metric.scale * entry.difference, places)}{error} {metric.unit}{seeds}"
    if entry.verdict in {"better", "worse"}:
        return f"{entry.verdict} than {entry.against} ({numbers})"
    if entry.verdict == "no significant difference":
        return f"no significant difference from {entry.against} ({numbers})"
    return f"no claim against {entry.against}, for want of a standard error ({numbers})"


def order_words(gains: Record) -> str:
    """How the order of layers depends on the damping."""
    profile = gain_profile(gains)
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


def gradient_words(gains: Record) -> str:
    """How near the gain's order is to that of the plain gradient norm."""
    profile = gain_profile(gains)
    return (
        "At the chosen damping the gains and the squared gradient norms order the layers with a rank "
        f"correlation of {fixed(rank_correlation(profile.chosen.middle, profile.gradient_norm2))}. Where "
        "this is near 1 the curvature changes little of what the gradient norm alone would say. Which of "
        "the two allocates better is not settled by this number."
    )


def step_words(gains: Record) -> str:
    """How far the steps reach."""
    profile = gain_profile(gains)
    step, tau = profile.chosen.step, profile.chosen.damping
    if gains["policy"]["name"] == "trust_radius":
        met = f"At the chosen policy every step is about {percent(float(np.nanmedian(step)))} of its layer"
    else:
        short, long = extent(step)
        met = f"At the chosen policy the steps are {percent(short)} to {percent(long)} of their layers"
    least, most = extent(tau)
    return f"{met}, with dampings from {significant(least, 2)} to {significant(most, 2)}."


def dual_words(allocations: Mapping[str, Record]) -> str:
    """The dual prices with their meaning, `name -> allocation`; and what dropped out because the budget binds."""
    meanings: dict[str, list[str]] = {}
    for name, allocation in allocations.items():
        meaning = str(allocation.get("dual_meaning", "its meaning was not recorded")).rstrip(".")
        meanings.setdefault(meaning, []).append(f"{significant(allocation.get('dual'))} ({name})")
    told = [f"Dual price {listed(prices)}: {meaning}." for meaning, prices in meanings.items()]
    told += dict.fromkeys(filter(None, map(_cancelled, allocations.values())))
    return " ".join(told)


def limits(run: Run) -> list[str]:
    """What the numbers do and do not show, one statement each."""
    gains = run.gains
    data = gains["data"]
    told = [
        "The certificate is numerical, not statistical: the true ζ² of this model on these calibration "
        "tokens lies in the interval, up to rounding. It says nothing of other texts, another sample or "
        "another seed.",
        f"The gains rest on one sample, {count(data.get('tokens'))} tokens of {data.get('source')}. How much "
        "they would move with another was not measured here.",
        "The damping is the hidden hyper-parameter. Gains, their order and so the allocations change with "
        "it; heavy damping gives back the gradient norm. A different policy is a different question.",
        "The gain is a local, second-order quantity: what a damped quadratic model promises from moving "
        "one layer alone. It knows nothing of layers moving together, nor of large changes such as "
        "removing half the weights.",
        "That a layer has a large gain does not by itself mean that it should get more capacity. That "
        "step is a modelling choice of the allocation programs, and only the outcomes test it.",
        f"One model ({gains['model'].get('name')}) and one task or text each; nothing here says what "
        "happens with others.",
        "The texts may have been in the model's pretraining data. Arms of one model are comparable with "
        "each other; absolute perplexities and accuracies are not to be compared with other models.",
    ]
    return told + _power(run)


def _scored(gains: Record) -> str:
    profile = gain_profile(gains)
    unmet = [profile.titles[k] for k in np.flatnonzero(~profile.chosen.converged)]
    totals, bracketed = gains["totals"], int(np.isfinite(profile.chosen.gap).sum())
    which = f"all {bracketed}" if bracketed == len(profile.names) else f"{bracketed} of {len(profile.names)}"
    cost = f"{duration(totals.get('seconds'))}, as long as {significant(totals.get('gradient_equivalents'))} gradients"
    words = (
        f"The gains of {which} {kind(gains)} of {gains['model'].get('name')} were "
        f"bracketed on {count(gains['data'].get('tokens'))} tokens: the widest interval is "
        f"{percent(extent(profile.chosen.gap)[1])} of its upper end ({setting(gains['rtol'])} was asked "
        f"for). This took {cost} of the whole model on the same batch."
    )
    words += _read(gains["data"])
    if unmet:
        more = [f"{len(unmet) - 6} more"] if len(unmet) > 6 else []
        words += f" The width was not met, or there is no bracket, in {listed(unmet[:6] + more)}."
    return words


def _read(data: Record) -> str:
    """What stood before each text, and what was cut, where the record knows."""
    words = f" Each text began with {' '.join(data['begin_of_text'])}." if data.get("begin_of_text") else ""
    cut = data.get("cut") or {}
    if cut.get("prompts"):
        words += f" {count(cut['prompts'])} prompts lost their first tokens, {count(cut['tokens'])} in all."
    if cut.get("completions"):
        words += f" {count(cut['completions'])} completions were longer than a row and cut into pieces."
    return words


def _ordered(gains: Record) -> str:
    profile = gain_profile(gains)
    middle = profile.chosen.middle
    top = listed([profile.labels[k] for k in leading(middle, 3)])
    least, most = extent(middle)
    ratio = f"; the largest is {significant(most / least, 2)} times the smallest" if least > 0 else ""
    return (
        f"At the chosen damping the {kind(gains)} {top} have the largest gains, in this order{ratio}. "
        f"Ordered by gain and by gradient norm, the {kind(gains)} have a rank correlation of "
        f"{fixed(rank_correlation(middle, profile.gradient_norm2))}; the order changes with the damping."
    )


def _adapted(adaptation: Record) -> list[str]:
    entries = comparisons(adaptation.get("paired", []))
    sizes = extent(
        np.array([arm["parameters"] for arm in adaptation.get("arms", []) if "parameters" in arm], dtype=float)
    )
    size = count(sizes[0]) if sizes[0] == sizes[1] else f"{count(sizes[0])} to {count(sizes[1])}"
    main = [entry for entry in entries if entry.metric == adaptation.get("metric")] or entries[:1]
    return [
        f"Fine-tuned on {adaptation.get('task')} with low-rank adapters of {size} parameters, ranks by "
        f"{arm}: {_compared(main, arm)}."
        for arm in dict.fromkeys(entry.arm for entry in main)
    ]


def _pruned(pruning: Record) -> list[str]:
    entries, told = comparisons(pruning.get("paired", [])), []
    for level, arm in dict.fromkeys((entry.sparsity, entry.arm) for entry in entries):
        found = {each["arm"]: each["perplexity"] for each in reversed(pruning["arms"]) if each["sparsity"] == level}
        values = [f"{significant(value)} ({name})" for name, value in reversed(found.items())]
        told.append(
            f"With {percent(level)} of the weights removed by "
            f"{str(pruning.get('method', '')).capitalize()}, test perplexity is {listed(values)}; it was "
            f"{significant(pruning['dense']['perplexity'])} before. Sparsities by {arm}: "
            f"{_compared([entry for entry in entries if entry.sparsity == level], arm)}."
        )
    return told


def _compared(entries: list[Comparison], arm: str) -> str:
    return "; ".join(comparison_words(entry) for entry in entries if entry.arm == arm)


def _cancelled(allocation: Record) -> str:
    """[M13] and [M17]: settings that a binding budget cancels, where that happened."""
    if not allocation.get("dual"):
        return "The budget does not bind." if allocation.get("dual") == 0 else ""
    if allocation["target"] == "sparsity":
        return (
            "The budget is an equality, so the reward b and the weight η of the program cancel: they "
            "change the price, not the sparsities."
        )
    costs = np.array([unit["cost"] for unit in allocation["units"]], dtype=float)
    alpha = np.asarray(allocation.get("program", {}).get("alpha", np.nan), dtype=float)
    if np.ptp(costs) == 0 and np.isfinite(alpha).all() and np.ptp(alpha) == 0:
        return (
            "The budget binds and all costs are equal, so α and γ cancel: only β, the costs and the "
            "bounds shape this allocation."
        )
    return ""


def _power(run: Run) -> list[str]:
    """How large a difference would have had to be: 2.8 standard errors, 80% power at a two-sided 5% level."""
    entries = comparisons(run.adaptation.get("paired", [])) + comparisons(run.pruning.get("paired", []))
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
