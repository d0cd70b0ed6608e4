"""What there is, and how it is asked for."""

import re
import subprocess
import sys

import pytest

from curvjax import cli
from curvjax.runs.adapt import ADAPTERS
from curvjax.surgery import SURGERIES, Learning, LoRA
from curvjax.surgery.prices import has_prices
from tests.commands.running import refused

OPTIONS = {
    "run": ("--out", "--quick", "--task", "--sparsities", "--score.rtol", "--adapt.steps", "--seed"),
    "score": ("--data", "--score", "--out", "--granularity", "--rtol", "--processes", "--process", "--coordinator"),
    "allocate": ("--out", "--target", "--rule", "--control", "--budget", "--sweep", "--best", "--from-layer"),
    "refine": ("--data", "--out", "--products", "--stride", "--longest", "--target", "--budget"),
    "transfer": ("--out", "--target", "--budget", "--floor"),
    "compare": ("--data", "--gains", "--target", "--budget", "--scores", "--rules", "--plans", "--directions"),
    "descend": ("--data", "--start", "--out", "--selection-tokens", "--budget"),
    "adapt": ("--data", "--out", "--merge", "--checkpoint", "--steps", "--learning-rate", "--method", "--scaling"),
    "prune": ("--data", "--out", "--checkpoint", "structured", "--method", "--pattern", "--drop", "--tokens"),
    "quantize": ("--data", "--out", "--method", "--group", "--symmetric", "--scales", "--no-act-order", "--tokens"),
    "factorize": ("--data", "--out", "--metric", "svd", "aware", "asvd", "--alpha", "--tokens"),
    "upcycle": ("--data", "--out", "--top-k", "--seed"),
    "rebuild": (
        "--data",
        "--out",
        "--method",
        "--drop",
        "--drop-count",
        "--drop-plan.every-token",
        "--checkpoint",
        "--pattern",
    ),
    "evaluate": ("--data", "--tasks", "--adapter", "--out", "--questions"),
    "export": ("--to", "peft-config", "recipe", "--adapter", "--model", "--out", "--projections", "--base"),
    "report": ("gains.json",),
    "methods": (),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_help_names_the_options(command, name):
    status, output, errors = command(name, "--help")
    assert status == 0
    assert not errors
    assert [option for option in OPTIONS[name] if option not in output] == []


@pytest.mark.parametrize(
    ("name", "fits"),
    [
        ("prune", lambda kind: "sparsity" in kind.targets),
        ("quantize", lambda kind: "bits" in kind.targets),
        ("upcycle", lambda kind: "experts" in kind.targets),
        ("adapt", lambda kind: issubclass(kind, Learning)),
        ("descend", lambda kind: any(has_prices(kind, target) for target in kind.targets)),
        ("rebuild", lambda _: True),
    ],
)
def test_help_lists_every_method_that_fits_and_no_other(command, name, fits):
    _, output, _ = command(name, "--help")
    listed = re.search(r"--method \{([^}]*)\}", output.replace("│", "")).group(1)
    fitting = {method for method, kind in SURGERIES.items() if fits(kind)}
    assert set("".join(listed.split()).split(",")) == fitting
    if others := sorted(set(SURGERIES) - fitting):
        refused(command(name, "x", "y", "--method", others[0]), "--method must be one of", repr(others[0]))


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (("allocate", "--target", "sparsity"), ("--kappa", "--max-sparsity")),
        (("allocate", "--target=bits"), ("--allowed",)),
        (("rebuild", "--method", "gptq"), ("--group", "--no-act-order")),
        (("prune", "--drop-plan", "greedy"), ("--drop-plan.objective",)),
        (("prune", "--drop_plan", "greedy"), ("--drop-plan.objective",)),
        (("rebuild", "--drop-plan=score"), ("--drop-plan.score", "--drop-plan.settings.directions")),
        (("adapt", "--method", "lora-mixture"), ("--rank", "--top-k")),
        (("adapt", "--method", "lisa"), ("--layers", "--every")),
        (("adapt", "--method", "maestro"), ("--at-once", "--lasso", "--threshold")),
    ],
)
def test_the_settings_of_what_is_chosen_are_flags(command, words, options):
    status, output, _ = command(*words, "--help")
    assert status == 0
    assert [option for option in options if option not in output] == []


@pytest.mark.parametrize(
    "words",
    [("allocate", "x.json", "--target"), ("rebuild", "x", "y", "--method"), ("rebuild", "x", "y", "--drop-plan")],
)
def test_a_choice_that_there_is_not_is_refused_with_those_there_are(command, words):
    refused(command(*words, "shoes"), f"{words[-1]} must be one of", "got 'shoes'")
    assert command(*words)[0] != 0


def test_a_command_that_there_is_not_is_refused_with_those_there_are(command):
    refused(command("shoes"), "there is no command 'shoes'", "allocate")
    status, output, _ = command()
    assert (status, output.splitlines()[0]) == (2, "usage: curvjax COMMAND ...")


def test_methods_are_listed_with_their_sources(command):
    status, output, _ = command("methods")
    assert status == 0
    assert [
        name for name in ("gain", "lamp", "owl", "permuted", "sparsity", "gptq", "angular") if name not in output
    ] == []


def test_help_names_the_commands(command):
    status, output, _ = command("--help")
    assert status == 0
    assert set(OPTIONS) == set(cli.COMMANDS)
    assert [name for name in OPTIONS if name not in output] == []


def test_the_module_runs_as_a_program():
    shown = subprocess.run([sys.executable, "-m", "curvjax", "--help"], check=True, capture_output=True, text=True)
    assert "allocate" in shown.stdout
    assert not shown.stderr


@pytest.mark.parametrize("words", [("-m", "curvjax", "--help"), ("-c", "import curvjax; dir(curvjax)")])
def test_asking_what_there_is_waits_for_nothing(words):
    lines = subprocess.run([sys.executable, "-X", "importtime", *words], check=True, capture_output=True, text=True)
    imported = {line.rpartition("|")[2].strip() for line in lines.stderr.splitlines()}
    assert "curvjax" in imported
    assert not imported & {"jax", "numpy", "flax", "tyro", "curvjax.verbs"}


def test_adapters_begin_at_the_gradient_and_in_python_where_no_text_is_at_random(capsys):
    with pytest.raises(SystemExit):
        cli.main(["adapt", "--help"])
    found = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "(EVA). (default: gradient)" in found
    assert LoRA().start == "uniform"
    assert LoRA(start="gradient") == ADAPTERS
