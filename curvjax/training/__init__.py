"""Fine-tuning of adapters and experts: a pure step, a host loop, checkpoints that resume to the same numbers."""

from curvjax.training.fit import Fitted as Fitted
from curvjax.training.fit import fit as fit
from curvjax.training.optimizers import LAMB as LAMB
from curvjax.training.optimizers import OPTIMIZERS as OPTIMIZERS
from curvjax.training.optimizers import AdamW as AdamW
from curvjax.training.optimizers import ALLoRA as ALLoRA
from curvjax.training.optimizers import DCTAdamW as DCTAdamW
from curvjax.training.optimizers import Estimate as Estimate
from curvjax.training.optimizers import Estimating as Estimating
from curvjax.training.optimizers import LoRAPro as LoRAPro
from curvjax.training.optimizers import NoiseAdaptive as NoiseAdaptive
from curvjax.training.optimizers import Optimizer as Optimizer
from curvjax.training.optimizers import Terms as Terms
from curvjax.training.optimizers import described as described
from curvjax.training.optimizers import optimizer as optimizer
from curvjax.training.optimizers import state_size as state_size
from curvjax.training.precision import in_precision as in_precision
from curvjax.training.schedule import step_rows as step_rows
from curvjax.training.schedule import warmup_cosine as warmup_cosine
from curvjax.training.step import Losses as Losses
from curvjax.training.step import Recipe as Recipe
from curvjax.training.step import StepReport as StepReport
from curvjax.training.step import TrainState as TrainState
from curvjax.training.step import begin_training as begin_training
from curvjax.training.step import loss_and_gradient as loss_and_gradient
from curvjax.training.step import train_step as train_step
