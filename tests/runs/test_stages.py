import pytest

from curvjax.records import Stage
from curvjax.runs.stages import Stages


def never():
    pytest.fail("computed again")


def test_a_stage_is_computed_once_for_the_same_inputs(tmp_path):
    first = Stages(tmp_path)
    assert first("dense", dict, {"seed": 1, "rows": 2}, lambda: {"nll": 1.5, "lost": float("nan")})["nll"] == 1.5
    second = Stages(tmp_path)
    assert second("dense", dict, {"rows": 2, "seed": 1}, never) == {"nll": 1.5, "lost": None}
    assert second.seconds == first.seconds


def test_a_stage_gives_the_same_record_when_computed_and_when_read(tmp_path):
    record = Stages(tmp_path)("dense", dict, {}, lambda: {"rows": (1, 2), "lost": float("inf")})
    assert record == Stages(tmp_path)("dense", dict, {}, never)


def test_a_value_comes_back_as_the_value_it_was(tmp_path):
    stage = Stage(stage="gains", seconds=1.0)
    assert Stages(tmp_path)("dense", Stage, stage, lambda: stage) == stage
    assert Stages(tmp_path)("dense", Stage, stage, never) == stage


def test_other_inputs_or_another_name_compute_anew(tmp_path):
    stages = Stages(tmp_path)
    assert stages("dense", dict, {"seed": 1}, lambda: {"nll": 1}) == {"nll": 1}
    assert stages("dense", dict, {"seed": 2}, lambda: {"nll": 2}) == {"nll": 2}
    assert stages("base", dict, {"seed": 2}, lambda: {"nll": 3}) == {"nll": 3}


def test_a_stage_that_fails_leaves_the_earlier_result(tmp_path):
    stages = Stages(tmp_path)
    stages("dense", dict, {"seed": 1}, lambda: {"nll": 1})
    with pytest.raises(ZeroDivisionError):
        stages("dense", dict, {"seed": 2}, lambda: {"nll": 1 / 0})
    assert stages("dense", dict, {"seed": 1}, never) == {"nll": 1}


def test_a_damaged_stage_file_is_named(tmp_path):
    (tmp_path / "dense.json").write_text('{"schema": "curv')
    with pytest.raises(ValueError, match=r"dense\.json is not valid JSON"):
        Stages(tmp_path)("dense", dict, {}, never)
