"""`LISA`: not a change of the model but of what learns of it, at the weights of an allocation; see `training.drawn`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from curvjax.data import Batch
from curvjax.models import Decoder
from curvjax.models.rebuilt import require_plain
from curvjax.records import Rebuilt
from curvjax.surgery.method import Counts, Progress, account, surgery
from curvjax.surgery.projections import kernel_units


@surgery
@dataclass(frozen=True, kw_only=True)
class LISA:
    """Embedding and head, and a few layers drawn anew every so many steps, learn with all their weights.

    A layer's weight in the draw is the sum of its units' amounts. So `allocate --rule uniform` gives the published
    uniform draw, `--rule proportional` ours, in proportion to the score: held-out gain, price, or any other; a layer
    of amount 0 is never drawn. `curvjax adapt` trains, and writes a plain model; by itself this changes nothing.

    Example:
      >>> import curvjax as cj
      >>> from curvjax.testing import tiny_model
      >>> cj.LISA(layers=1).weights(tiny_model(layers=3).model, {"layers.0": 2, "layers.2": 6})
      (2.0, 0.0, 6.0)

    Source: Pan et al. (2024), arXiv 2403.17919; see `curvjax.training.drawn`.
    """

    name: ClassVar[str] = "lisa"
    targets: ClassVar[tuple[str, ...]] = ("rank",)
    reads_text: ClassVar[bool] = False

    layers: int = 2
    """gamma, layers that learn at a time, beside embedding and head."""
    every: int = 20
    """K, steps from one draw to the next. Each set of layers compiles a step of its own."""

    def __call__(
        self,
        model: Decoder,
        amounts: Mapping[str, int],
        batch: Batch | None = None,
        *,
        progress: Progress | None = None,
    ) -> Rebuilt:
        """See `Surgery`: amounts are weights in the draw, and the model is a copy as it was."""
        del batch, progress
        require_plain(model)
        units = {unit.name: int(amounts[unit.name]) for unit in kernel_units(model, amounts)}
        drawable = sum(weight > 0 for weight in self.weights(model, amounts))
        if self.every < 1 or not 1 <= self.layers <= drawable:
            msg = (
                f"lisa draws {self.layers} layers every {self.every} steps; both must be at least 1, and the layers at "
                f"most {drawable}, which have an amount above 0."
            )
            raise ValueError(msg)
        remarks = [f"{self.layers} of {drawable} layers learn at a time, drawn every {self.every} steps"]
        return account(self, "rank", (model, model), Counts(units, units, float(sum(units.values()))), remarks=remarks)

    def weights(self, model: Decoder, amounts: Mapping[str, int]) -> tuple[float, ...]:
        """The weight of every layer of the stack in the draw."""
        found = [0.0] * len(model.layers)
        for unit in kernel_units(model, amounts):
            found[unit.index] += float(amounts[unit.name])
        return tuple(found)
