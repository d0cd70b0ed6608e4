import json
from dataclasses import replace

import pytest

from curvjax.records import ModelOrigin
from curvjax.report import RunDirectory, read_run
from tests.report.values import gains_of, run_of, with_stage


def test_a_whole_run_is_read_as_it_was_written(run_dir, whole):
    found = read_run(run_dir(whole))
    assert found == whole
    assert [each.target for each in found.allocations] == ["rank", "sparsity", "sparsity"]
    assert found.allocations[1].budget.requested < found.allocations[2].budget.requested
    assert found.missing == ()


def test_a_run_of_gains_alone_names_the_missing_stages(run_dir):
    found = read_run(run_dir(RunDirectory(gains=gains_of(12))))
    assert found.missing == ("rank allocation", "sparsity allocation", "low-rank fine-tuning", "pruning")


def test_a_directory_without_records_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds none of gains\.json, .*rebuilt\.json; `curvjax run`, `score`"):
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
