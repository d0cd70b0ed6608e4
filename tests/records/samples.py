"""One small value of every record, each field that may be left out given something of its own."""

from curvjax.records import (
    Adaptation,
    AdaptedArm,
    AdapterCost,
    Allocation,
    Axis,
    Bracket,
    Budget,
    CardUnit,
    ComparedScore,
    ComparedUnit,
    Comparison,
    Correlations,
    Cost,
    Descent,
    FieldCost,
    GainEvidence,
    Iterate,
    Landscape,
    LayerCard,
    Method,
    ModelOrigin,
    Origin,
    Outcome,
    Pair,
    Promise,
    PrunedArm,
    Pruning,
    Ranges,
    Rebuilt,
    Run,
    Scores,
    Size,
    Speed,
    Stage,
    Step,
    SweepPoint,
    TaskOutcome,
    TextOrigin,
    TextOutcome,
    Transfer,
    TransferUnit,
    UnitAmount,
    UnitPromise,
    UnitRebuilt,
    UnitScore,
    WholeEvidence,
)

TEXT_ORIGIN = TextOrigin(source="squad", sha256="a" * 64, tokens=64, sequences=4, length=16, begin_of_text=("<s>",))
ORIGIN = Origin(
    model=ModelOrigin(name="tiny", sha256="b" * 64, parameters=1000, layers=12, family="llama"),
    text=TEXT_ORIGIN,
    settings={"rtol": 0.05, "grid": [1.0, 0.1]},
    cost=Cost(
        seconds=2.0,
        gradient_seconds=0.5,
        gradient_equivalents=4.0,
        products=24,
        wall_seconds=3.0,
        peak_memory_bytes=1,
    ),
    versions={"curvjax": "0.1.0"},
    machine={"cores": 2},
)


def unit_score(k, **changes):
    bracket = Bracket(
        label="0.1", damping=0.1, lower=1.0, upper=2.0, step_norm=0.5, iterations=2, status="open"
    )  # fmt: skip
    unbounded = Bracket(
        label="0.01", damping=0.01, lower=None, upper=None, step_norm=None, iterations=2, status="unproved"
    )
    evidence = GainEvidence(
        gradient_norm2=3.0,
        trace=None,
        trace_standard_error=None,
        largest_ritz=4.0,
        products=2,
        seconds=0.25,
        gradient_equivalents=0.5,
        brackets=(bracket, unbounded),
        steps=(
            Step(radius=0.02, bracket=bracket, promised=0.8, decrease=0.6, decrease_standard_error=0.1, fresh=-0.2),
        ),
        step_seconds=0.05,
    )
    fields = {
        "name": f"layers.{k}",
        "index": k,
        "parameters": 12,
        "parameter_norm": 2.0,
        "projections": {f"layers.{k}.mlp.up_proj": (3, 4)},
        "value": 1.5,
        "lower": 1.0,
        "upper": 2.0,
        "gain": evidence,
    }
    return UnitScore(**(fields | changes))


def scores(*units):
    units = units or tuple(unit_score(k) for k in range(12))
    return Scores(score="gain", source="ours", granularity="layer", units=units, origin=ORIGIN, fresh=TEXT_ORIGIN)


def unit_promise(k, **changes):
    fields = {
        "name": f"layers.{k}",
        "index": k,
        "size": 0.5,
        "linear": 0.5,
        "promised": 0.25,
        "decrease": 0.125,
        "decrease_standard_error": None,
        "fresh": -0.5,
        "fresh_standard_error": 0.1,
    }
    return UnitPromise(**(fields | changes))


def promise(*units):
    units = units or tuple(unit_promise(k) for k in range(12))
    joint = unit_promise(-1, name="all units", promised=2.0, decrease=1.0)
    return Promise(units=units, joint=joint, origin=ORIGIN, fresh=TEXT_ORIGIN)


def unit_amount(k, **changes):
    fields = {
        "name": f"layers.{k}",
        "index": k,
        "amount": k,
        "cost": 2.0,
        "size": 12,
        "continuous": k + 0.25,
        "score": 1.5,
        "quality": 0.1,
        "maximum": 64.0,
        "held": "lower",
    }
    return UnitAmount(**(fields | changes))


def allocation(*units):
    point = SweepPoint(
        budget=4.0,
        spent=4.0,
        objective=-1.0,
        dual=0.25,
        residual=1e-12,
        status="optimal",
        continuous=(1.0, 1.0),
    )
    return Allocation(
        target="rank",
        units=units or tuple(unit_amount(k) for k in range(12)),
        budget=Budget(requested=133.0, planned=132.0, unit="parameters", realised=132.0),
        origin=ORIGIN,
        program={"alpha": 0.0},
        scores_sha256="c" * 64,
        dual=0.5,
        certificate=Ranges(least=(0.0, 1.0), most=(0.0, 2.0), certified=1, widest=1.0),
        whole=WholeEvidence(unspent=1.0, gap=0.01, exact=True, status="optimal"),
        sweep=(point,),
    )


def rebuilt(*units):
    size = Size(parameters=10, bytes=40, flops=20)
    units = units or tuple(UnitRebuilt(name=f"layers.{k}", index=k, planned=4.0, realised=4.0) for k in range(12))
    return Rebuilt(
        method="lora",
        settings={},
        target="rank",
        units=units,
        total=8.0,
        before=size,
        after=size,
        remarks=("logits are equal",),
        evidence={"errors": {"layers.0": 0.5}},
        origin=ORIGIN,
        model_sha256="f" * 64,
        only_checkpoint="layers differ",
    )


SPEED = Speed(tokens_read=64, seconds=2.0, tokens_per_second=32.0, without_compilation=40.0)
TEXT = TextOutcome(
    tokens=64,
    nll=2.0,
    standard_error=0.1,
    perplexity=7.4,
    row_nll=(30.0, 34.0),
    row_tokens=(16.0, 16.0),
    interval=(1.9, 2.1),
    degrees=3,
    cut=(1, 2, 3),
    speed=SPEED,
)
TASK = TaskOutcome(
    questions=2,
    accuracy=0.5,
    accuracy_standard_error=0.5,
    accuracy_per_character=1.0,
    accuracy_per_character_standard_error=0.0,
    gold_nll=1.5,
    gold_nll_standard_error=0.5,
    shots=1,
    correct=(True, False),
    correct_per_character=(True, True),
    question_gold_nll=(1.0, 2.0),
    examples=("q/1",),
    speed=SPEED,
)
PAIR = Pair(
    arm="curvature", against="uniform", seed=1, metric="nll", difference=-0.1, standard_error=None, sparsity=0.5
)


def run():
    adapted = AdaptedArm(arm="curvature", seed=1, parameters=100, ranks=(1, 2), outcome=TASK, seconds=9.0)
    pruned = PrunedArm(
        arm="curvature",
        seed=1,
        sparsity=0.5,
        kappa=0.5,
        sparsities=(0.4, 0.6),
        realised=0.5,
        outcome=TEXT,
        selection_nll={"0.5": 2.0},
    )
    adaptation = Adaptation(
        task="sciq",
        metric="gold_nll",
        train_documents=8,
        test_questions=2,
        steps=3,
        tokens_per_step=16,
        base=TASK,
        arms=(adapted,),
        paired=(PAIR,),
    )
    return Run(
        origin=ORIGIN,
        documents=12,
        settings={"seed": 1},
        stages=(Stage(stage="gains", seconds=2.0),),
        created="2026-11-03T10:15:00+00:00",
        adaptation=adaptation,
        pruning=Pruning(method="wanda", calibration="squad", test="boolq", dense=TEXT, arms=(pruned,), paired=(PAIR,)),
    )


def comparison():
    return Comparison(
        target="sparsity",
        program={"kappa": 0.5},
        granularity="layer",
        units=(ComparedUnit(name="layers.0", index=0, cost=1.0, size=12),),
        requested=6.0,
        unit="weights",
        scores=(
            ComparedScore(
                name="owl",
                source="paper",
                needs=("activations",),
                values=(None,),
                evidence_gradients=1.0,
                own_gradients=0.5,
            ),
        ),
        methods=(
            Method(name="owl + program", score="owl", rule="program", continuous=(6.2,), amounts=(6,), spent=6.0),
            Method(name="erk", score=None, rule="erk", refused="no"),
        ),
        of_scores=Correlations(names=("owl",), matrix=((None,),)),
        of_amounts=Correlations(names=("owl + program",), matrix=((1.0,),)),
        costs=(FieldCost(field="activations", seconds=1.0, gradient_equivalents=2.0, recorded=True),),
        gradient_seconds=0.5,
        validation_tokens=16,
        origin=ORIGIN,
    )


def transfer():
    return Transfer(
        target_text=TEXT_ORIGIN,
        source_text=None,
        source_sha256="f" * 64,
        target_sha256="0" * 64,
        program={"beta": 1.0},
        granularity="layer",
        regret=0.1,
        a_posteriori=0.2,
        bound=0.3,
        conditioned=None,
        drift=0.5,
        condition_number=None,
        evidence={"lipschitz": 2.0},
        rank_correlation=0.9,
        units=(TransferUnit(name="layers.0", index=0, quality=(0.4, 0.6), amount=(1.0, 2.0)),),
        origin=ORIGIN,
    )


def outcome():
    return Outcome(origin=ORIGIN, texts={"boolq": TEXT}, tasks={"sciq": TASK})


def descent():
    first = Iterate(amounts=(0.5, 0.5), selection_nll=2.0, prices=(1.0, 2.0), spread=0.5)
    return Descent(
        method="magnitude",
        settings={"iterations": 1},
        units=("layers.0", "layers.1"),
        iterates=(first, Iterate(amounts=(0.6, 0.4), selection_nll=1.9)),
        best=1,
        gradient_count=2.0,
        allocation=allocation(*map(unit_amount, range(2))),
        selection=TEXT_ORIGIN,
        origin=ORIGIN,
    )


def card():
    cost = AdapterCost(trained=72, optimizer_bytes=576, training_flops=432, serving_flops=144)
    unit = CardUnit(
        name="layers.0", index=0, parameters=320, flops=640, resnorm=0.1, energy=2.0, coupling=0.5, cost=cost,
        decrease=0.01, fresh=0.005,
    )  # fmt: skip
    return LayerCard(units=(unit,), granularity="layer", rank=4, origin=ORIGIN, tried="a step")


def landscape():
    axis = Axis(name="a step", size=0.1, units=("layers.0",), at=(-1.0, 0.0, 1.0), evidence={"eigenvalue": 2.0})
    return Landscape(
        axes=(axis,),
        loss=2.0,
        losses=((2.1,), (2.0,), (None,)),
        slopes=(-0.1,),
        ggn=((0.2,),),
        hessian=((0.1,),),
        forward_passes=1.5,
        origin=ORIGIN,
    )


EVERY = (
    *(scores(), allocation(), rebuilt(), outcome(), run(), comparison(), transfer(), descent(), promise()),
    *(card(), landscape()),
)
