"""Batches of a wrapped model: checked against what its functions promise, and as texts for what measures."""

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from curvjax.curvature import LayeredModel
from curvjax.curvature.layered import embedded, run_block
from curvjax.data import Document, documents_hash
from curvjax.models import Wrapped
from curvjax.models.cross_entropy import CrossEntropyRoot, hessian_error, token_weights
from curvjax.models.wrap import draws_labels
from curvjax.records import TextOrigin
from curvjax.runs.measure import ScoreSettings
from curvjax.runs.text import Text
from curvjax.scores import SCORES

MEASURED = ("gradients", "gains", "traces", "grams", "slopes", "hessian_slopes", "held_out")
"""Fields of `Evidence` that need losses, gradients and curvature products only."""

_TAPPED = ("kfac", "ekfac")
_SHOWN = 3


def require_measurable(model: Wrapped, name: str, settings: ScoreSettings, directory: str | Path | None) -> None:
    """Refuse scores and curvatures that need a decoder.

    Raises:
      ValueError: naming what is needed, and what there is.
    """
    if missing := [field for field in SCORES[name].needs if field not in MEASURED]:
        able = [other for other, entry in SCORES.items() if set(entry.needs) <= set(MEASURED)]
        msg = (
            f"score {name!r} reads {', '.join(missing)}, which is measured in a decoder of curvjax.load only; on the "
            f"wrapped model {model.name!r} there are {', '.join(able)}."
        )
        raise ValueError(msg)
    if settings.curvature in _TAPPED:
        msg = (
            f"curvature {settings.curvature!r} needs the inputs of linear maps, which a wrapped model does not show; "
            "take ggn, hessian, diagonal or empirical-fisher."
        )
        raise ValueError(msg)
    if settings.curvature == "fisher-mc" and not draws_labels(model.model):
        msg = "curvature 'fisher-mc' draws labels from the model: give cj.wrap draw=, or take ggn."
        raise ValueError(msg)
    if directory is not None:
        msg = (
            f"a directory is known by what was measured, and the functions of {model.name!r} have no hash; leave it "
            "out, and save what comes: scores.save(path)."
        )
        raise ValueError(msg)


def as_text(wrapped: Wrapped, batch: Any) -> Text:
    """A batch as a text, each sequence a document, once the model is found to be what `wrap` asks for on it.

    Raises:
      ValueError: if leaves are no arrays or disagree about the number of sequences, no token counts, shapes are not
        those that `wrap` names, sequences see each other, or the loss is no sum over counted tokens or no
        cross-entropy where it has to be.
    """
    batch = _arrays(batch)
    model, size = wrapped.model, len(jax.tree.leaves(batch)[0])
    counts = np.asarray(_counts(model, batch), np.float64)
    if not (counts >= 0).all() or not counts.sum() > 0:
        msg = f"the batch's sequences count {counts[:_SHOWN].tolist()}, ... tokens; give a batch with counted tokens."
        raise ValueError(msg)
    fullest = np.argsort(-counts, kind="stable")[:2]
    _require_sound(model, _rows(batch, np.resize(fullest, 2)))
    rows = zip(*map(_bytes, jax.tree.leaves(batch)), strict=True)
    content = [hashlib.sha256(b"".join(row)).hexdigest() for row in rows]
    documents = tuple(Document(f"sequence/{i}", text) for i, text in enumerate(content))
    return Text(batch, _origin(documents, counts.sum(), size), documents)


def split_sequences(wrapped: Wrapped, text: Text) -> tuple[Text, Text]:
    """The same batch in two: three of four sequences for calibration, every fourth for validation.

    Raises:
      ValueError: if there are fewer than four.
    """
    size = len(text.documents)
    if size < 4:
        msg = f"this score meets every fourth sequence as a second text, and the batch has {size}: give at least 4."
        raise ValueError(msg)
    places = np.arange(size)
    return _part(wrapped, text, places[places % 4 != 3]), _part(wrapped, text, places[3::4])


def _part(wrapped: Wrapped, text: Text, places: np.ndarray) -> Text:
    batch, documents = _rows(text.batch, places), tuple(text.documents[i] for i in places)
    return Text(batch, _origin(documents, float(wrapped.model.loss.count(batch)), len(places)), documents)


def _origin(documents: tuple[Document, ...], tokens: float, size: int) -> TextOrigin:
    return TextOrigin(source="a batch", sha256=documents_hash(documents), tokens=round(tokens), sequences=size)


def _arrays(batch: Any) -> Any:
    leaves = jax.tree_util.tree_leaves_with_path(batch)
    shapes = {jax.tree_util.keystr(path, simple=True, separator="."): np.shape(leaf) for path, leaf in leaves}
    wrong = [path for path, shape in shapes.items() if not shape]
    if not shapes or wrong or len({shape[0] for shape in shapes.values()}) > 1:
        few = ", ".join(f"{path} {shape}" for path, shape in list(shapes.items())[:4]) or "none"
        msg = f"the leading axis of every array of a batch must count its sequences; the shapes are {few}."
        raise ValueError(msg)
    return jax.tree.map(jnp.asarray, batch)


def _bytes(leaf: jax.Array) -> list[bytes]:
    return [row.tobytes() for row in np.asarray(leaf)]


def _rows(batch: Any, places: np.ndarray) -> Any:
    return jax.tree.map(lambda a: a[places], batch)


def _counts(model: LayeredModel, batch: Any) -> jax.Array:
    """Counted tokens of every sequence."""
    counted = jax.eval_shape(model.loss.count, batch)
    if getattr(counted, "shape", None) != ():
        msg = f"count must give one number, got shape {getattr(counted, 'shape', counted)}: sum over the batch."
        raise ValueError(msg)
    return jax.vmap(lambda row: model.loss.count(jax.tree.map(lambda a: a[None], row)))(batch)


def _require_sound(model: LayeredModel, pair: Any) -> None:
    """What `wrap` asks for, on two sequences."""
    z, alone = _logits(model, pair, 2), [_logits(model, _rows(pair, np.asarray([i])), 1) for i in range(2)]
    tolerance = _tolerance(z)
    for i, each in enumerate(alone):
        for a, b in zip(jax.tree.leaves(z), jax.tree.leaves(each), strict=True):
            far, size = float(jnp.max(jnp.abs(a[i] - b[0]))), float(jnp.max(jnp.abs(a[i])))
            if far > tolerance * max(size, 1.0):
                msg = (
                    f"a sequence's logits move by {far:.3g} where another one stands beside it: sequences must not see "
                    "each other. Switch off what reads the whole batch (batch statistics, capacities of experts)."
                )
                raise ValueError(msg)
    _require_sum(model, pair, z, tolerance)
    if isinstance(model.loss.sample, CrossEntropyRoot):
        _require_cross_entropy(model, pair, z, tolerance)


def _logits(model: LayeredModel, batch: Any, size: int) -> Any:
    x = embedded(model.loss, model.outer, batch)
    _require_leading(x, size, "embed")
    for k, (spec, weights) in enumerate(zip(model.specs, model.blocks, strict=True)):
        x = run_block(model.loss, spec, weights, x, batch)
        _require_leading(x, size, f"block {k}")
    z = _applied(model.loss.readout, model.outer, x, batch)
    _require_leading(z, size, "readout")
    return z


@partial(jax.jit, static_argnums=0)
def _applied(function: Callable, *arguments: Any) -> Any:
    return function(*arguments)


def _require_leading(x: Any, size: int, place: str) -> None:
    shapes = _shapes(x)
    if not shapes or any(not shape or shape[0] != size for shape in shapes):
        msg = f"{place} gives shapes {shapes} for {size} sequences; the leading axis must count them."
        raise ValueError(msg)
    kinds = {str(leaf.dtype) for leaf in jax.tree.leaves(x) if not jnp.issubdtype(leaf.dtype, jnp.floating)}
    if kinds:
        msg = f"{place} gives {', '.join(sorted(kinds))}; what runs through the blocks must be of floating point."
        raise ValueError(msg)


def _require_sum(model: LayeredModel, pair: Any, z: Any, tolerance: float) -> None:
    loss = partial(_applied, model.loss.loss)
    shape = jax.eval_shape(model.loss.loss, z, pair).shape
    if shape:
        msg = f"loss must give one number, got shape {shape}: sum it over the counted tokens."
        raise ValueError(msg)
    one = [partial(jax.tree.map, lambda a, i=i: a[i : i + 1]) for i in range(2)]
    whole, parts = float(loss(z, pair)), sum(float(loss(row(z), row(pair))) for row in one)
    if not abs(whole - parts) <= tolerance * max(abs(whole), abs(parts), 1.0):
        msg = (
            f"loss is {whole:.6g} for two sequences and {parts:.6g} for the one and the other: it must be the sum over "
            "counted tokens, not a mean."
        )
        raise ValueError(msg)


def _require_cross_entropy(model: LayeredModel, pair: Any, z: Any, tolerance: float) -> None:
    if not isinstance(z, jax.Array) or z.ndim < 2 or z.shape[-1] < 2:
        msg = f"readout must give logits [B, .., V], got {_shapes(z)}; for another loss give wrap sample=."
        raise ValueError(msg)
    loss = model.loss.loss
    error = float(hessian_error(loss, z, pair, jax.random.key(0)))
    if not error <= tolerance:
        msg = (
            f"the loss's Hessian in the logits is {error:.2g} off that of a cross-entropy: put soft capping into "
            "readout, or give wrap sample=(key, z, batch) -> u with E[u u'] that Hessian."
        )
        raise ValueError(msg)
    total = float(jnp.sum(token_weights(loss, z, pair)))
    count = float(model.loss.count(pair))
    if not abs(total - count) <= tolerance * max(total, count):
        msg = (
            f"the tokens' weights in the loss sum to {total:.6g}, and count says {count:.6g}: the loss must be the sum "
            "over counted tokens, and count their number, or the sum of their weights."
        )
        raise ValueError(msg)


def _shapes(x: Any) -> list[tuple[int, ...]]:
    return [np.shape(leaf) for leaf in jax.tree.leaves(x)]


def _tolerance(z: Any) -> float:
    """Rounding of half the digits."""
    return max(float(jnp.sqrt(jnp.finfo(leaf.dtype).eps)) for leaf in jax.tree.leaves(z))
