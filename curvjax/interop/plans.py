"""A plan of widths or ranks alone, as the text in which another program takes it and does the work itself.

Names are written out and, where they are patterns, closed at both ends, so that layer 1 is not layer 10 or 11. Width 16
leaves a module as it is.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from curvjax.storage import UNTOUCHED, Format

Widths = Mapping[str, int]


class PlanFile(NamedTuple):
    """A file's name, what writes its text of widths and a grid, and the widths that the program has.

    symmetric_only: those that it has on symmetric grids alone.
    """

    name: str
    text: Callable[[Widths, Format], str]
    widths: tuple[int, ...]
    symmetric_only: tuple[int, ...] = ()


def plan_text(program: str, widths: Widths, form: Format) -> tuple[str, str]:
    r"""The file in which a program takes a plan of widths.

    Args:
      program: one of `PLAN_FILES`.
      widths: `module name -> bits`, 2 to 8, or 16 to leave it as it is; for tensor-types, of tensors in a GGUF file.
      form: groups and grid, for the programs that take them; see `curvjax.storage.Format`.

    Returns:
      Its name, and its text.

    Raises:
      ValueError: if no module is named, or the program has no such width.

    Example:
      >>> from curvjax.interop import plan_text
      >>> from curvjax.storage import Format
      >>> plan_text("tensor-types", {"blk.3.attn_q.weight": 4}, Format(32))
      ('tensor_types.txt', '^blk\\.3\\.attn_q\\.weight$=q4_0\n')
    """
    plan = PLAN_FILES[program]
    taken = [bits for bits in plan.widths if form.symmetric or bits not in plan.symmetric_only]
    wrong = {name: bits for name, bits in widths.items() if bits not in (*taken, UNTOUCHED)}
    if wrong or not widths:
        few, grid = dict(list(wrong.items())[:3]), "symmetric" if form.symmetric else "asymmetric"
        msg = f"{program} takes {grid} modules of {taken} bits, or {UNTOUCHED} as they are; got {few or 'none'}."
        raise ValueError(msg)
    return plan.name, plan.text(widths, form)


def lora_yaml(config: Mapping[str, Any]) -> str:
    """Ranks and scales of PEFT's configuration (`peft_config`) as entries of axolotl's configuration.

    Raises:
      ValueError: if an alpha is not whole, which axolotl's schema refuses.

    Source: axolotl 0.19, `lora_rank_pattern` and `lora_alpha_pattern` of its schema, which it hands to PEFT.
    """
    alphas = {name: int(alpha) for name, alpha in config["alpha_pattern"].items() if alpha > 0 and alpha == int(alpha)}
    wrong = {name: alpha for name, alpha in config["alpha_pattern"].items() if name not in alphas}
    if wrong:
        few = dict(list(wrong.items())[:3])
        msg = (
            f"axolotl takes whole alphas, 1 or more; got {few}: choose an --alpha whose factors times ranks are whole."
        )
        raise ValueError(msg)
    entries = {
        "adapter": "lora",
        "lora_r": config["r"],
        "lora_alpha": int(config["lora_alpha"]),  # that of one of the modules
        "peft_use_rslora": config["use_rslora"],
        "lora_target_modules": config["target_modules"],
        "lora_rank_pattern": config["rank_pattern"],
        "lora_alpha_pattern": alphas,
    }
    return "".join(f"{key}: {json.dumps(value, indent=2)}\n" for key, value in entries.items())  # JSON is YAML


def lora_rules(ranks: Mapping[str, int], scales: Mapping[str, float]) -> str:
    """Fields of `qwix.LoraRule`s, one for each module, for `LoraProvider([LoraRule(**rule) for rule in rules])`.

    A module is matched by its place in the layers, whatever holds these, and whether its attention is called
    `self_attn`, as here and in Hugging Face's models, or `attn`, as in Tunix's. Its factor on A B is alpha / rank.

    Args:
      ranks: `module path -> rank`, of paths such as `layers.3.self_attn.q_proj`; those of rank 0 are left out.
      scales: factor of each module that is not left out.

    Returns:
      The text of a JSON file.

    Example:
      >>> from curvjax.interop import lora_rules
      >>> rules = lora_rules({"layers.3.self_attn.q_proj": 2}, {"layers.3.self_attn.q_proj": 0.5})
      >>> " ".join(rules.split())
      '[ { "module_path": "(.*/)?layers/3/(self_)?attn/q_proj", "rank": 2, "alpha": 1.0 } ]'

    Source: qwix 0.1.8, `LoraProvider`; Tunix, `tunix/models/llama3/params.py` for its names.
    """
    return _json([
        {
            "module_path": f"(.*/)?{_rule_path(path)}",
            "rank": int(rank),
            "alpha": float(f"{scales[path] * rank:.15g}"),
        }
        for path, rank in ranks.items()
        if rank
    ])


def _rule_path(path: str) -> str:
    return "/".join("(self_)?attn" if part == "self_attn" else re.escape(part) for part in path.split("."))


def _auto_round(widths: Widths, form: Format) -> str:
    """`AutoRound(layer_config=...)`: source auto-round 0.16, `layer_config_resolver`."""
    untouched = {"bits": UNTOUCHED, "data_type": "float"}
    grid = {"group_size": form.group, "sym": form.symmetric, "data_type": "int"}
    return _json({name: untouched if bits == UNTOUCHED else {"bits": bits} | grid for name, bits in widths.items()})


def _gptqmodel(widths: Widths, form: Format) -> str:
    """`QuantizeConfig(dynamic=...)`: the first pattern that matches; `-:` leaves a module out. Source GPTQModel 7.6."""
    grid = {"group_size": form.group, "sym": form.symmetric}
    return _json({
        f"{'-' if bits == UNTOUCHED else '+'}:^{re.escape(name)}$": {} if bits == UNTOUCHED else {"bits": bits} | grid
        for name, bits in widths.items()
    })


def _torchao(widths: Widths, form: Format) -> str:
    """What `torchao.core.config.config_from_dict` makes an `FqnToConfig` of; source torchao 0.18."""

    def weights(bits: int) -> dict[str, Any]:
        whole = _value("PerAxis", {"axis": 0}, 1)
        return _value(
            "IntxWeightOnlyConfig",
            {
                "weight_dtype": {"_type": "torch.dtype", "_data": f"int{bits}"},
                "granularity": whole if form.group == -1 else _value("PerGroup", {"group_size": form.group}, 1),
                "mapping_type": {"_type": "MappingType", "_data": "SYMMETRIC" if form.symmetric else "ASYMMETRIC"},
            },
            2,
        )

    modules = {name: None if bits == UNTOUCHED else weights(bits) for name, bits in widths.items()}
    return _json(_value("FqnToConfig", {"fqn_to_config": modules}, 1))


def _value(kind: str, data: dict[str, Any], version: int) -> dict[str, Any]:
    return {"_type": kind, "_version": version, "_data": data}


def _qwix(widths: Widths, form: Format) -> str:
    """Fields of `qwix.QuantizationRule`s, in order; modules left as they are have no width. Source qwix 0.1.8."""
    method = "absmax" if form.symmetric else "minmax"
    tiles = {} if form.group == -1 else {"tile_size": form.group}
    rules = []
    for name, bits in widths.items():
        place = {"module_path": f"(.*/)?{re.escape(name.replace('.', '/'))}"}
        width = {} if bits == UNTOUCHED else {"weight_qtype": f"int{bits}", "weight_calibration_method": method} | tiles
        rules.append(place | width)
    return _json(rules)


def _tensor_types(widths: Widths, form: Format) -> str:
    """Lines for `llama-quantize --tensor-type-file`, a pattern and a type each; llama.cpp chooses grids itself.

    The type of the file, its last argument, has to be one of codes, such as Q8_0: with F16 it passes over all lines.
    """
    del form
    types = {2: "q2_k", 3: "q3_k", 4: "q4_0", 5: "q5_0", 6: "q6_k", 8: "q8_0", UNTOUCHED: "f16"}
    return "".join(f"^{re.escape(name)}$={types[bits]}\n" for name, bits in widths.items())


def _json(entries: Any) -> str:
    return json.dumps(entries, indent=2) + "\n"


PLAN_FILES = {
    "auto-round": PlanFile("layer_config.json", _auto_round, (2, 3, 4, 5, 6, 7, 8), (8,)),
    "gptqmodel": PlanFile("dynamic.json", _gptqmodel, (2, 3, 4, 5, 6, 7, 8)),
    "torchao": PlanFile("fqn_to_config.json", _torchao, (2, 3, 4, 5, 6, 7, 8)),
    "qwix": PlanFile("rules.json", _qwix, (2, 3, 4, 5, 6, 7, 8), (2, 3, 5, 6, 7)),
    "tensor-types": PlanFile("tensor_types.txt", _tensor_types, (2, 3, 4, 5, 6, 8)),
}
