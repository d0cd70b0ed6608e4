"""What the page says: one function a section, `RunDirectory -> Section`, gathered in `SECTIONS`."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from curvjax.records import Allocation, Pair, plain
from curvjax.report import gain_tables, outcome_tables, words
from curvjax.report.allocation_figures import amounts_figure
from curvjax.report.gain_figures import damping_figure, gains_figure, gradient_figure, share_figure, step_figure
from curvjax.report.numbers import Real, fixed, listed, memory, percent
from curvjax.report.outcome_figures import adaptation_figure, paired_figure, pruning_figure
from curvjax.report.profile import extent, leading
from curvjax.report.promise import promise_figure, promise_table, promise_words, steps_of
from curvjax.report.run_directory import RunDirectory
from curvjax.report.settings import Measurement
from curvjax.report.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Heading(NamedTuple):
    """A heading within a section."""

    text: str
    kind = "heading"


class Bullets(NamedTuple):
    """An unordered list."""

    texts: tuple[str, ...]
    kind = "bullets"


class Picture(NamedTuple):
    """name: file name without suffix. alt: what it shows, for those who cannot see it. caption: how to read it.

    draw: `width in inches -> Figure`.
    """

    name: str
    alt: str
    caption: str
    draw: "Callable[[Real], Figure]"
    kind = "picture"


Part: TypeAlias = str | Heading | Bullets | Picture | Table
"""What a section is made of; text is a paragraph."""


class Section(NamedTuple):
    """name: the anchor. title: heading. parts: from top to bottom."""

    name: str
    title: str
    parts: Sequence[Part]


def gains(records: RunDirectory) -> Section:
    """The certified intervals."""
    profile, measurement = records.profile, Measurement.of(records.gains.origin.settings)
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
        lambda width: gains_figure(records.gains, width=width),
    )
    return Section("gains", "Gains, layer by layer", [explanation, picture])


def damping(records: RunDirectory) -> Section:
    """What the damping does to gains, shares and steps."""
    profile, measurement = records.profile, Measurement.of(records.gains.origin.settings)
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
            lambda width: damping_figure(records.gains, width=width),
        )
        shares = Picture(
            "shares",
            "Heat map of each layer's share of the total gain at each damping, from the gradient norm at "
            "the top to small damping and the chosen policy at the bottom.",
            "Each layer's share of the total gain, as a multiple of an equal share, from the gradient "
            "norm (infinite damping, top) to light damping; the last row is the chosen policy, from which "
            "the allocations are made.",
            lambda width: share_figure(records.gains, width=width),
        )
        steps = Picture(
            "steps",
            "Left: relative step length of every layer against damping, rising as damping falls. Right: "
            "the damping chosen for every layer.",
            "Left: length of the step |d| against the layer's parameters |θ|; black dots mark the chosen "
            "policy. The further the step, the less a quadratic model can be believed. Right: the damping "
            "that the policy chose for each layer.",
            lambda width: step_figure(records.gains, width=width),
        )
        parts += [curves, shares, words.step_words(profile, measurement), steps, gain_tables.damping_table(profile)]
    return Section("damping", "What the damping does", parts)


def promise(records: RunDirectory) -> Section:
    """What the steps promised, and what the loss kept of it."""
    steps = steps_of(records.gains)
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
        lambda width: promise_figure(records.gains, width=width),
    )
    return Section(
        "promise", "Promise against fact", [promise_words(records.gains, steps), picture, promise_table(steps)]
    )


def gradient_norm(records: RunDirectory) -> Section:
    """How far gains are gradient norms."""
    limit = "As the damping grows, τζ² tends to |g|²: the damping moves the score between curvature and gradient norm."
    parts: list[Part] = [f"{limit} {words.gradient_words(records.profile)}"]
    if records.profile.dampings.size > 1:
        picture = Picture(
            "gradient",
            "Left: scatter of gain against squared gradient norm, one dot per layer, rank correlation "
            f"{fixed(records.profile.correlation)}. Right: the ratio of damping times gain to squared gradient norm "
            "rises to 1 as damping grows.",
            "Left: gain at the chosen damping beside the squared gradient norm, one dot per layer (the "
            "bar is its bracket). Right: τζ² against |g|²; where the ratio is near 1, the gain is the "
            "gradient norm under another name.",
            lambda width: gradient_figure(records.gains, width=width),
        )
        parts.append(picture)
    return Section("gradient-norm", "Beside the gradient norm", parts)


def allocation(records: RunDirectory) -> Section:
    """Ranks and sparsities of every layer, budgets and programs."""
    parts: list[Part] = []
    for target in dict.fromkeys(each.target for each in records.allocations):
        of_target = records.of(target)
        plural = {"rank": "Ranks", "sparsity": "Sparsities"}.get(target, target.capitalize())
        parts += [Heading(plural), words.dual_words(of_target), _amounts_picture(records, target, of_target)]
    if records.allocations:
        parts += [Heading("Budgets"), gain_tables.budget_table(records.allocations)]
        parts.append(outcome_tables.program_table(records.allocations))
    else:
        parts.append("No allocation was made in this run; `curvjax allocate` makes one from these gains.")
    return Section("allocation", "What was allocated", parts)


def outcomes(records: RunDirectory) -> Section:
    """Fine-tunes and pruned models beside their controls."""
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


def cost(records: RunDirectory) -> Section:
    """Products, gradients, seconds and memory."""
    parts: list[Part] = [gain_tables.cost_table(records.gains.origin.cost, records.profile)]
    if records.run and records.run.stages:
        peak = memory(records.run.origin.cost.peak_memory_bytes)
        parts += [gain_tables.stage_table(records.run), f"Peak memory of the whole run: {peak}."]
    return Section("cost", "What it cost", parts)


def limits(records: RunDirectory) -> Section:
    """What may not be concluded."""
    return Section("limits", "What these numbers do and do not show", [Bullets(tuple(words.limits(records)))])


def settings(records: RunDirectory) -> Section:
    """All that is needed to do it again."""
    scores = records.gains
    tables = {
        "Model.": plain(scores.origin.model),
        "Calibration data.": plain(scores.origin.text) if scores.origin.text else {},
        "Settings of the scores.": {"score": scores.score, "granularity": scores.granularity} | scores.origin.settings,
        "Settings of the run.": records.run.settings if records.run else {},
        "Library versions.": records.origin.versions,
        "Machine.": records.origin.machine,
    }
    parts = [outcome_tables.settings_table(caption, chosen) for caption, chosen in tables.items() if chosen]
    return Section("settings", "Settings, data and versions", parts)


def layers(records: RunDirectory) -> Section:
    """All numbers of every unit."""
    return Section("layers", "Every layer", [gain_tables.layers_table(records)])


SECTIONS: tuple[Callable[[RunDirectory], Section], ...] = (
    gains,
    damping,
    promise,
    gradient_norm,
    allocation,
    outcomes,
    cost,
    limits,
    settings,
    layers,
)
"""The page from top to bottom; a new section is a function and its name here."""


def _amounts_picture(records: RunDirectory, target: str, allocations: Sequence[Allocation]) -> Picture:
    controls = [records.controls(each) for each in allocations]
    if target == "sparsity":
        name = "sparsities"
        alt = (
            "Bar charts of the share of weights removed from each layer, one per overall sparsity, "
            "with uniform and permuted sparsities for comparison."
        )
        caption = (
            "Share of weights removed from every layer: by gain (bars), equal everywhere, and the gains permuted among "
            "layers."
        )
    else:
        name, what = {"rank": ("ranks", "Rank")}.get(target, (target, target.capitalize()))
        alt = f"Bar chart of the {what.lower()} given to each layer, with uniform and permuted ones for comparison."
        caption = f"{what} of every layer: allocated by gain (bars), and its continuous optimum."
        if target == "rank":
            caption = (
                "Rank of every layer's adapters: allocated by gain (bars), equal everywhere, and the gains permuted "
                "among layers. How many parameters each arm trains is in the table of outcomes."
            )
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
