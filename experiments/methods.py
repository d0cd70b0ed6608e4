"""Surgeries by a name with settings, as studies list them."""

import json
from dataclasses import fields, replace
from typing import Any

from curvjax.surgery import SURGERIES, Surgery


def surgery_named(arm: str, **given: Any) -> Surgery:
    """The surgery of an arm's name, `gptq/act_order=false/damping=0.01`, with these settings.

    Args:
      arm: name in `SURGERIES`, then settings in JSON, each after a slash.
      given: settings of every arm; a seed counts where the surgery has one.
    """
    name, *settings = arm.split("/")
    own = {field: json.loads(value or "true") for field, _, value in (each.partition("=") for each in settings)}
    seed = given.pop("seed", None)
    method: Any = SURGERIES[name](**given, **own)
    seeded = seed is not None and "seed" in {field.name for field in fields(method)}
    return replace(method, seed=seed) if seeded else method
