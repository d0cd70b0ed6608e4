"""Trained adapters cut to a total rank by one threshold on all their singular values."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from curvjax.layers import layer_index
from curvjax.models import Decoder, Linear
from curvjax.records import Rebuilt
from curvjax.surgery.growing.lora import LoRALinear, adapters, lora_ranks
from curvjax.surgery.method import Counts, account
from curvjax.surgery.projections import linear_with, rebuilt


class _AdapterSVD(NamedTuple):
    """An adapter by its singular values. values: `[r]` falling. right: `[out, r]` orthonormal right vectors."""

    values: Float[np.ndarray, " r"]
    right: Float[np.ndarray, "O r"]


@dataclass(frozen=True, kw_only=True)
class Rerank:
    """The closest adapters of one total rank; that of each follows from one threshold for all.

        min sum_k |M_k - M'_k|_k^2  s.t.  sum_k rank M'_k = total,   M_k = scale_k A_k B_k,   |X|_k^2 = tr X' H_k X

    with H_k = 1, or the second moment E x x' of what the projection receives, K-FAC's factor of its inputs, so that
    |X|_k^2 is the mean square of what X changes in its outputs. The `total` largest singular values of all H_k^(1/2)
    M_k stay, and M'_k = M_k W_k W_k' with W_k their right vectors, so that nothing is inverted.

    Source: Eckart & Young (1936), Psychometrika 1(3), for one adapter; the whitening as in Wang et al. (2024), SVD-LLM,
    arXiv 2403.07378.
    """

    name: ClassVar[str] = "rerank"

    total: int
    """Ranks of all adapters together."""

    def __call__(self, model: Decoder, moments: Mapping[str, Float[Array, "I I"]] | None = None) -> Rebuilt:
        """The model with the adapters cut; one that keeps no rank goes.

        Args:
          model: with plain LoRA adapters, ours or PEFT's.
          moments: `kernel path -> [in, in]`, H of every adapted projection; None: 1.

        Returns:
          The value; units are the adapted projections.

        Raises:
          KeyError: if an adapted projection has no moment.
          ValueError: if there is no adapter, one is a mixture or has magnitudes, or the total is out of reach.
        """
        found = dict(sorted(adapters(model).items(), key=lambda item: layer_index(item[0])))
        _require_plain(found)
        most = sum(lora_ranks(model).values())
        if isinstance(self.total, bool) or not isinstance(self.total, int | np.integer) or not 1 <= self.total <= most:
            msg = f"total must be a whole number from 1 to {most}, the ranks there are; got {self.total!r}."
            raise ValueError(msg)
        if moments is not None and (missing := [path for path in found if f"{path}.kernel" not in moments]):
            msg = f"{len(missing)} adapted projections have no moment, e.g. {missing[:3]}; give one for each."
            raise KeyError(msg)
        cuts = {path: cut(each, None if moments is None else moments[f"{path}.kernel"]) for path, each in found.items()}
        ranks, threshold = shared_ranks([each.values for each in cuts.values()], self.total)
        planned = dict(zip(cuts, ranks, strict=True))
        edits = {path: partial(truncated, cut=cuts[path], rank=rank) for path, rank in planned.items()}
        after = rebuilt(model, edits)
        realised = {path: lora_ranks(after).get(path, 0) for path in planned}
        squares = np.concatenate([each.values**2 for each in cuts.values()])
        kept = sum(float(np.sum(cuts[path].values[:rank] ** 2)) for path, rank in planned.items())
        share = kept / max(float(squares.sum()), np.finfo(float).tiny)
        remarks = [f"{share:.2%} of the adapters' squared size is kept"]
        evidence: dict[str, Any] = {"threshold": threshold, "kept": share, "metric": moments is not None}
        counts = Counts(planned, realised, float(self.total))
        return account(self, "rank", (model, after), counts, remarks=remarks, evidence=evidence)


def cut(adapter: LoRALinear, moment: Float[Array, "I I"] | None = None) -> _AdapterSVD:
    """Singular values and right vectors of H^(1/2) (scale A B), by `[r, r]` matrices alone; in float64.

    Of H^(1/2) A only R of its QR factorisation is needed, with R'R = A' H A.
    """
    a, b = (np.asarray(x[...], np.float64) for x in (adapter.lora_a, adapter.lora_b))
    if moment is None:
        root = np.linalg.qr(a)[1]
    else:
        squares, axes = np.linalg.eigh(a.T @ np.asarray(moment, np.float64) @ a)
        root = np.sqrt(np.maximum(squares, 0.0))[:, None] * axes.T
    basis, rest = np.linalg.qr(b.T)
    _, values, right = np.linalg.svd(adapter.scale * root @ rest.T, full_matrices=False)
    return _AdapterSVD(values, basis @ right.T)


def shared_ranks(values: list[Float[np.ndarray, " r"]], total: int) -> tuple[list[int], float]:
    """How many of each falling list are among the `total` largest of all, and the smallest that is."""
    owner = np.concatenate([np.full(len(each), k) for k, each in enumerate(values)])
    pooled = np.concatenate(values)
    chosen = np.argsort(-pooled, kind="stable")[:total]  # of equal ones the first: within a list always its beginning
    return np.bincount(owner[chosen], minlength=len(values)).tolist(), float(pooled[chosen[-1]])


def truncated(adapter: Linear, *, cut: _AdapterSVD, rank: int) -> Linear:
    """The adapter of the first `rank` of its own singular directions; the plain projection for none."""
    assert isinstance(adapter, LoRALinear)
    if rank == 0:
        return linear_with(adapter.kernel[...], adapter.bias)
    right = cut.right[:, :rank]
    a, b = (np.asarray(x[...], np.float64) for x in (adapter.lora_a, adapter.lora_b))
    left = a @ (b @ right)
    lengths = np.linalg.norm(left, axis=0)
    balance = np.sqrt(np.where(lengths > 0, lengths, 1.0))[None, :]  # both factors of one size, as after training
    matrices = (jnp.asarray(x, adapter.lora_a.dtype) for x in (left / balance, (right * balance).T))
    found = LoRALinear(adapter, *matrices, scale=adapter.scale)
    found.trained = adapter.trained
    return found


def _require_plain(found: Mapping[str, LoRALinear]) -> None:
    if not found:
        msg = "the model has no adapter to cut; train one with adapt, or load one of PEFT's."
        raise ValueError(msg)
    other = [f"{path} ({type(each).__name__})" for path, each in found.items() if type(each) is not LoRALinear]
    if other:
        msg = f"only plain adapters scale A B have singular values to cut; {len(other)} have more, e.g. {other[:3]}."
        raise ValueError(msg)
