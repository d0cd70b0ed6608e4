"""What the page says: one function a section, `RunRecords -> Section`, gathered in `SECTIONS`."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from curvjax.records import Allocation, Pair, plain
from curvjax.report import gain_tables, outcome_tables, words
from curvjax.report.allocation_figures import amounts_figure
from curvjax.report.card import card_section
from curvjax.report.comparison import comparison_section
from curvjax.report.descent import descent_section
from curvjax.report.evaluation import evaluation_section
from curvjax.report.gain_figures import damping_figure, gains_figure, gradient_figure, share_figure, step_figure
from curvjax.report.landscape import landscape_section
from curvjax.report.numbers import Real, fixed, listed, memory, percent
from curvjax.report.outcome_figures import adaptation_figure, paired_figure, pruning_figure
from curvjax.report.parts import Bullets, Heading, Part, Picture, Section
from curvjax.report.profile import extent, gain_profile, leading
from curvjax.report.promise import promise_figure, promise_table, promise_words, steps_of
from curvjax.report.rebuilt import rebuilt_section
from curvjax.report.run_records import RunRecords
from curvjax.report.settings import Measurement
from curvjax.report.transfer import transfer_section

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def gains_section(records: RunRecords) -> Section | None:
    """The certified intervals."""
    if (scores := records.gains) is None:
        return None
    profile, measurement = gain_profile(scores), Measurement.of(scores.origin.settings)
    top = listed([profile.labels[k] for k in leading(profile.chosen.middle, 3)])
    explanation = (
        "The gain of a layer is ζ² = gᵀ(C + τI)⁻¹g: twice the drop in loss, in nats, that a damped "
        "quadratic model promises from moving this layer alone. g is the layer's gradient and C its "
        f"curvature, here {words.curvature_words(measurement)}; τ is the damping. Here "
        f"{words.policy_words(measurement)}. Each gain is known only between a lower and an upper "
        "bound, both from the same few products with C (Gauss and Gauss-Radau quadrature)."
    )
    picture = Picture(
        "gains",
        f"Gain of each of {len(profile.names)} units with lower and upper bound; largest in {top}. Below, "
        f"the width of each interval, at most {percent(extent(profile.chosen.gap)[1])}.",
        "Top: lower and upper bound of the gain ζ² of every layer at the chosen damping; the true value "
        "lies between the two ticks. Bottom: width of that interval, relative to its upper end; orange "
        "where the width asked for was not met.",
        lambda width: gains_figure(scores, width=width),
    )
    return Section("gains", "Gains, layer by layer", [explanation, picture])


def damping_section(records: RunRecords) -> Section | None:
    """What the damping does to gains, shares and steps."""
    if (scores := records.gains) is None:
        return None
    profile, measurement = gain_profile(scores), Measurement.of(scores.origin.settings)
    parts: list[Part] = [
        "The damping decides how far a layer may move, and with it which layers look promising. No value of it is the "
        "right one. " + words.order_words(profile)
    ]
    if profile.dampings.size > 1:
        curves = Picture(
            "damping",
            "Left: gain of every layer against damping, falling lines that cross. Right: rank correlation "
            "of the layers' order with that of the chosen policy and of the gradient norm, against damping.",
            "Left: gain of every layer against a common damping; in colour the three largest at the "
            "chosen policy and those whose rank changes most, with their brackets shaded; black dots mark "
            "the damping that the policy chose. Right: agreement of the layers' order with two others; "
            "hollow where some bracket is wider than asked for.",
            lambda width: damping_figure(scores, width=width),
        )
        shares = Picture(
            "shares",
            "Heat map of each layer's share of the total gain at each damping, from the gradient norm at "
            "the top to small damping and the chosen policy at the bottom.",
            "Each layer's share of the total gain, as a multiple of an equal share, from the gradient "
            "norm (infinite damping, top) to light damping; the last row is the chosen policy, from which "
            "the allocations are made.",
            lambda width: share_figure(scores, width=width),
        )
        steps = Picture(
            "steps",
            "Left: relative step length of every layer against damping, rising as damping falls. Right: "
            "the damping chosen for every layer.",
            "Left: length of the step |d| against the layer's parameters |θ|; black dots mark the chosen "
            "policy. The further the step, the less a quadratic model can be believed. Right: the damping "
            "that the policy chose for each layer.",
            lambda width: step_figure(scores, width=width),
        )
        parts += [curves, shares, words.step_words(profile, measurement), steps, gain_tables.damping_table(profile)]
    return Section("damping", "What the damping does", parts)


def promise_section(records: RunRecords) -> Section | None:
    """What the steps promised, and what the loss kept of it."""
    if (scores := records.gains) is None:
        return None
    steps = steps_of(scores)
    if steps is None:
        untold = (
            "Whether the loss keeps what the quadratic model promises was not tried; `curvjax score --promise` does."
        )
        return Section("promise", "Promise against fact", [untold])
    picture = Picture(
        "promise",
        "Left: share of the promise that the loss keeps, falling with the step's length, one line per layer. Right: "
        "decrease of the loss against the promised one, one dot per layer.",
        "Left: kept share of every layer's Newton step against its length; blue the median. Below 0 the step raises "
        "the loss. Right: what was promised and what came of it, on the tokens of the model and on fresh ones; on the "
        "grey line a promise is kept.",
        lambda width: promise_figure(scores, width=width),
    )
    return Section("promise", "Promise against fact", [promise_words(scores, steps), picture, promise_table(steps)])


def gradient_norm_section(records: RunRecords) -> Section | None:
    """How far gains are gradient norms."""
    if (scores := records.gains) is None:
        return None
    profile = gain_profile(scores)
    limit = "As the damping grows, τζ² tends to |g|²: the damping moves the score between curvature and gradient norm."
    parts: list[Part] = [f"{limit} {words.gradient_words(profile)}"]
    if profile.dampings.size > 1:
        picture = Picture(
            "gradient",
            "Left: scatter of gain against squared gradient norm, one dot per layer, rank correlation "
            f"{fixed(profile.correlation)}. Right: the ratio of damping times gain to squared gradient norm "
            "rises to 1 as damping grows.",
            "Left: gain at the chosen damping beside the squared gradient norm, one dot per layer (the "
            "bar is its bracket). Right: τζ² against |g|²; where the ratio is near 1, the gain is the "
            "gradient norm under another name.",
            lambda width: gradient_figure(scores, width=width),
        )
        parts.append(picture)
    return Section("gradient-norm", "Beside the gradient norm", parts)


def allocation_section(records: RunRecords) -> Section | None:
    """Ranks and sparsities of every layer, budgets and programs."""
    parts: list[Part] = []
    for target in dict.fromkeys(each.target for each in records.allocations):
        of_target = records.of(target)
        plural = {"rank": "Ranks", "sparsity": "Sparsities"}.get(target, target.capitalize())
        parts += [Heading(plural), *([told] if (told := words.dual_words(of_target)) else [])]
        parts.append(_amounts_picture(records, target, of_target))
    if records.allocations:
        parts += [Heading("Budgets"), gain_tables.budget_table(records.allocations)]
        parts.append(outcome_tables.program_table(records.allocations))
    elif records.gains and not records.descent:
        parts.append("No allocation was made in this run; `curvjax allocate` makes one from these gains.")
    return Section("allocation", "What was allocated", parts) if parts else None


def outcomes_section(records: RunRecords) -> Section | None:
    """Fine-tunes and pruned models beside their controls."""
    if not (records.gains or records.run):
        return None
    parts: list[Part] = [Heading("Low-rank fine-tuning")]
    if adaptation := records.adaptation:
        told = "Outcome of fine-tuning, every arm and seed"
        parts.append(_outcome_picture("adaptation", told, lambda width: adaptation_figure(adaptation, width=width)))
        parts.append(outcome_tables.adaptation_table(adaptation))
        parts += _paired_parts("adaptation", adaptation.paired, of="same test questions")
    else:
        parts.append("This stage was not run.")
    parts.append(Heading("Pruning"))
    if pruning := records.pruning:
        told = "Test perplexity of every pruned model"
        parts.append(_outcome_picture("pruning", told, lambda width: pruning_figure(pruning, width=width)))
        parts.append(outcome_tables.pruning_table(pruning))
        parts += _paired_parts("pruning", pruning.paired, of="same test tokens")
    else:
        parts.append("This stage was not run.")
    return Section("outcomes", "What came of it", parts)


def cost_section(records: RunRecords) -> Section | None:
    """Products, gradients, seconds and memory."""
    parts: list[Part] = [gain_tables.cost_table(records.gains)] if records.gains else []
    if records.run and records.run.stages:
        peak = memory(records.run.origin.cost.peak_memory_bytes)
        parts += [gain_tables.stage_table(records.run), f"Peak memory of the whole run: {peak}."]
    return Section("cost", "What it cost", parts) if parts else None


def limits_section(records: RunRecords) -> Section | None:
    """What may not be concluded."""
    told = tuple(words.limits(records))
    return Section("limits", "What these numbers do and do not show", [Bullets(told)]) if told else None


def settings_section(records: RunRecords) -> Section | None:
    """All that is needed to do it again."""
    if (origin := records.origin) is None:
        return None
    scores, found, made = records.gains, records.comparison, records.rebuilt
    tables = {
        "Model.": plain(origin.model),
        "Calibration data.": plain(origin.text) if origin.text else {},
        "Settings of the scores.": {"score": scores.score, "granularity": scores.granularity} | scores.origin.settings
        if scores
        else {},
        "Settings of the descent.": records.descent.settings if records.descent else {},
        "Settings of the comparison.": {"program": found.program} | found.origin.settings if found else {},
        "Settings of the rebuild.": {"method": made.method} | made.settings if made else {},
        "Settings of the run.": records.run.settings if records.run else {},
        "Library versions.": origin.versions,
        "Machine.": origin.machine,
    }
    parts = [outcome_tables.settings_table(caption, chosen) for caption, chosen in tables.items() if chosen]
    return Section("settings", "Settings, data and versions", parts)


def layers_section(records: RunRecords) -> Section | None:
    """All numbers of every unit."""
    return (
        Section("layers", "Every layer", [gain_tables.layers_table(records.gains, records.allocations)])
        if records.gains
        else None
    )


SECTIONS: tuple[Callable[[RunRecords], Section | None], ...] = (
    gains_section,
    damping_section,
    promise_section,
    landscape_section,
    gradient_norm_section,
    card_section,
    allocation_section,
    descent_section,
    comparison_section,
    transfer_section,
    rebuilt_section,
    evaluation_section,
    outcomes_section,
    cost_section,
    limits_section,
    settings_section,
    layers_section,
)
"""The page from top to bottom; a new section is a function, which gives None where nothing is there, and its name."""


def sections_of(records: RunRecords) -> list[Section]:
    """What the page says of a directory."""
    return [found for section in SECTIONS if (found := section(records))]


def _amounts_picture(records: RunRecords, target: str, allocations: Sequence[Allocation]) -> Picture:
    controls = [records.controls(each) for each in allocations]
    name = {"rank": "ranks", "sparsity": "sparsities"}.get(target, target)
    what = "Share of weights removed" if target == "sparsity" else target.capitalize()
    arms = list(dict.fromkeys(arm for own in controls for arm in own))
    beside = f", with {listed(arms)} arms for comparison" if arms else ""
    alt = f"Bar chart, one for each allocation: {what[0].lower()}{what[1:]} of every unit{beside}."
    known = {"uniform": "equal everywhere", "permuted": "the gains permuted among layers"}
    drawn = ["allocated (bars)", *(known.get(arm, arm) for arm in arms)]
    drawn += [] if target == "sparsity" else ["its continuous optimum"]
    caption = f"{what} of every unit: {listed(drawn)}."
    if target == "rank" and arms:
        caption += " How many parameters each arm trains is in the table of outcomes."
    return Picture(name, alt, caption, lambda width: amounts_figure(allocations, controls=controls, width=width))


def _outcome_picture(name: str, told: str, draw: "Callable[[Real], Figure]") -> Picture:
    alt = f"{told}; the values are in the table that follows."
    return Picture(name, alt, f"{told}. Bars: ± two standard errors.", draw)


def _paired_parts(stage: str, paired: Sequence[Pair], *, of: str) -> list[Part]:
    if not paired:
        return []
    picture = Picture(
        f"{stage}-paired",
        "Paired differences between arms with two standard errors, against zero; the values are in the table that "
        "follows.",
        "Differences on the same test items. Bars: ± two standard errors; filled where they exclude zero.",
        lambda width: paired_figure(paired, width=width),
    )
    return [picture, outcome_tables.paired_table(paired, of=of)]
