"""What tests of commands share: refusals, and allocations of a few units."""

from curvjax.layers import layer_index
from curvjax.records import Allocation, Budget, Origin, UnitAmount


def refused(result, *words):
    """One line on standard error that says why, and no traceback."""
    status, _, errors = result
    lines = [line for line in errors.splitlines() if line.startswith("curvjax: ")]
    assert status == 1
    assert "Traceback" not in errors
    assert errors.splitlines()[-1:] == lines[-1:]
    assert len(lines) == 1
    assert all(word in lines[0] for word in words)


def an_allocation(path, model, target, amounts, *, unit="", **about):
    """As `allocate` writes it, of a few units."""
    units = tuple(
        UnitAmount(name=name, index=layer_index(name), amount=amount, **about) for name, amount in amounts.items()
    )
    total = float(sum(unit.amount * unit.cost for unit in units))
    budget = Budget(requested=total, planned=total, unit=unit or target)
    return Allocation(target=target, units=units, budget=budget, origin=Origin(model=model), program={}).save(path)
