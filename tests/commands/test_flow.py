"""Commands one after the other, from a model and a text to what comes of them."""

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from curvjax.commands import budgets, scoring
from curvjax.models import load_arrays, load_model, weights_hash
from curvjax.records import Allocation, Comparison, LayerCard, ModelOrigin, Origin, Outcome, Rebuilt, Scores
from curvjax.runs import evidence as measuring
from curvjax.runs.adapt import ADAPTER_SCHEMA
from curvjax.runs.placement import AdapterTrials
from curvjax.runs.settings import RunSettings
from curvjax.runs.text import TextSettings, read, require_apart, with_validation
from tests.commands.running import an_allocation, refused
from tests.report.test_card import card_of


def test_scores_become_budgets_and_budgets_a_pruned_model(command, model, data, tmp_path, stand_ins):
    gains, allocation = tmp_path / "scored" / "gains.json", tmp_path / "allocation.json"
    scored = command(
        "score", model, "--data", data, "--out", gains.parent, "--tokens", 32, "--length", 16, "--grid", 1.0, 0.1
    )
    assert scored[0] == 0
    assert scored[1].splitlines()[-1] == str(gains)
    assert "certified gains: 12/12" in scored[2]
    assert len(Scores.load(gains).units) == 12

    status, output, _ = command("allocate", gains, "--target", "sparsity", "--budget", 0.5, "--out", allocation)
    assert (status, output.splitlines()[-1]) == (0, str(allocation))
    assert "layers.11" in output

    status, output, _ = command("transfer", gains, gains, "--budget", 3, "--out", tmp_path / "transfer.json")
    assert status == 0
    assert output.splitlines()[0].split() == ["regret", "0"]
    refined = ("--budget", 3, "--out", tmp_path / "refined")
    status, output, _ = command("refine", model, gains, "--data", data, *refined)  # the stand-ins' brackets are points
    assert (status, output.splitlines()[-3]) == (0, "0 further products; all are proved")
    assert Allocation.load(tmp_path / "refined" / "allocation.json").certificate.unique

    loaded, rows = load_model(model), TextSettings(tokens=32, length=16)
    kept, fresh = with_validation(read(str(data), loaded, rows), loaded, rows)
    parted = Scores.load(gains)
    parted = replace(parted, fresh=fresh.origin, origin=replace(parted.origin, text=kept.origin))
    tried_too = ("refine", model, parted.save(tmp_path / "parted.json"), "--data", data, *refined)
    assert command(*tried_too)[0] == 0  # three of four documents, as `score --fresh` of the same text read
    refused(command(*tried_too, "--text-seed", 1), "the text is not that of the gains")

    pruned = tmp_path / "pruned"
    status, output, _ = command("prune", model, allocation, "--method", "magnitude", "--out", pruned)
    lines = ["magnitude: 11,520 realised as planned, sparsity of 12 units"]
    lines += ["50.0000% of the projections' weights are zero", str(pruned)]
    assert (status, output.splitlines()) == (0, lines)
    assert Allocation.load(pruned / "allocation.json").budget.realised == 12 * 960
    short = ("--pattern", "n:4", "--drop", 1, 10, "--out", tmp_path / "short")
    assert command("prune", model, allocation, "--method", "magnitude", *short)[0] == 0
    assert len(load_model(tmp_path / "short").model.layers) == 10
    fewer = ("--drop-count", 2, "--drop-plan", "angular", "--data", data, "--tokens", 32, "--length", 16)
    fewer += ("--out", tmp_path / "fewer")
    status, output, _ = command("prune", model, allocation, "--method", "magnitude", *fewer)
    first, second = Allocation.load(tmp_path / "fewer" / "allocation.json").dropped
    said = f"layers dropped, with the angle over them in half turns: {first} {second} ("
    assert (status, output.splitlines()[0][: len(said)], second) == (0, said, first + 1)
    assert len(load_model(tmp_path / "fewer").model.layers) == 10
    both = command("prune", model, allocation, "--drop", 1, *fewer[:-1], tmp_path / "both")
    refused(both, "name the layers (--drop) or have them chosen")

    record = tmp_path / "evaluation.json"
    status, output, _ = command("evaluate", pruned, "--data", data, "--length", 16, "--tokens", 32, "--out", record)
    assert (status, output.splitlines()[-1]) == (0, str(record))
    assert "perplexity" in output
    assert Outcome.load(record).origin.model.name == "pruned"


def test_a_second_text_tries_the_steps_the_same_one_in_two_parts(command, model, data, tmp_path, monkeypatch):
    asked = []

    def score(loaded, text, name, settings, *, fresh, **_):
        asked.append((text.origin, fresh.origin))
        require_apart(calibration=text, fresh=fresh)
        raise ValueError("far enough")

    monkeypatch.setattr("curvjax.commands.scoring.score", score)
    other = tmp_path / "other"
    other.mkdir()
    for number in range(8):
        (other / f"{number:03d}.txt").write_text(" ".join(f"w{(7 * number + k) % 60}" for k in range(15)))
    for fresh in (data, other):
        refused(command("score", model, "--data", data, "--fresh", fresh, "--tokens", 32, "--length", 16), "far enough")
    assert [one.source for pair in asked for one in pair] == [str(each) for each in (data, data, data, other)]
    refused(
        command("score", model, "--data", data, "--fresh", tmp_path / "none", "--tokens", 32, "--length", 16), "none"
    )


def test_scores_become_ranks_and_ranks_an_adapter(command, shallow, data, tmp_path, stand_ins):
    scored = ("score", shallow, "--data", data, "--out", tmp_path, "--tokens", 32, "--length", 16)
    assert command(*scored)[0] == 0
    allocation = tmp_path / "allocation.json"
    assert command("allocate", tmp_path / "gains.json", "--budget", 1, "--out", allocation)[0] == 0
    words = ("--data", data, "--steps", 1, "--length", 16, "--rows", 2, "--warmup", 0, "--out", tmp_path / "adapted")
    status, output, errors = command("adapt", shallow, allocation, *words, "--merge", "--checkpoint")
    folders = [tmp_path / "adapted" / name for name in ("adapter", "checkpoint", "merged")]
    assert (status, output.splitlines()[-3:]) == (0, [str(folder) for folder in folders])
    assert re.search(r"^[\d,]+ adapter parameters$", output, re.MULTILINE)
    assert "fine-tune: 1/1" in errors

    found = {}
    for name, subject in {
        "adapter": (shallow, "--adapter", folders[0]),
        "checkpoint": (folders[1],),
        "merged": (folders[2],),
        "base": (shallow,),
    }.items():
        out = tmp_path / f"{name}.json"
        assert command("evaluate", *subject, "--data", data, "--length", 16, "--tokens", 32, "--out", out)[0] == 0
        found[name] = Outcome.load(out).texts[str(data)].nll
    assert found["checkpoint"] == found["adapter"]
    assert found["merged"] == pytest.approx(found["adapter"], rel=1e-5)  # float32 kernels, folded
    assert found["merged"] != pytest.approx(found["base"], rel=1e-4)


@pytest.mark.parametrize("method", ["lisa", "maestro"])
def test_weights_of_the_model_itself_are_trained_to_a_model(command, model, data, tmp_path, stand_ins, method):
    scored = ("score", model, "--data", data, "--out", tmp_path, "--tokens", 32, "--length", 16)
    assert command(*scored)[0] == 0
    allocation = tmp_path / "allocation.json"
    place = ("--budget", 1, "--minimum", 0, "--best", 3, "--rule", "uniform", "--out", allocation)
    assert command("allocate", tmp_path / "gains.json", *place)[0] == 0
    assert sorted(Allocation.load(allocation).amounts.values()) == [0] * 9 + [4] * 3
    words = ("--data", data, "--steps", 1, "--length", 16, "--rows", 2, "--warmup", 0, "--method", method)
    words = (*words, "--out", tmp_path / "trained")
    refused(command("adapt", model, allocation, *words, "--merge"), f"{method} leaves a model in out/model")
    status, output, _ = command("adapt", model, allocation, *words)
    assert (status, output.splitlines()[-1]) == (0, str(tmp_path / "trained" / "model"))
    out = tmp_path / "evaluation.json"
    words = ("--data", data, "--length", 16, "--tokens", 32, "--out", out)
    assert command("evaluate", tmp_path / "trained" / "model", *words)[0] == 0
    assert Rebuilt.load(tmp_path / "trained" / "model" / "rebuilt.json").method == method


def test_widths_become_a_quantised_model(command, shallow, data, tmp_path):
    widths, out = {f"layers.{layer}": (4, 16)[layer % 2] for layer in range(2)}, tmp_path / "out"
    origin = load_model(shallow).origin
    path = an_allocation(tmp_path / "bits.json", origin, "bits", widths, cost=1920.0)
    words = ("quantize", shallow, path, "--method", "nearest", "--group", 8, "--out", out)
    status, output, _ = command(*words)
    count = 1920 // 2 + 3 * 1920 // 8 + 4 * 1920  # codes, float16 scales and zeros; float32 kernels
    lines = [f"{count:,} bytes, {8 * count / (2 * 1920):.3f} bits per weight with scales and zeros"]
    lines += [str(out / "checkpoint"), str(out)]
    assert (status, output.splitlines()[-3:]) == (0, lines)
    assert Allocation.load(out / "allocation.json").budget.realised == 20 * 1920
    assert Rebuilt.load(out / "rebuilt.json").after.bytes == count
    refused(command(*words), "not empty")
    nll = []
    for subject in (out, out / "checkpoint"):
        words = ("--data", data, "--length", 16, "--tokens", 32, "--out", tmp_path / "e.json")
        assert command("evaluate", subject, *words)[0] == 0
        nll.append(Outcome.load(tmp_path / "e.json").texts[str(data)].nll)
    assert nll[0] == pytest.approx(nll[1], rel=1e-5)
    refused(command("score", out / "checkpoint", "--data", data), "7 projections are stored as codes")
    assert command("export", out / "checkpoint", "--to", "safetensors", "--out", tmp_path / "dense")[0] == 0
    assert weights_hash(load_model(tmp_path / "dense").model) == weights_hash(load_model(out).model)


def test_structures_go_ranks_become_factors_and_experts_mixtures(command, model, origin, data, tmp_path):
    some = ("--data", data, "--tokens", 32, "--length", 16)
    path = an_allocation(tmp_path / "s.json", origin, "sparsity", {"layers.1": 499})
    status, output, _ = command("prune", model, path, "--method", "structured", *some, "--out", tmp_path / "smaller")
    lines = output.splitlines()
    assert (status, lines[0]) == (0, "structured: 480 realised as planned, sparsity of 1 units")
    assert "10 channels and 0 key heads are gone: -19 weights from the 499 allocated" in lines
    assert lines[-2].startswith("only the checkpoint can hold it: config.json of 'llama' cannot express")
    assert lines[-1] == str(tmp_path / "smaller" / "checkpoint")

    ranks = {"layers.1.mlp.up_proj": 3, "layers.1.mlp.gate_proj": 12}
    path = an_allocation(tmp_path / "r.json", origin, "rank", ranks)
    status, output, _ = command("factorize", model, path, "--metric", "svd", "--out", tmp_path / "thinner")
    assert status == 0
    assert output.splitlines() == [
        "factorize: 504 realised as planned, rank of 2 units",
        "parameters of these units: 504, before 768 (65.6%)",
        "bytes of these units: 2,016, before 3,072 (65.6%)",
        "flops of these units: 1,008, before 1,536 (65.6%)",
        "1 left as they are: at their rank, factors are not smaller than the kernel",
        str(tmp_path / "thinner" / "checkpoint"),
        str(tmp_path / "thinner"),
    ]

    path = an_allocation(tmp_path / "e.json", origin, "experts", {"layers.1": 2})
    status, output, _ = command("upcycle", model, path, *some, "--out", tmp_path / "grown")
    assert status == 0
    lines = output.splitlines()
    assert "a token goes through 2,336 of the 2,336 parameters of mixtures" in lines
    assert re.match(r"logits are equal: the largest change is \d\.\de-\d\d of the largest", lines[-3])
    assert lines[-2].startswith("only the checkpoint can hold it: 1 modules have no dense form")
    grown = tmp_path / "grown" / "checkpoint"
    refused(command("export", grown, "--to", "safetensors", "--out", tmp_path / "dense"), "1 modules have no dense")


def test_an_allocation_becomes_a_configuration_of_peft(command, origin, tmp_path):
    about = ModelOrigin(name="tiny", sha256="0", layers=2, family=origin.family, projections=origin.projections)
    ranks = {f"layers.{layer}": 1 + layer for layer in range(2)}
    sizes = {"cost": 10.0, "maximum": 8.0}
    path = an_allocation(tmp_path / "ranks.json", about, "rank", ranks, unit="adapter parameters", **sizes)
    out = tmp_path / "out"
    status, output, _ = command("export", path, "--to", "peft-config", "--out", out, "--base", "org/tiny")
    assert status == 0
    assert output.splitlines() == [
        "14 modules, 30 parameters; rank at most 2, to which engines pad the others",
        str(out),
    ]
    assert '"base_model_name_or_path": "org/tiny"' in (out / "adapter_config.json").read_text()
    refused(command("export", path, "--to", "peft-config", "--out", out), "not empty")


def test_the_optimiser_of_an_adapter_has_flags_of_its_own(command, model, data, tmp_path, origin, stand_ins):
    allocation = an_allocation(tmp_path / "allocation.json", origin, "rank", {"layers.1": 1})
    words = ("--data", data, "--steps", 1, "--length", 16, "--rows", 2, "--warmup", 0, "--out", tmp_path / "adapted")
    chosen = ("--optimizer", "lamb", "--optimizer.least-norm", 0.5)
    assert command("adapt", model, allocation, *words, *chosen)[0] == 0
    found = load_arrays(tmp_path / "adapted" / "adapter", schema=ADAPTER_SCHEMA)[1]["rebuilt"]["evidence"]["optimizer"]
    assert (found["name"], found["least_norm"], found["state_size"]) == ("lamb", 0.5, 0)  # as the stand-in says
    refused(command("adapt", model, allocation, *words, "--optimizer", "sgd"), "--optimizer must be one of adamw")


def test_experts_become_an_adapter_that_is_not_merged(command, shallow, data, tmp_path, stand_ins):
    assert command("score", shallow, "--data", data, "--out", tmp_path, "--tokens", 32, "--length", 16)[0] == 0
    allocation, words = tmp_path / "allocation.json", ("--target", "experts", "--budget", 2)
    assert command("allocate", tmp_path / "gains.json", *words, "--out", allocation)[0] == 0
    words = ("--data", data, "--steps", 1, "--rows", 2, "--method", "lora-mixture", "--rank", 2, "--warmup", 0)
    words = (*words, "--out", tmp_path / "adapted")
    refused(command("adapt", shallow, allocation, *words, "--merge"), "cannot be folded into the weights")
    assert not (tmp_path / "adapted").exists()
    status, output, _ = command("adapt", shallow, allocation, *words)
    assert (status, output.splitlines()[-1]) == (0, str(tmp_path / "adapted" / "adapter"))
    record = tmp_path / "evaluation.json"
    words = ("--data", data, "--length", 16, "--tokens", 32, "--out", record)
    assert command("evaluate", shallow, "--adapter", tmp_path / "adapted" / "adapter", *words)[0] == 0


def test_scores_and_rules_are_compared_in_a_record_a_table_and_a_figure(command, model, data, tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "_timed_gradients", lambda *_: ({}, 0.5))
    words = ("--scores", "layer-card-energy", "erk", "--rules", "program", "uniform", "owl", "--plans", "lamp")
    status, output, errors = command(
        "compare", model, "--data", data, "--budget", 0.4, *words, "--tokens", 32, "--length", 16, "--out", tmp_path
    )
    paths = [tmp_path / f"compare.{suffix}" for suffix in ("json", "svg", "png")]
    assert (status, output.splitlines()[-3:]) == (0, [str(path) for path in paths])
    assert all(path.stat().st_size > 1000 for path in paths)
    assert "evidence: 2/2" in errors
    record = Comparison.load(paths[0])
    assert [found.rule for found in record.methods] == ["program", "owl"] * 2 + ["uniform", "lamp"]
    assert all(found.spent == pytest.approx(0.4 * 12 * 1920) for found in record.methods)
    assert all(rule in output for rule in ("layer-card-energy", "erk", "lamp"))


@pytest.mark.parametrize(
    ("words", "tried"), [((), None), (("--card-steps", 3), AdapterTrials(steps=3))], ids=["scored", "trained"]
)
def test_a_card_stands_beside_the_scores(command, model, data, tmp_path, monkeypatch, stand_ins, words, tried):
    asked = []

    def card(loaded, text, settings, *, rank, tried, fresh, progress):
        asked.append((rank, tried, fresh))
        return card_of("", layers=2)

    monkeypatch.setattr(scoring, "layer_card", card)
    words += ("--data", data, "--tokens", 32, "--length", 16, "--policy", "trust-radius", "--out", tmp_path)
    status, output, _ = command("score", model, *words, "--card", "--card-rank", 4)
    assert (status, output.splitlines()[-1]) == (0, str(tmp_path / "card.json"))
    assert "The Layer Card" in output
    assert asked == [(4, tried, None)]
    assert LayerCard.load(tmp_path / "card.json") == card_of("", layers=2)


def test_other_documents_judge_what_the_card_trains(command, model, data, tmp_path, monkeypatch):
    asked = []

    def card(loaded, text, settings, *, rank, tried, fresh, progress):
        asked.append(len(fresh.documents))
        return card_of("", layers=2)

    monkeypatch.setattr(scoring, "layer_card", card)
    words = ("--score", "erk", "--data", data, "--fresh", data, "--tokens", 32, "--length", 16, "--out", tmp_path)
    assert command("score", model, *words, "--card", "--card-steps", 3)[0] == 0
    assert asked
    assert asked[0] > 0


def test_steps_without_a_card_are_refused(command, model):
    status, _, errors = command("score", model, "--card-steps", 3)
    assert (status, "give --card too" in errors) == (1, True)


@pytest.mark.parametrize(("words", "group"), [((), 64), (("--group", 16), 16), (("--group", 16, "--outcome"), 8)])
def test_rounding_is_looked_at_as_what_rebuilds_rounds(command, model, data, monkeypatch, words, group):
    asked = []

    def compared(loaded, text, program, settings, measured, **_):
        asked.append(measured.group)
        raise ValueError("far enough")

    monkeypatch.setattr(budgets, "compare", compared)
    monkeypatch.setattr(budgets, "judged_texts", lambda *_: SimpleNamespace(scored="text"))
    monkeypatch.setattr(budgets, "read", lambda *_: "text")
    monkeypatch.setattr(budgets, "with_validation", lambda text, *_: (text, None))
    method = ("--target", "bits", "--method", "nearest", "--method.group", 8)
    refused(command("compare", model, "--data", data, "--budget", 3, *method, *words), "far enough")
    assert asked == [group]


def test_calibration_documents_are_shuffled_by_the_seed_and_not_lost(command, model, data, tmp_path, stand_ins):
    for seed in (0, 1):
        words = ("--data", data, "--out", tmp_path / str(seed), "--tokens", 128, "--length", 16, "--text-seed", seed)
        assert command("score", model, *words)[0] == 0
    one, other = (Scores.load(tmp_path / seed / "gains.json").origin.text for seed in "01")
    assert one.sha256 != other.sha256
    assert one.sequences == other.sequences == 8


def test_quick_runs_beside_the_real_one(command, model, tmp_path, monkeypatch):
    asked = []

    def run(loaded, settings, out, **_):
        asked.append((settings.task, out))
        out.mkdir()
        (out / "summary.md").write_text("# summary\n")
        return out / "report.html"

    monkeypatch.setattr("curvjax.commands.outcomes.run", run)
    assert command("run", model, "--out", tmp_path / "demo", "--quick")[0] == 0
    status, output, _ = command("run", model, "--out", tmp_path / "demo")
    assert asked == [("", tmp_path / "demo-quick"), (RunSettings().task, tmp_path / "demo")]
    assert status == 0
    assert output.splitlines() == [
        "# summary",
        "",
        str(tmp_path / "demo" / "report.html"),
        str(tmp_path / "demo" / "figures"),
    ]


def test_the_report_is_drawn_from_a_directory(command, tmp_path, monkeypatch):
    monkeypatch.setattr("curvjax.commands.outcomes.write_report", lambda directory, **_: directory / "report.html")
    assert command("report", tmp_path)[:2] == (0, f"{tmp_path / 'report.html'}\n")


def test_questions_may_have_solved_examples_before_them(command, monkeypatch, tmp_path):
    asked = []

    def evaluate(loaded, texts, tasks, settings, **given):
        asked.append((texts, tasks, given["shots"]))
        return Outcome(origin=Origin(model=ModelOrigin(name="tiny", sha256="0")))

    monkeypatch.setattr("curvjax.commands.outcomes.evaluate", evaluate)
    words = ("--task", "sciq", "--shots", 2, "--out", tmp_path / "e.json")
    assert command("evaluate", "glassllm", *words)[0] == 0
    assert asked == [(("demo:squad",), ("sciq",), 2)]


def test_what_is_pruned_loads_with_the_same_tokenizer(model):
    assert np.array_equal(load_model(model).tokenizer.encode("w1 w59"), [3, 61])
