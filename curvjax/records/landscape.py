"""`Landscape`: the loss along a line or a plane through the weights, beside its quadratic models -> landscape.json."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from curvjax.records.origin import Origin
from curvjax.records.value import Value


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A direction u in the weights. name: in words. size: |u|. units: those that it moves.

    evidence: what else is known of it, such as an eigenvalue and its residual. at: `[n]` places that were measured, in
    units of u.
    """

    name: str
    size: float
    units: tuple[str, ...]
    at: tuple[float, ...]
    evidence: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Landscape(Value):
    """R(theta + a u + b v) over a grid of a, and of b where there is a second axis; nats per token.

    axes: one or two. loss: R(theta). losses: `[n, m]`, m = 1 of a line; None where not finite. slopes: g'u of
    each axis. ggn, hessian: second derivatives along the axes and across, u'Cu and u'Hu. forward_passes: what
    the losses took, of the whole model over the text; a point takes the share of blocks from the first moved one on.

    Example:
      >>> import curvjax as cj
      >>> model = cj.load("glassllm")
      >>> text = cj.read("demo:squad", model, tokens=64, length=64)
      >>> found = cj.landscape(model, text, cj.NewtonStep("layers.3", radius=0.002), points=5)
      >>> float(abs(found.quadratic("ggn")[1, 0] - found.losses[1][0])) < 0.01
      True
    """

    schema: ClassVar[str] = "curvjax.landscape/1"
    axes: tuple[Axis, ...]
    loss: float
    losses: tuple[tuple[float | None, ...], ...]
    slopes: tuple[float, ...]
    ggn: tuple[tuple[float, ...], ...]
    hessian: tuple[tuple[float, ...], ...]
    forward_passes: float
    origin: Origin

    def quadratic(self, curvature: str = "ggn") -> Float[np.ndarray, "n m"]:
        """R(theta) + g'x + x'C x / 2 at the places of `losses`, C by the name of its field: "ggn" or "hessian".

        Raises:
          ValueError: if there is no such curvature.
        """
        if curvature not in ("ggn", "hessian"):
            msg = f"a landscape has the curvatures ggn and hessian, not {curvature!r}."
            raise ValueError(msg)
        grids = np.meshgrid(*(np.asarray(axis.at) for axis in self.axes), indexing="ij")
        x = np.stack([grid.reshape(len(self.axes[0].at), -1) for grid in grids])
        second = np.einsum("iab,ij,jab->ab", x, np.asarray(getattr(self, curvature)), x)
        return self.loss + np.einsum("i,iab->ab", np.asarray(self.slopes), x) + 0.5 * second
