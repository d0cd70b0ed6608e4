"""A plausible run as typed values, for any number of layers: gains of real size, allocations, outcomes."""

from dataclasses import replace

import numpy as np

from curvjax.records import (
    Adaptation,
    AdaptedArm,
    Allocation,
    Bracket,
    Budget,
    Cost,
    GainEvidence,
    ModelOrigin,
    Origin,
    Pair,
    PrunedArm,
    Pruning,
    Ranges,
    Run,
    Scores,
    Stage,
    TaskOutcome,
    TextOrigin,
    TextOutcome,
    UnitAmount,
    UnitScore,
)
from curvjax.report import RunRecords

# zeta^2 of SmolLM2-135M at damping 0.1 (ggn, 256 tokens), layers 0..29
MEASURED = (
    "2.84 1.83 2.15 1.60 1.36 1.31 1.40 1.37 1.46 1.63 1.54 3.01 1.60 1.52 1.42 1.46 1.56 1.28 1.62 1.75 "
    "1.69 1.64 1.69 1.70 1.41 1.14 1.17 1.70 2.40 4.71"
)
DAMPINGS = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
TRUST = 0.02
SHA = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


class _Spectrum:
    """A layer as a spectral measure: weights w_j of the gradient on eigenvalues l_j."""

    def __init__(self, rng, at_tenth):
        self.values = np.geomspace(1e-4, rng.uniform(3, 60), 24)
        weights = self.values ** rng.uniform(0.5, 1.0) * rng.lognormal(0, 0.6, 24)
        self.weights = weights * at_tenth / np.sum(weights / (self.values + 0.1))
        self.norm = 40.0 + 10 * rng.uniform()

    def gain(self, damping):
        return float(np.sum(self.weights / (self.values + damping)))

    def step(self, damping):
        return float(np.sqrt(np.sum(self.weights / (self.values + damping) ** 2)))

    def damping_for(self, share):
        low, high = 1e-8, 1e3
        for _ in range(80):
            middle = np.sqrt(low * high)
            low, high = (middle, high) if self.step(middle) > share * self.norm else (low, middle)
        return float(middle)


def _spectra(layers):
    rng = np.random.default_rng(1)
    known = np.array([float(value) for value in MEASURED.split()])
    values = np.interp(np.linspace(0, 29, layers), np.arange(30), known)
    return rng, [_Spectrum(rng, value) for value in values]


def run_of(layers=30):
    """A whole run; equal at every call."""
    gains = gains_of(layers)
    ranks, sparsities = ranks_of(gains), [sparsities_of(gains, share) for share in (0.5, 0.6)]
    seconds = {"prepare": 6.2, "gains": 312.0, "allocation": 1.4, "adaptation": 301.5, "pruning": 164.0, "report": 9.1}
    run = Run(
        origin=replace(gains.origin, cost=Cost(gradient_seconds=3.8, peak_memory_bytes=int(4.4 * 2**30))),
        documents=600,
        settings={"model": "smollm2-135m", "seed": 1, "score": {"tokens": 2048, "rtol": 0.1}, "sparsities": [0.5, 0.6]},
        stages=tuple(Stage(stage=stage, seconds=took) for stage, took in seconds.items()),
        created="2026-11-03T10:15:00+00:00",
        adaptation=_adaptation(ranks),
        pruning=_pruning(sparsities),
    )
    return RunRecords(gains=gains, allocations=(ranks, *sparsities), run=run)


def write(folder, records):
    """The folder, with the records in it."""
    folder.mkdir(exist_ok=True)
    files = {
        "gains": records.gains,
        "descent": records.descent,
        "compare": records.comparison,
        "transfer": records.transfer,
        "rebuilt": records.rebuilt,
        "card": records.card,
        **records.evaluations,
        **records.landscapes,
    }
    for name, value in files.items():
        if value:
            value.save(folder / f"{name}.json")
    for allocation in records.allocations:
        share = f"-{100 * allocation.shares.mean():.0f}" if allocation.target == "sparsity" else ""
        allocation.save(folder / f"allocation-{allocation.target}{share}.json")
    if records.run:
        records.run.save(folder / "run.json")
    return folder


def gains_of(layers=30):
    rng, sources = _spectra(layers)
    units = tuple(_unit(k, source, rng) for k, source in enumerate(sources))
    products = 14 * layers
    cost = Cost(
        seconds=1.9 * products,
        gradient_seconds=3.8,
        gradient_equivalents=0.5 * products,
        products=products,
        peak_memory_bytes=int(3.1 * 2**30),
    )
    origin = Origin(
        model=ModelOrigin(name="SmolLM2-135M-Instruct", sha256=SHA, parameters=134_515_008, layers=layers),
        text=TextOrigin(source="squad", sha256=SHA, tokens=2048, sequences=8, length=256),
        settings={"curvature": "ggn", "policy": "trust-radius", "damping": TRUST, "rtol": 0.1, "seed": 1},
        cost=cost,
        versions={"curvjax": "0.1.0", "jax": "0.10.2", "flax": "0.12.8"},
        machine={"system": "Linux", "cores": 2},
    )
    return Scores(score="gain", source="curvjax", granularity="layer", units=units, origin=origin)


def with_bracket(gains, k, place=0, **changes):
    """The gains with one bracket of unit k changed, at the chosen damping or a `place` in the grid."""
    brackets = list(gains.units[k].gain.brackets)
    brackets[place] = replace(brackets[place], **changes)
    return with_evidence(gains, k, brackets=tuple(brackets))


def with_evidence(gains, k, **changes):
    """The gains with what was measured of unit k changed."""
    return with_unit(gains, k, gain=replace(gains.units[k].gain, **changes))


def with_unit(value, k, **changes):
    """Gains or an allocation with unit k changed."""
    units = list(value.units)
    units[k] = replace(units[k], **changes)
    return replace(value, units=tuple(units))


def at_one_damping(gains):
    """The gains without their grid."""
    for k, unit in enumerate(gains.units):
        gains = with_evidence(gains, k, brackets=unit.gain.brackets[:1])
    return gains


def with_stage(records, stage, **changes):
    """The run with its `adaptation` or its `pruning` changed."""
    changed = replace(getattr(records.run, stage), **changes)
    return replace(records, run=replace(records.run, **{stage: changed}))


def pair(difference, error, metric="gold_nll", *, arm="curvature", against="uniform", seed=1, sparsity=None):
    return Pair(
        arm=arm, against=against, seed=seed, metric=metric, difference=difference, standard_error=error,
        sparsity=sparsity,
    )  # fmt: skip


def _unit(k, source, rng):
    chosen = source.damping_for(TRUST)
    brackets = [_bracket(source, f"trust radius {TRUST:g}", chosen, rng)]
    brackets += [_bracket(source, f"{damping:g}", damping, rng) for damping in DAMPINGS]
    evidence = GainEvidence(
        gradient_norm2=float(source.weights.sum()),
        trace=float(100 * source.values.sum()),
        trace_standard_error=20.0,
        largest_ritz=float(source.values.max()),
        products=14,
        seconds=26.0,
        gradient_equivalents=7.0,
        brackets=tuple(brackets),
    )
    return UnitScore(
        name=f"layers.{k}",
        index=k,
        parameters=3_540_096,
        parameter_norm=source.norm,
        projections={f"layers.{k}.mlp.up_proj": (576, 1536)},
        value=brackets[0].middle,
        lower=brackets[0].lower,
        upper=brackets[0].upper,
        gain=evidence,
    )


def _bracket(source, label, damping, rng):
    gap = min(0.6, 0.02 * rng.uniform(0.2, 1.5) / damping**0.5)
    value = source.gain(damping)
    return Bracket(
        label=label,
        damping=damping,
        lower=value * (1 - gap * 0.3),
        upper=value * (1 - gap * 0.3) / (1 - gap),
        step_norm=source.step(damping),
        iterations=14,
        status="converged" if gap <= 0.1 else "open",
    )


def ranks_of(gains):
    quality = gains.values / gains.values.sum()
    continuous = quality * 8 * len(quality)
    amount = np.floor(continuous).astype(int)
    amount[np.argsort(amount - continuous)[: 8 * len(quality) - amount.sum()]] += 1
    cost = 43_000.0
    planned = float(amount.sum() * cost)
    return _allocation(
        gains,
        amount,
        continuous,
        target="rank",
        cost=cost,
        program={"target": "rank", "alpha": 0.0, "gamma": 1.0, "beta": 1.0, "maximum": 64},
        dual=2.9e-7,
        dual_meaning="one more trained parameter lowers the program's cost by this much",
        budget=Budget(requested=8 * cost * len(quality), planned=planned, unit="parameters", realised=planned),
    )


def sparsities_of(gains, sparsity):
    raw, size = gains.values**-0.5, 3_540_096
    share = np.minimum(sparsity * raw / raw.mean(), 0.95)
    amount = np.round(share * size).astype(int)
    planned = float(amount.sum())
    return _allocation(
        gains,
        amount,
        share * size,
        target="sparsity",
        cost=1.0,
        program={"target": "sparsity", "kappa": 0.5, "max_sparsity": 0.95},
        dual=-0.031,
        dual_meaning="removing one more weight raises the program's cost by this much",
        budget=Budget(requested=sparsity * size * len(raw), planned=planned, unit="weights", realised=planned),
    )


def _allocation(gains, amount, continuous, *, cost, **fields):
    quality = gains.values / gains.values.sum()
    units = tuple(
        UnitAmount(
            name=unit.name,
            index=unit.index,
            amount=int(amount[k]),
            cost=cost,
            size=unit.parameters,
            continuous=float(continuous[k]),
            score=unit.value,
            quality=float(quality[k]),
            maximum=64.0,
        )
        for k, unit in enumerate(gains.units)
    )
    amounts = tuple(float(value) for value in amount)
    certificate = Ranges(least=amounts, most=amounts, certified=len(amounts), widest=0.0)
    return Allocation(
        units=units,
        origin=gains.origin,
        score="gain",
        scores_sha256=SHA,
        certificate=certificate,
        residual=2e-12,
        status="optimal",
        **fields,
    )


def _adaptation(ranks):
    rng = np.random.default_rng(2)
    amounts = list(ranks.amounts.values())
    arms, paired = [], []
    for seed in (1, 2, 3):
        for arm in ("curvature", "uniform", "permuted"):
            own = {"curvature": amounts, "uniform": [8] * len(amounts), "permuted": rng.permutation(amounts).tolist()}
            arms.append(_adapted(arm, seed, own[arm], rng))
        for against in ("uniform", "permuted"):
            for metric, size in (("gold_nll", 0.004), ("accuracy", 0.006)):
                paired.append(pair(float(rng.normal(0, size)), size, metric, against=against, seed=seed))
    base = TaskOutcome(
        questions=400,
        accuracy=0.747,
        accuracy_standard_error=0.022,
        accuracy_per_character=0.70,
        accuracy_per_character_standard_error=0.023,
        gold_nll=2.91,
        gold_nll_standard_error=0.09,
    )
    return Adaptation(
        task="sciq",
        metric="gold_nll",
        train_documents=500,
        test_questions=400,
        steps=60,
        tokens_per_step=1024,
        base=base,
        arms=tuple(arms),
        paired=tuple(paired),
    )


def _adapted(arm, seed, ranks, rng):
    outcome = TaskOutcome(
        questions=400,
        accuracy=0.79 + rng.normal(0, 0.006),
        accuracy_standard_error=0.0204,
        accuracy_per_character=0.77 + rng.normal(0, 0.006),
        accuracy_per_character_standard_error=0.021,
        gold_nll=1.62 + rng.normal(0, 0.01),
        gold_nll_standard_error=0.052,
    )
    seconds = 95.0 + rng.uniform(0, 8)
    parameters = sum(ranks) * 43_000
    return AdaptedArm(arm=arm, seed=seed, parameters=parameters, ranks=tuple(ranks), outcome=outcome, seconds=seconds)


def _pruning(allocations):
    rng = np.random.default_rng(3)
    perplexities = {0.5: (42.0, 44.3, 44.9), 0.6: (97.6, 125.3, 173.8)}
    names, arms, paired = ("curvature", "uniform", "permuted"), [], []
    for allocation, sparsity in zip(allocations, (0.5, 0.6), strict=True):
        shares, found = allocation.shares, perplexities[sparsity]
        own = (shares, [sparsity] * len(shares), rng.permutation(shares))
        for arm, perplexity, vector in zip(names, found, own, strict=True):
            sparsities = tuple(float(share) for share in vector)
            arms.append(
                PrunedArm(
                    arm=arm, seed=1, sparsity=sparsity, kappa=0.5, sparsities=sparsities, realised=sparsity,
                    outcome=_text(perplexity, 0.045),
                )
            )  # fmt: skip
        for against, perplexity in zip(names[1:], found[1:], strict=True):
            difference = float(np.log(found[0] / perplexity))
            paired.append(pair(difference, 0.017, "nll", against=against, sparsity=sparsity))
    return Pruning(
        method="wanda",
        calibration="squad",
        test="boolq",
        dense=_text(20.37, 0.04),
        arms=tuple(arms),
        paired=tuple(paired),
    )


def _text(perplexity, error):
    nll = float(np.log(perplexity))
    return TextOutcome(tokens=8192, nll=nll, standard_error=error, perplexity=perplexity)
