"""Projections stored as codes of 2 to 8 bits, a width for each, and the bytes that this takes, counted from arrays."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from curvjax.data import Batch
from curvjax.layers import Unit, module_path
from curvjax.models import Decoder, Linear, affine, parameters, submodules
from curvjax.models.rebuilt import Facts, ModuleSize, rebuilt_module
from curvjax.records import Rebuilt, plain
from curvjax.storage import UNTOUCHED, Format, stored_bytes
from curvjax.surgery.method import Counts, Surgery, account, surgery
from curvjax.surgery.projections import kernel_units, linear_with, projections, rebuilt, replaced
from curvjax.surgery.rounding.codes import Codes, decoded, nearest, packed_codes, require_format, unpacked
from curvjax.tick import Tick

Module = TypeVar("Module", bound=nnx.Module)


class QuantizedParam(nnx.Variable):
    """Codes, scales or zeros. Not an `nnx.Param`: nothing trains it, and `parameters` leaves it out."""


@rebuilt_module
class QuantizedLinear(nnx.Module):
    """y = x W + bias with W = (code - zero) scale, read back on call.

    codes: `[ceil(in bits / 8), out]` bytes, see `packed_codes`. scales: `[groups, out]`. zeros: `[groups, out]`, None
    where the grid is symmetric. No `Linear`: what edits kernels, such as `add_lora`, refuses it.
    """

    def __init__(self, base: Linear, codes: Codes, *, symmetric: bool):
        self.codes = QuantizedParam(packed_codes(codes.codes, codes.bits))
        self.scales = QuantizedParam(codes.scales)
        self.zeros = None if symmetric else QuantizedParam(codes.zeros)
        self.bias = base.bias
        self.bits, self.inputs, self.dtype = codes.bits, codes.codes.shape[0], base.kernel.dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., in]` to `[..., out]`, in x's dtype."""
        return affine(x, self.dense(), None if self.bias is None else self.bias[...])

    def dense(self) -> jax.Array:
        """The kernel that the codes stand for, `[in, out]`, in the dtype of the one they replaced."""
        scales, codes = self.scales[...], unpacked(self.codes[...], self.bits, inputs=self.inputs)
        middle = jnp.full(scales.shape, 2 ** (self.bits - 1), jnp.uint8)
        return decoded(Codes(codes, scales, middle if self.zeros is None else self.zeros[...], self.bits), self.dtype)

    def plain(self) -> Linear:
        """The projection of the kernel that the codes stand for."""
        return linear_with(self.dense(), self.bias)

    def size(self) -> ModuleSize:
        """The weights that the codes stand for, the bytes that they, scales and zeros take, and the product."""
        weights = self.inputs * self.scales.shape[1]
        arrays = jax.tree.leaves(nnx.state(self))
        bias = 0 if self.bias is None else self.bias.size
        return ModuleSize(weights + bias, sum(array.nbytes for array in arrays), 2 * weights)

    def facts(self) -> dict[str, Any]:
        """Width, groups, grid, and the dtype of the kernel that was replaced."""
        shared = {"bits": self.bits, "groups": self.scales.shape[0], "symmetric": self.zeros is None}
        return shared | {"dtype": str(self.dtype)}

    @classmethod
    def blank(cls, plain: Linear, facts: Facts) -> Self:
        """Codes of zeros."""
        shape, groups = plain.kernel.shape, (facts["groups"], plain.kernel.shape[1])
        codes = Codes(jnp.zeros(shape, jnp.uint8), jnp.zeros(groups), jnp.zeros(groups, jnp.uint8), facts["bits"])
        linear = cls(plain, codes, symmetric=facts["symmetric"])
        linear.dtype = jnp.dtype(facts["dtype"])
        return linear


class Storage(NamedTuple):
    """Bytes of the kernels of each unit, without biases.

    names: units. bits: `[K]` widths. weights: `[K]` numbers of weights. codes: `[K]` bytes of codes, or of the kernel
    as it lies in memory where the width is 16. scales, zeros: `[K]` bytes.
    """

    names: tuple[str, ...]
    bits: Int[np.ndarray, " K"]
    weights: Int[np.ndarray, " K"]
    codes: Int[np.ndarray, " K"]
    scales: Int[np.ndarray, " K"]
    zeros: Int[np.ndarray, " K"]

    @property
    def total(self) -> int:
        """Bytes of all units."""
        return int(self.codes.sum() + self.scales.sum() + self.zeros.sum())

    @property
    def bits_per_weight(self) -> float:
        """8 total / weights: scales and zeros included."""
        return 8 * self.total / int(self.weights.sum())


class QuantizationPlan(NamedTuple):
    """units: in layer order, each with the paths of its kernels. bits: width of each kernel. form: of all.

    storage: the bytes that follow from shapes and widths.
    """

    units: tuple[Unit, ...]
    bits: dict[str, int]
    form: Format
    storage: Storage


class Quantized(NamedTuple):
    """model: the copy, with `QuantizedLinear` projections. storage: counted in its arrays, and as planned.

    remarks: what else is to be said, in words.
    """

    model: Decoder
    storage: Storage
    remarks: tuple[str, ...] = ()


def quantization_plan(model: nnx.Module, widths: Mapping[str, int], form: Format) -> QuantizationPlan:
    """The width of every kernel, and the bytes that this takes.

    Args:
      model: a decoder with neither adapters nor quantised projections in the units named.
      widths: `unit -> bits`, 2 to 8, or 16 to leave it as it is. A unit is a decoder layer (`layers.3`), a part of one
        (`layers.3.mlp`) or a projection; what no unit names is left as it is, as are embeddings, head, norms, biases.
      form: groups and grid.

    Returns:
      The plan, in layer order.

    Raises:
      KeyError: if a unit holds no projection of the decoder layers.
      ValueError: if units overlap or there is none, a width is out of range, the group does not divide a kernel's
        inputs, or a projection has an adapter or is quantised already.
    """
    done = [path for path, child in submodules(model).items() if isinstance(child, QuantizedLinear)]
    if done:
        msg = f"{len(done)} projections are quantised already, e.g. {done[:3]}; start from the model as it was."
        raise ValueError(msg)
    units, linears, bits = kernel_units(model, widths), projections(model), {}
    for unit in units:
        for path in unit.paths:
            linear = linears[module_path(path)]
            if type(linear) is not Linear:
                msg = f"{module_path(path)} is a {type(linear).__name__}; merge its adapter before quantising."
                raise ValueError(msg)
            bits[path] = widths[unit.name]
            _require(path, linear.kernel.shape, bits[path], form)
    kernels = parameters(model)
    rows = [[_planned(kernels[path], bits[path], form) for path in unit.paths] for unit in units]
    return QuantizationPlan(units, bits, form, _storage(units, [widths[unit.name] for unit in units], rows))


def quantize_nearest(model: Decoder, plan: QuantizationPlan) -> Quantized:
    """A copy of `model` with every weight at the nearest point of its grid.

    Args:
      model: the decoder that was planned for.
      plan: widths and grid.

    Returns:
      The copy, and its bytes.

    Raises:
      ValueError: if a scale is not finite.
    """
    kernels, found = parameters(model), {}
    for path, bits in plan.bits.items():
        if bits != UNTOUCHED:
            try:
                found[path] = nearest(kernels[path], bits, plan.form)
            except ValueError as error:
                msg = f"{path}: {error}"
                raise ValueError(msg) from error
    return quantized(model, found, plan)


def quantized(model: Decoder, codes: Mapping[str, Codes], plan: QuantizationPlan) -> Quantized:
    """`model` with codes in place of kernels, and its bytes, counted.

    Args:
      model: a decoder.
      codes: `kernel path -> codes`.
      plan: what was asked for.

    Returns:
      The copy, and its bytes.

    Raises:
      ValueError: if the arrays do not take the bytes planned.
    """

    def stored(path: str, linear: Linear) -> QuantizedLinear:
        return QuantizedLinear(linear, codes[path], symmetric=plan.form.symmetric)

    edits = {module_path(path): lambda linear, path=path: stored(path, linear) for path in codes}
    copy = rebuilt(model, edits)
    storage = measured_storage(copy, plan.units)
    for name, found, planned in zip(Storage._fields[1:], storage[1:], plan.storage[1:], strict=True):
        if not np.array_equal(found, planned):
            msg = f"{name} of the units are {found.tolist()}, planned {planned.tolist()}."
            raise ValueError(msg)
    return Quantized(copy, storage)


def coded_modules(model: nnx.Module) -> dict[str, QuantizedLinear]:
    """The projections that are stored as codes, by path."""
    return {path: child for path, child in submodules(model).items() if isinstance(child, QuantizedLinear)}


def dequantized(model: Module) -> Module:
    """A copy of `model` with ordinary kernels in place of codes, and the same logits: what `save_hf` writes."""

    def plain(child: nnx.Module) -> Linear:
        assert isinstance(child, QuantizedLinear)
        return linear_with(child.dense(), child.bias)

    return replaced(model, dict.fromkeys(coded_modules(model), plain))


def measured_storage(model: nnx.Module, units: tuple[Unit, ...]) -> Storage:
    """Bytes counted in the arrays of `model`, per unit."""
    modules = submodules(model)
    found = [[modules[module_path(path)] for path in unit.paths] for unit in units]
    bits = [first.bits if isinstance(first := unit[0], QuantizedLinear) else UNTOUCHED for unit in found]
    return _storage(units, bits, [[_counted(child) for child in unit] for unit in found])


def _require(path: str, shape: tuple[int, ...], bits: object, form: Format) -> None:
    if type(bits) is not bool and bits == UNTOUCHED:
        return
    try:
        require_format(shape, bits, form)
    except ValueError as error:
        msg = f"{module_path(path)}: {error} Width {UNTOUCHED} leaves it as it is."
        raise ValueError(msg) from error


def _planned(kernel: jax.Array, bits: int, form: Format) -> list[int]:
    """Weights, and bytes of codes, scales and zeros."""
    inputs, outputs = kernel.shape
    if bits == UNTOUCHED:
        return [kernel.size, kernel.nbytes, 0, 0]
    return [kernel.size, *stored_bytes((inputs, outputs), bits, form)]


def _counted(child: nnx.Module) -> list[int]:
    """Weights, and bytes of codes, scales and zeros."""
    if isinstance(child, Linear):
        return [child.kernel.size, child.kernel[...].nbytes, 0, 0]
    assert isinstance(child, QuantizedLinear)
    codes, scales = child.codes[...], child.scales[...]
    zeros = 0 if child.zeros is None else child.zeros[...].nbytes
    return [child.inputs * codes.shape[1], codes.nbytes, scales.nbytes, zeros]


def _storage(units: tuple[Unit, ...], bits: list[int], rows: list[list[list[int]]]) -> Storage:
    weights, codes, scales, zeros = np.array([np.sum(unit, axis=0) for unit in rows], np.int64).T
    return Storage(tuple(unit.name for unit in units), np.array(bits, np.int64), weights, codes, scales, zeros)


def quantized_units(method: Surgery, model: Decoder, widths: Mapping[str, int], found: Quantized) -> Rebuilt:
    """What a quantisation made.

    The total counts bits of codes, with those that fill up a byte, and 16 for a weight left as it is; "storage" in the
    evidence has the bytes of all arrays, scales and zeros included.
    """
    storage = found.storage
    realised = dict(zip(storage.names, storage.bits.tolist(), strict=True))
    total = np.where(storage.bits == UNTOUCHED, UNTOUCHED * storage.weights, 8 * storage.codes).sum()
    fields = ("name", *Storage._fields[1:])
    units = [dict(zip(fields, row, strict=True)) for row in zip(*storage, strict=True)]
    evidence = {"storage": {"bytes": storage.total, "bits_per_weight": storage.bits_per_weight, "units": units}}
    counts = Counts({name: int(widths[name]) for name in realised}, realised, float(total))
    stored = f"{storage.total:,} bytes, {storage.bits_per_weight:.3f} bits per weight with scales and zeros"
    models, remarks = (model, found.model), (stored, *found.remarks)
    return account(method, method.targets[0], models, counts, remarks=remarks, evidence=plain(evidence))


@dataclass(frozen=True, kw_only=True)
class Grids(ABC):
    """What surgeries that round to grids have in common; `quantize` is what each does."""

    name: ClassVar[str]
    targets: ClassVar[tuple[str, ...]] = ("bits",)
    reads_text: ClassVar[bool]

    group: int = 64
    """Inputs that share a scale; -1: all inputs of a projection."""
    symmetric: bool = False
    """Grids as wide below zero as above, which need no zeros."""
    scales: Literal["float32", "float16"] = "float16"
    """The type of the scales."""

    @property
    def form(self) -> Format:
        """Groups and grid."""
        return Format(self.group, self.symmetric, self.scales)

    def __call__(
        self,
        model: Decoder,
        amounts: Mapping[str, int],
        batch: Batch | None = None,
        *,
        progress: Tick | None = None,
    ) -> Rebuilt:
        """See `Surgery`: amounts are widths, 2 to 8, or 16 for a unit left as it is."""
        plan = quantization_plan(model, amounts, self.form)
        return quantized_units(self, model, amounts, self.quantize(model, batch, plan, progress))

    @abstractmethod
    def quantize(self, model: Decoder, batch: Batch | None, plan: QuantizationPlan, progress: Tick | None) -> Quantized:
        """The model with every kernel at its width; `batch` where the surgery reads text."""


@surgery
@dataclass(frozen=True, kw_only=True)
class Nearest(Grids):
    """Every weight at the nearest point of its grid; see `quantize_nearest`.

    Example:
      >>> import curvjax as cj
      >>> from curvjax.testing import tiny_model
      >>> model = tiny_model(layers=1).model
      >>> cj.Nearest(group=8)(model, {"layers.0.mlp": 4}).remarks
      ('1,008 bytes, 7.000 bits per weight with scales and zeros',)
    """

    name: ClassVar[str] = "nearest"
    reads_text: ClassVar[bool] = False

    def quantize(self, model: Decoder, batch: Batch | None, plan: QuantizationPlan, progress: Tick | None) -> Quantized:
        """By `quantize_nearest`."""
        del batch, progress
        return quantize_nearest(model, plan)

    def edited(self, kernel: Float[Array, "I O"], amount: int, moment: Float[Array, "I I"] | None) -> jax.Array:
        """On a grid of 2^amount points; see `Stepwise`."""
        del moment
        return kernel if amount == UNTOUCHED else decoded(nearest(kernel, amount, self.form), kernel.dtype)
