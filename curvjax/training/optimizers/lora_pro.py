"""LoRA-Pro: gradients of A and B whose common step on the kernel is nearest to that of its full gradient.

Source: Wang et al., "LoRA-Pro: Are Low-Rank Adapters Properly Optimized?", 2024 (theorems 2.1 to 2.3), and the authors'
program for what is only there: Adam's moments are those of the equivalent gradient, 1e-8 is added to both Gram
matrices, whose inverses are pseudo-inverses. The paper has W + s B A with kernels [out, in]; ours are transposed.
Differs: the Sylvester equation is solved by the eigenvectors of its two symmetric matrices, where the program takes
general ones; decay is decoupled; `moments="factors"`, which needs no array of the kernel's size, is ours.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from curvjax.training.optimizers.registry import OptimizerTerms, Trained, optimizer


class LoRAFactors(NamedTuple):
    """lora_a: `[.., in, r]`, lora_b: `[.., r, out]`: matrices of an adapter, or their gradients."""

    lora_a: Float[Array, "*E inputs r"]
    lora_b: Float[Array, "*E r outputs"]


def adjusted(adapter: LoRAFactors, gradient: LoRAFactors, *, scale: float, damping: float = 1e-8) -> LoRAFactors:
    """Of all gradients of A and B whose equivalent gradient is nearest to G, those nearest to the plain ones.

        argmin |gA* - gA|^2 + |gB* - gB|^2  over  argmin |s (gA* B + A gB*) - G|^2,   gA = s G B', gB = s A' G

    G, the full gradient of W in W + s A B, is not needed:

        gA* = gA (B B')^-1 / s^2 + A Y             gB* = (A'A)^-1 gB (I - B'(B B')^-1 B) / s^2 - Y B
        A'A Y + Y B B' = -A' gA (B B')^-1 / s^2

    At birth, B = 0 and gA = 0, gA* stays 0 and gB* is (A'A)^-1 gB / s^2.

    Args:
      adapter: A and B.
      gradient: of the loss in A and B.
      scale: s.
      damping: added to the eigenvalues of A'A and B B' before they are inverted; positive.

    Returns:
      gA* and gB*.
    """
    (a, b), (gradient_a, gradient_b) = adapter, gradient
    (of_a, left), (of_b, right) = (jnp.linalg.eigh(gram) for gram in (a.mT @ a, b @ b.mT))
    invert_a, invert_b = _pseudo_inverse(of_a, left, damping), _pseudo_inverse(of_b, right, damping)
    plain_a = gradient_a @ invert_b / scale**2
    plain_b = invert_a @ (gradient_b - gradient_b @ b.mT @ invert_b @ b) / scale**2
    sums = of_a[..., :, None] + of_b[..., None, :]
    solvable = sums > _least(sums.max((-2, -1), keepdims=True), of_a.shape[-1])
    turned = left.mT @ (-a.mT @ plain_a) @ right
    shift = left @ jnp.where(solvable, turned / jnp.where(solvable, sums, 1.0), 0.0) @ right.mT
    return LoRAFactors(plain_a + a @ shift, plain_b - shift @ b)


def equivalent(adapter: LoRAFactors, gradient: LoRAFactors, *, scale: float) -> Float[Array, "*E inputs outputs"]:
    """s (gA B + A gB): the direction in which W + s A B moves as A and B move along gA and gB."""
    return scale * (gradient.lora_a @ adapter.lora_b + adapter.lora_a @ gradient.lora_b)


@optimizer
@dataclass(frozen=True, kw_only=True)
class LoRAPro:
    """Steps of A and B along `adjusted` gradients, by Adam's moments of their `equivalent` gradient.

        g = equivalent(adjusted(gA, gB));   u = m / (sqrt(v) + eps), m and v of g
        (A, B) <- (A, B) - rate (adjusted(s u B', s A' u) + decay (A, B))

    so that A B moves by the projection of Adam's full step on what an adapter can follow. State: two moments of each
    adapted kernel's size, as much as full fine-tuning keeps; with `moments="factors"` two of A's and B's. Magnitudes,
    routers and whole experts take AdamW's step.

    Example:
      >>> import curvjax as cj
      >>> cj.LoRAPro(moments="factors").damping
      1e-08
    """

    name: ClassVar[str] = "lora-pro"

    moments: Literal["equivalent", "factors"] = "equivalent"
    """Adam's, of the equivalent gradient (the published way), or of the adjusted gradients of A and B."""
    beta1: float = 0.9
    """Decay of the mean gradient."""
    beta2: float = 0.999
    """Decay of the mean squared gradient."""
    eps: float = 1e-8
    """Beside sqrt(v)."""
    damping: float = 1e-8
    """Added to the eigenvalues of A'A and B B' before they are inverted; positive."""

    def __post_init__(self):
        if self.damping <= 0:
            msg = f"damping must be positive, B is born zero and B B' has no inverse; got {self.damping}."
            raise ValueError(msg)

    def transformation(self, terms: OptimizerTerms) -> optax.GradientTransformation:
        """See `Optimizer`."""
        return optax.chain(
            self._adam_of_equivalents(terms) if self.moments == "equivalent" else self._adam_of_factors(terms),
            optax.add_decayed_weights(terms.weight_decay),
            optax.scale_by_learning_rate(terms.rate),
        )

    def _adam(self) -> optax.GradientTransformation:
        return optax.scale_by_adam(b1=self.beta1, b2=self.beta2, eps=self.eps)

    def _adjusted(self, trained: Trained, gradient: Trained, terms: OptimizerTerms) -> Trained:
        """With the gradients of all pairs adjusted."""
        found = dict(gradient)
        for path in _pairs(trained):
            pair = adjusted(
                _factors(trained, path), _factors(gradient, path), scale=terms.scales[path], damping=self.damping
            )
            found |= {f"{path}.{name}": array for name, array in pair._asdict().items()}
        return found

    def _adam_of_factors(self, terms: OptimizerTerms) -> optax.GradientTransformation:
        adam = self._adam()

        def update(updates: Any, state: Any, params: Any = None):
            return adam.update(self._adjusted(params, updates, terms), state)

        return optax.GradientTransformation(adam.init, update)

    def _adam_of_equivalents(self, terms: OptimizerTerms) -> optax.GradientTransformation:
        adam: Any = self._adam()  # of dictionaries of arrays, which optax's types do not say

        def seen(trained: Trained, gradient: Trained) -> Trained:
            """Equivalent gradients by module path, and all others by path."""
            rest = {path: array for path, array in gradient.items() if not path.endswith((".lora_a", ".lora_b"))}
            return rest | {
                path: equivalent(_factors(trained, path), _factors(gradient, path), scale=terms.scales[path])
                for path in _pairs(trained)
            }

        def init(params: Any):
            return adam.init(seen(params, params))

        def update(updates: Any, state: Any, params: Any = None):
            found, state = adam.update(seen(params, self._adjusted(params, updates, terms)), state)
            chained = dict(updates) | {path: step for path, step in found.items() if path in updates}
            for path in _pairs(params):
                (a, b), step = _factors(params, path), terms.scales[path] * found[path]
                chained |= {f"{path}.lora_a": step @ b.mT, f"{path}.lora_b": a.mT @ step}
            return self._adjusted(params, chained, terms), state

        return optax.GradientTransformation(init, update)


def _pairs(trained: Trained) -> list[str]:
    """Module paths of adapters, in order."""
    return [path.removesuffix(".lora_a") for path in trained if path.endswith(".lora_a")]


def _factors(arrays: Trained, path: str) -> LoRAFactors:
    return LoRAFactors(arrays[f"{path}.lora_a"], arrays[f"{path}.lora_b"])


def _pseudo_inverse(values: Array, vectors: Array, damping: float) -> Array:
    """Of V diag(values + damping) V', without eigenvalues that are zero to rounding."""
    damped = values + damping
    kept = damped > _least(damped.max(-1, keepdims=True), values.shape[-1])
    return (vectors * jnp.where(kept, 1.0 / jnp.where(kept, damped, 1.0), 0.0)[..., None, :]) @ vectors.mT


def _least(largest: Array, size: int) -> Array:
    return size * jnp.finfo(largest.dtype).eps * largest
