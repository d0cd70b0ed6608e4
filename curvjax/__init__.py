"""Which layers of a language model deserve capacity, how much, and can you prove it?

    import curvjax as cj

    model = cj.load("glassllm")
    text = cj.read("demo:squad", model, tokens=128, length=64)
    gains = cj.score(model, text, "gain", rtol=0.05)
    ranks = cj.allocate(gains, cj.Ranks(budget=8))
    lora = cj.rebuild(model, ranks, cj.LoRA(alpha=2.0))
    cj.save(lora, "runs/lora", format="peft")

Names are imported when they are first used, so that `import curvjax` waits for nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from curvjax.allocation import Bits as Bits
    from curvjax.allocation import Experts as Experts
    from curvjax.allocation import Ranks as Ranks
    from curvjax.allocation import Sparsity as Sparsity
    from curvjax.allocation import control as control
    from curvjax.allocation import program as program
    from curvjax.allocation import rule as rule
    from curvjax.models import Loaded as Loaded
    from curvjax.models import Wrapped as Wrapped
    from curvjax.models import load_model as load_model
    from curvjax.models import wrap as wrap
    from curvjax.records import Allocation as Allocation
    from curvjax.records import Comparison as Comparison
    from curvjax.records import Landscape as Landscape
    from curvjax.records import LayerCard as LayerCard
    from curvjax.records import Outcome as Outcome
    from curvjax.records import Promise as Promise
    from curvjax.records import Rebuilt as Rebuilt
    from curvjax.records import Scores as Scores
    from curvjax.runs.landscape import FilterNoise as FilterNoise
    from curvjax.runs.landscape import NewtonStep as NewtonStep
    from curvjax.runs.landscape import RitzVector as RitzVector
    from curvjax.runs.placement import AdapterTrials as AdapterTrials
    from curvjax.runs.text import Text as Text
    from curvjax.surgery import GPTQ as GPTQ
    from curvjax.surgery import LISA as LISA
    from curvjax.surgery import QVLM as QVLM
    from curvjax.surgery import RSQ as RSQ
    from curvjax.surgery import AdaQuant as AdaQuant
    from curvjax.surgery import ALaST as ALaST
    from curvjax.surgery import Channels as Channels
    from curvjax.surgery import Factorize as Factorize
    from curvjax.surgery import Heads as Heads
    from curvjax.surgery import LoRA as LoRA
    from curvjax.surgery import LoRAMixture as LoRAMixture
    from curvjax.surgery import Maestro as Maestro
    from curvjax.surgery import Magnitude as Magnitude
    from curvjax.surgery import Nearest as Nearest
    from curvjax.surgery import RSparse as RSparse
    from curvjax.surgery import SliderQuant as SliderQuant
    from curvjax.surgery import SparseGPT as SparseGPT
    from curvjax.surgery import Structured as Structured
    from curvjax.surgery import Upcycle as Upcycle
    from curvjax.surgery import Wanda as Wanda
    from curvjax.training import LAMB as LAMB
    from curvjax.training import AdamW as AdamW
    from curvjax.training import ALLoRA as ALLoRA
    from curvjax.training import DCTAdamW as DCTAdamW
    from curvjax.training import DeepZero as DeepZero
    from curvjax.training import LoRAPro as LoRAPro
    from curvjax.training import NoiseAdaptive as NoiseAdaptive
    from curvjax.trials import compare as compare
    from curvjax.trials import descend as descend
    from curvjax.trials import judge as judge
    from curvjax.trials import landscape as landscape
    from curvjax.trials import promise as promise
    from curvjax.verbs import adapt as adapt
    from curvjax.verbs import allocate as allocate
    from curvjax.verbs import evaluate as evaluate
    from curvjax.verbs import layer_card as layer_card
    from curvjax.verbs import load as load
    from curvjax.verbs import read as read
    from curvjax.verbs import rebuild as rebuild
    from curvjax.verbs import refine as refine
    from curvjax.verbs import rerank as rerank
    from curvjax.verbs import save as save
    from curvjax.verbs import score as score
    from curvjax.verbs import transfer as transfer

_HOME = {
    "curvjax.allocation": ("Bits", "Experts", "Ranks", "Sparsity", "control", "program", "rule"),
    "curvjax.models": ("Loaded", "Wrapped", "load_model", "wrap"),
    "curvjax.records": (
        "Allocation",
        "Comparison",
        "Landscape",
        "LayerCard",
        "Outcome",
        "Promise",
        "Rebuilt",
        "Scores",
    ),
    "curvjax.runs.landscape": ("FilterNoise", "NewtonStep", "RitzVector"),
    "curvjax.runs.placement": ("AdapterTrials",),
    "curvjax.runs.text": ("Text",),
    "curvjax.surgery": (
        *("ALaST", "AdaQuant", "GPTQ", "LISA", "QVLM", "RSQ", "Channels", "Factorize", "Heads", "LoRA"),
        *("LoRAMixture", "Maestro", "Magnitude", "Nearest", "RSparse", "SliderQuant", "SparseGPT", "Structured"),
        *("Upcycle", "Wanda"),
    ),
    "curvjax.training": ("LAMB", "AdamW", "ALLoRA", "DCTAdamW", "DeepZero", "LoRAPro", "NoiseAdaptive"),
    "curvjax.trials": ("compare", "descend", "judge", "landscape", "promise"),
    "curvjax.verbs": (
        "adapt",
        "allocate",
        "evaluate",
        "layer_card",
        "load",
        "read",
        "rebuild",
        "refine",
        "rerank",
        "save",
        "score",
        "transfer",
    ),
}
_PLACES = {name: home for home, names in _HOME.items() for name in names}
__all__ = sorted(_PLACES)  # noqa: PLE0605 (names come from one table)


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        msg = f"module 'curvjax' has no attribute {name!r}; it has {', '.join(__all__)}."
        raise AttributeError(msg)
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return __all__
