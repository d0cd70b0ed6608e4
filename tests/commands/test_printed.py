"""What commands print beside their tables."""

from dataclasses import replace

from rich.console import Console

from curvjax.commands.printed import allocation_lines, outcome_table, rebuilt_lines, show
from curvjax.records import Size, TextOutcome
from tests.records.samples import allocation, outcome, rebuilt, unit_amount


def test_the_largest_rank_is_told_of_ranks_only():
    units = tuple(unit_amount(k, amount=amount) for k, amount in enumerate((2, 7, 0)))
    plan = replace(allocation(*units), target="rank", dual=0.0, remark=None, sweep=())
    assert allocation_lines(plan) == ["rank at most 7, to which serving engines pad the others"]
    assert not allocation_lines(replace(plan, target="experts"))


def test_sizes_that_change_and_remarks_are_told_of_what_was_rebuilt():
    found = replace(rebuilt(), after=Size(5, 40, 20))
    assert rebuilt_lines(found) == [
        "lora: 8 realised as planned, rank of 12 units",
        "parameters of these units: 5, before 10 (50.0%)",
        "logits are equal",
    ]


def test_names_with_brackets_are_shown_as_they_are(capsys):
    text = TextOutcome(tokens=64, nll=2.0, standard_error=None, perplexity=7.4)
    show(outcome_table(replace(outcome(), texts={"x[/v2]/[b]t.txt": text})))
    assert "x[/v2]/[b]t.txt" in capsys.readouterr().out


def test_what_was_cut_and_how_fast_it_was_read_are_told():
    text = TextOutcome(tokens=64, nll=2.0, standard_error=None, perplexity=7.4, cut=(3, 0, 1))
    console = Console(record=True, width=120)
    console.print(outcome_table(replace(outcome(), texts={"boolq": text})))
    shown = console.export_text()
    assert "prompts cut" in shown
    assert "tokens cut from them" not in shown
    assert "completions in pieces" in shown
    assert "tokens per second" in shown  # of the task
