import json
import re
from dataclasses import replace

import pytest

from curvjax.records import ModelOrigin
from curvjax.report import RunRecords, read_run
from tests.report.test_comparison import comparison_of, method_of
from tests.report.test_descent import descent_of
from tests.report.test_rebuilt import rebuilt_of
from tests.report.values import gains_of, run_of, with_stage


def test_a_whole_run_is_read_as_it_was_written(run_dir, whole):
    found = read_run(run_dir(whole))
    assert found == whole
    assert [each.target for each in found.allocations] == ["rank", "sparsity", "sparsity"]
    assert found.allocations[1].budget.requested < found.allocations[2].budget.requested
    assert found.missing == ()


def test_a_run_of_gains_alone_names_the_missing_stages(run_dir):
    found = read_run(run_dir(RunRecords(gains=gains_of(12))))
    assert found.missing == ("rank allocation", "sparsity allocation", "low-rank fine-tuning", "pruning")


def test_a_directory_without_records_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds none of gains\.json, .*landscape\*\.json; `curvjax run`"):
        read_run(tmp_path)


@pytest.mark.parametrize("name", ["gains.json", "allocation-rank.json", "run.json"])
def test_each_file_has_its_own_schema(run_dir, name):
    folder = run_dir(run_of(2))
    (folder / name).write_text(json.dumps({"schema": "curvjax.other/9"}))
    with pytest.raises(ValueError, match=rf"{name} has schema 'curvjax.other/9'; this version reads"):
        read_run(folder)


def test_other_weights_are_refused(run_dir):
    records = run_of(2)
    other = replace(records.gains.origin, model=ModelOrigin(name="other", sha256="0" * 64))
    ranks, *rest = records.allocations
    for changed in (
        replace(records, allocations=(replace(ranks, origin=other), *rest)),
        replace(records, run=replace(records.run, origin=other)),
    ):
        with pytest.raises(ValueError, match=r"(allocation-rank|run)\.json is about weights 000.*not one run"):
            read_run(run_dir(changed))


def test_an_allocation_over_other_units_is_refused(run_dir):
    records = run_of(3)
    ranks = records.allocations[0]
    units = (*ranks.units[:2], replace(ranks.units[2], name="layers.2.mlp.up_proj"))
    with pytest.raises(ValueError, match=r"'layers.2.mlp.up_proj' at place 2, not 'layers.2'"):
        read_run(run_dir(replace(records, allocations=(replace(ranks, units=units),))))
    with pytest.raises(ValueError, match="2 units, not 3"):
        read_run(run_dir(replace(records, allocations=(replace(ranks, units=ranks.units[:2]),))))


@pytest.mark.parametrize(
    ("stage", "field", "short"), [("adaptation", "ranks", (1, 2)), ("pruning", "sparsities", (0.1, 0.2))]
)
def test_an_arm_of_another_length_is_refused(run_dir, stage, field, short):
    records = run_of(3)
    first, second, *rest = getattr(records, stage).arms
    records = with_stage(records, stage, arms=(first, replace(second, **{field: short}), *rest))
    with pytest.raises(ValueError, match=rf"{stage} arm 'uniform' has 2 {field}, but gains.json has 3"):
        read_run(run_dir(records))


@pytest.fixture
def later():
    """A directory of one model without gains: a descent with its allocation, a comparison, a rebuilt model."""
    descent = descent_of([5.0, 4.0, 4.5], best=1)
    comparison = comparison_of([method_of(None, "uniform", [50] * 4, 0.0)])
    return RunRecords(descent=descent, comparison=comparison, rebuilt=rebuilt_of())


def test_each_record_is_read_without_gains(run_dir, later, tmp_path):
    folder = run_dir(later)
    assert read_run(folder) == later
    assert later.missing == ()
    assert later.model == "tiny"
    for name in ("descent.json", "compare.json", "rebuilt.json"):
        alone = tmp_path / name.removesuffix(".json")
        alone.mkdir()
        (folder / name).rename(alone / name)
        assert read_run(alone).origin is not None


def test_the_allocation_of_a_descent_is_not_read_twice(run_dir, later):
    folder = run_dir(later)
    later.descent.allocation.save(folder / "allocation.json")
    assert read_run(folder).allocations == ()
    other = replace(later.descent.allocation, rule="uniform")
    other.save(folder / "allocation.json")
    assert read_run(folder).allocations == (other,)


def test_the_allocation_of_a_rebuilt_model_is_found_by_its_units(later):
    assert later.rebuilt_from is None
    assert RunRecords().rebuilt_from is None
    descent = descent_of([5.0], best=0)
    first = rebuilt_of().units[0]
    same = tuple(replace(first, name=unit.name, index=unit.index) for unit in descent.allocation.units)
    found = RunRecords(descent=descent, rebuilt=replace(rebuilt_of(), units=same)).rebuilt_from
    assert found == descent.allocation


def test_allocations_of_a_finer_granularity_stand_beside_the_gains(run_dir):
    records = run_of(3)
    finer = tuple(
        replace(unit, name=f"{unit.name}.{part}") for unit in records.allocations[1].units for part in ("attn", "mlp")
    )
    finer = replace(records.allocations[1], units=finer, granularity="module")
    found = read_run(run_dir(replace(records, allocations=(finer,))))
    assert found.allocations == (finer,)
    assert found.controls(finer) == {}


@pytest.mark.parametrize("name", ["descent.json", "compare.json", "rebuilt.json"])
def test_broken_records_are_refused_by_name(run_dir, later, name):
    folder = run_dir(later)
    (folder / name).write_text("{")
    with pytest.raises(ValueError, match=rf"{name} is not valid JSON"):
        read_run(folder)


def test_values_that_are_not_one_for_each_unit_are_refused(run_dir, later):
    first, *rest = later.descent.iterates
    method = later.comparison.methods[0]
    for changed, told in (
        ({"descent": replace(later.descent, units=("a",))}, "descent.json has 1 names, but its allocation has 3 units"),
        (
            {"descent": replace(later.descent, iterates=(replace(first, amounts=(0.5,)), *rest))},
            "descent.json: step 0 has 1 amounts, but it has 3 units",
        ),
        (
            {"descent": replace(later.descent, iterates=(replace(first, prices=(0.5, 1.0)), *rest))},
            "descent.json: step 0 has 2 prices, but it has 3 units",
        ),
        (
            {"comparison": replace(later.comparison, methods=(replace(method, amounts=(1,)),))},
            "compare.json: method 'uniform' has 1 amounts, but it has 4 units",
        ),
    ):
        with pytest.raises(ValueError, match=re.escape(told)):
            read_run(run_dir(replace(later, **changed)))


def test_a_kept_step_that_is_not_there_is_refused(run_dir, later):
    with pytest.raises(ValueError, match=r"descent.json keeps step 1, but has 1 steps"):
        read_run(run_dir(replace(later, descent=replace(later.descent, iterates=later.descent.iterates[:1]))))


def test_ragged_correlations_are_refused(run_dir, later):
    ragged = replace(later.comparison.of_amounts, names=("a", "b"), matrix=((1.0, 0.5), (0.5,)))
    with pytest.raises(ValueError, match=r"compare.json: rank correlations of \['a', 'b'\] are no square of 2 rows"):
        read_run(run_dir(replace(later, comparison=replace(later.comparison, of_amounts=ragged))))


def test_a_rebuilt_model_of_other_weights_is_refused(run_dir, later):
    other = replace(later.rebuilt.origin, model=ModelOrigin(name="other", sha256="1" * 64))
    with pytest.raises(ValueError, match=r"rebuilt.json is about weights 111.*, descent.json about 000.*not one run"):
        read_run(run_dir(replace(later, rebuilt=replace(later.rebuilt, origin=other))))
    assert read_run(run_dir(replace(later, rebuilt=replace(later.rebuilt, origin=None)))).rebuilt.origin is None
