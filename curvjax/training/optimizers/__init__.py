"""Published ways to step, one a file, in a registry by name."""

from curvjax.registry import import_all
from curvjax.training.optimizers.adamw import AdamW as AdamW
from curvjax.training.optimizers.allora import ALLoRA as ALLoRA
from curvjax.training.optimizers.dct_adamw import DCTAdamW as DCTAdamW
from curvjax.training.optimizers.deepzero import DeepZero as DeepZero
from curvjax.training.optimizers.lamb import LAMB as LAMB
from curvjax.training.optimizers.lora_pro import LoRAPro as LoRAPro
from curvjax.training.optimizers.noise_adaptive import NoiseAdaptive as NoiseAdaptive
from curvjax.training.optimizers.registry import OPTIMIZERS as OPTIMIZERS
from curvjax.training.optimizers.registry import Estimate as Estimate
from curvjax.training.optimizers.registry import Estimating as Estimating
from curvjax.training.optimizers.registry import Optimizer as Optimizer
from curvjax.training.optimizers.registry import OptimizerTerms as OptimizerTerms
from curvjax.training.optimizers.registry import Trained as Trained
from curvjax.training.optimizers.registry import described as described
from curvjax.training.optimizers.registry import optimizer as optimizer
from curvjax.training.optimizers.registry import state_size as state_size

import_all(__name__, __path__)
