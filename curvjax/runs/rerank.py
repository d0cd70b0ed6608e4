"""Trained adapters cut to a budget, in the metric of what their projections receive."""

from dataclasses import replace
from pathlib import Path

from curvjax.interop import load_peft
from curvjax.models import Loaded, require_decoder
from curvjax.records import Origin, Rebuilt
from curvjax.runs.activations import input_moments
from curvjax.runs.text import Text
from curvjax.surgery import Rerank, lora_ranks, merge_lora


def rerank(
    model: Loaded | Rebuilt, total: int, *, adapter: str | Path | None = None, text: Text | None = None
) -> Rebuilt:
    """A model whose trained adapters are cut to a total rank, by one threshold on all singular values of scale B A.

    Without a text the adapters stay closest as matrices; with one, their outputs do, on its tokens: the singular values
    are those of H^(1/2) (scale A B), H the second moment of what each projection receives; `curvjax.surgery.Rerank`.

    Args:
      model: of `adapt` or `rebuild`, with LoRA adapters, or of `load`, with the adapters of a checkpoint or `adapter`.
      total: ranks of all adapters together.
      adapter: directory of an adapter of PEFT's to put on it first.
      text: calibration rows, for the metric.

    Returns:
      The model; an adapter that keeps no rank is gone. `save` writes it for PEFT.

    Raises:
      FileNotFoundError: if the adapter is not there.
      ValueError: if there is no plain LoRA adapter, or the total is out of reach.

    Example:
      >>> import curvjax as cj
      >>> model = cj.load("glassllm")
      >>> text = cj.read("demo:squad", model, tokens=64, length=64)
      >>> ranks = cj.allocate(cj.score(model, text, "erk"), cj.Ranks(2))
      >>> lora = cj.rebuild(model, ranks, cj.LoRA(start="principal"))
      >>> sum(unit.realised for unit in cj.rerank(lora, 12, text=text).units)
      12
    """
    require_decoder(model, "rerank")
    source = model.source if isinstance(model, Rebuilt) else model
    decoder = model.model if adapter is None else load_peft(model.model, adapter)
    moments = None
    if text is not None:
        kernels = [f"{path}.kernel" for path in lora_ranks(decoder)]
        moments = input_moments(merge_lora(decoder), text.batch, kernels, rows=len(text.batch.tokens))
    found = Rerank(total=total)(decoder, moments)
    origin = Origin(model=source.origin, text=None if text is None else text.origin, settings=found.settings)
    return replace(found, origin=origin, source=source)
