"""What does a step that trains adapters cost, against a gradient of the whole model and a step that trains all of it?

Command:   .venv/bin/python -m experiments.training.step_speed    (writes step_speed.json beside itself)
Hardware:  2 CPU cores, no accelerator; about 3 minutes
Expected:  two thirds of the whole gradient and a little more: a forward and a backward pass, of which the second forms
           no gradient of a frozen kernel; less against a step that also updates all parameters. On a CPU bfloat16 is
           no faster than float32: its matrix products are converted.
Control:   FLOPs as the compiler counts them, which do not feel other work on the machine. A ratio of 1 or more against
           the whole gradient refutes the claim. All see the same rows, and each is one compiled program.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from curvjax.models.layered import cross_entropy
from curvjax.surgery import add_lora, projections
from curvjax.training import Recipe, begin_training, in_precision
from curvjax.training.step import _step
from experiments.benchmarks.measuring import Settings, alternated, command, median, ratio, seconds, subject


@dataclass(frozen=True, kw_only=True)
class StepSpeed(Settings):
    """The steps that are timed."""

    rank: int = 8
    """Of the adapter on every projection."""


def adapter_step(model, recipe, batch):
    """One step of `train_step`'s compiled program, and its FLOPs."""
    graph, frozen = nnx.split(model)
    arguments = frozen, begin_training(model, recipe), batch, None
    return program(_step.lower(graph, recipe, None, *arguments), arguments)


def whole_gradient(model, batch):
    """The gradient of the mean loss in all parameters of the model, and its FLOPs."""
    graph, state = nnx.split(model)
    return program(jax.jit(jax.grad(partial(mean_loss, graph))).lower(state, batch), (state, batch))


def whole_step(model, recipe, batch):
    """A plain step of the same optimiser on all parameters of the model, and its FLOPs."""
    graph, state = nnx.split(model)
    optimizer = recipe.optimizer()

    def step(state, moments, batch):
        loss, gradient = jax.value_and_grad(partial(mean_loss, graph))(state, batch)
        updates, moments = optimizer.update(gradient, moments, state)
        return optax.apply_updates(state, updates), moments, loss

    arguments = state, optimizer.init(state), batch
    return program(jax.jit(step).lower(*arguments), arguments)


def mean_loss(graph, state, batch):
    logits = nnx.merge(graph, state)(batch.tokens, positions_BT=batch.positions, segments_BT=batch.segments)
    return cross_entropy(logits, batch) / jnp.sum(batch.weights)


def program(lowered, arguments):
    compiled = lowered.compile()
    return partial(compiled, *arguments), compiled.cost_analysis()["flops"]


def measure(settings: StepSpeed) -> dict[str, Any]:
    studied = subject(settings)
    recipe = Recipe(steps=10, learning_rate=1e-3)
    ranks = dict.fromkeys((path for path in projections(studied.model) if path.startswith("layers.")), settings.rank)
    adapted = add_lora(studied.model, ranks, key=jax.random.key(settings.seed))
    programs = {
        "adapter_step": adapter_step(adapted, recipe, studied.batch),
        "adapter_step_bfloat16": adapter_step(in_precision(adapted, jnp.bfloat16), recipe, studied.batch),
        "whole_gradient": whole_gradient(studied.model, studied.batch),
        "whole_step": whole_step(studied.model, recipe, studied.batch),
    }
    costs = alternated({name: run for name, (run, _) in programs.items()}, settings.repeats)

    def against(one: str, other: str) -> dict[str, Any]:
        flops = programs[one][1] / programs[other][1]
        return ratio(median(costs[one]), median(costs[other])) | {"flops": flops}

    return {
        "model": studied.name,
        "rows": studied.batch.tokens.shape[0],
        "length": studied.batch.tokens.shape[1],
        "adapter_step_over_whole_gradient": against("adapter_step", "whole_gradient"),
        "adapter_step_over_whole_step": against("adapter_step", "whole_step"),
        "bfloat16_over_float32": against("adapter_step_bfloat16", "adapter_step"),
        "programs": {name: seconds(costs[name]) | {"flops": flops} for name, (_, flops) in programs.items()},
    }


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    return command(measure, StepSpeed(tokens=512, length=128), {"rank": 2}, arguments)


if __name__ == "__main__":
    main()
