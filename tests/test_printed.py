"""What commands print beside their tables."""

from curvjax.commands.printed import allocation_lines


def test_the_largest_rank_is_told_of_ranks_only():
    record = {"dual": 0.0, "remark": None, "path": None, "units": [{"amount": 2}, {"amount": 7}, {"amount": 0}]}
    assert allocation_lines(record | {"target": "rank"}) == ["rank at most 7, to which serving engines pad the others"]
    assert not allocation_lines(record | {"target": "experts"})
