"""RDP-LoRA: adapt the layers at which the path of the hidden state turns."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from curvjax.scores.evidence import Evidence
from curvjax.scores.reading import require_evidence
from curvjax.scores.registry import plan
from curvjax.scores.totals import whole_total


@plan(
    "rdp",
    needs=("stream",),
    total="number of layers to adapt",
    amount="1 to adapt, 0 not to",
    source="Celebi et al. 2026, arXiv 2604.19321",
)
def rdp(evidence: Evidence, *, total: float) -> Float[Array, " K"]:
    """Which layers to adapt: the corners of the simplified path of the residual stream, averaged over tokens.

    The path has a point for the embeddings and one after each layer. Ramer-Douglas-Peucker keeps both ends and then,
    again and again, the point that lies farthest from the chord of its section; layer l stands for the point after it.
    Instead of a tolerance the number of layers is given: sections are split farthest point first, equal distances from
    the front. The end of the path, hence the last layer, comes first.

    Args:
      evidence: with `stream`.
      total: how many of the model's layers are adapted, whole.

    Returns:
      `[K]` 1 for a unit of a layer to adapt, else 0; all units of one layer alike.

    Raises:
      ValueError: if `total` is not a number of layers, or the evidence does not do.

    Source: Celebi et al. (2026), "RDP LoRA", arXiv 2604.19321; Ramer (1972); Douglas & Peucker (1973). The rule for a
    given number of layers, and that layers stand for their outputs, are ours.
    """
    (stream,) = require_evidence("rdp", evidence, "stream")
    path = np.mean(np.asarray(stream, np.float64), axis=1)
    count = whole_total("rdp", total, most=len(path) - 1)
    chosen = {point - 1 for point in _corners(path)[:count]}
    return jnp.asarray([float(unit.index in chosen) for unit in evidence.units])


def _corners(path: Float[np.ndarray, "P D"]) -> list[int]:
    """All points but the first, the most telling first."""
    kept, sections = [len(path) - 1], [(0, len(path) - 1)]
    while len(kept) < len(path) - 1:
        farthest = [_farthest(path, *section) for section in sections]
        _, point = max(farthest, key=lambda found: (found[0], -found[1]))
        first, last = next(section for section in sections if section[0] < point < section[1])
        sections.remove((first, last))
        sections += [(first, point), (point, last)]
        kept.append(point)
    return kept


def _farthest(path: Float[np.ndarray, "P D"], first: int, last: int) -> tuple[float, int]:
    """Distance and place of the inner point farthest from the line through both ends; (-1, first) if there is none."""
    if last - first < 2:
        return -1.0, first
    offsets, chord = path[first + 1 : last] - path[first], path[last] - path[first]
    length = np.linalg.norm(chord)
    direction = chord / length if length > 0 else chord  # a closed section: distances from its end
    distances = np.linalg.norm(offsets - np.outer(offsets @ direction, direction), axis=1)
    inner = int(np.argmax(distances))
    return float(distances[inner]), first + 1 + inner
