"""adapter_config.json read by what is known to be right: every entry is understood at its value, or refused by name.

PEFT's options grow with every version, and most of them change what an adapter computes. So nothing is passed over: an
entry is used here, or says something that no logit depends on, or has a value at which PEFT leaves the option out.

Source: Mangrulkar et al., "PEFT", 2022, `LoraConfig`, `get_pattern_key` and `check_target_module_exists` as of version
0.21.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

_LORA = {  # entry -> the values at which an adapter is B A on the base model's own weights
    "peft_type": ("LORA",),
    "task_type": (None, "CAUSAL_LM"),
    "bias": (None, "none"),
    "fan_in_fan_out": (None, False),
    "init_lora_weights": (None, True, False, "gaussian", "orthogonal", "eva"),  # others change the base model too
}
_WORDS = {  # no logit depends on them
    "auto_mapping",
    "base_model_name_or_path",
    "eva_config",  # how A began
    "inference_mode",
    "lora_dropout",  # of training
    "megatron_core",  # a module's name, for megatron_config
    "peft_version",
    "qalora_group_size",  # for use_qalora
    "revision",
    "runtime_config",
}
_USED = {
    "r",
    "lora_alpha",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
}
_OFF = (None, False, [], {}, "")
_LAYER = re.compile(r".*?\.[^.]*\.(\d+)\.")


class AdapterConfig(NamedTuple):
    """What an adapter_config.json says of the modules it adapts, by their names in the PyTorch model."""

    source: str
    rank: int
    alpha: float
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    rank_stabilised: bool
    adapts: Callable[[str], bool]

    def rank_of(self, module: str) -> int:
        """Rank of a module: that of the first pattern that matches, or r."""
        return _matched(self.ranks, module, self.rank)

    def scale_of(self, module: str) -> float:
        """Factor on B A of a module: alpha / r, or alpha / sqrt(r)."""
        rank = self.rank_of(module)
        return _matched(self.alphas, module, self.alpha) / (math.sqrt(rank) if self.rank_stabilised else rank)


def read_adapter_config(path: str | Path) -> AdapterConfig:
    """The entries of an adapter_config.json, all of them checked.

    Args:
      path: the file.

    Returns:
      What it says.

    Raises:
      ValueError: if it is no JSON object, an entry has the wrong type, or asks for what is not plain LoRA; the file,
        the entry, what came and what is allowed are named.
    """
    try:
        entries = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        msg = f"{path}: damaged adapter: not JSON: {error}."
        raise ValueError(msg) from error
    if not isinstance(entries, dict):
        msg = f"{path}: damaged adapter: must be a JSON object; found {type(entries).__name__}."
        raise ValueError(msg)
    _require_known(entries, path)
    pick = _Entries(entries, str(path))
    pick.one("peft_type", lambda value: value == "LORA", "'LORA'")
    return AdapterConfig(
        source=str(path),
        rank=pick.one("r", _is_rank, "a whole number from 1"),
        alpha=pick.one("lora_alpha", _is_number, "a finite number"),
        ranks=pick.pattern("rank_pattern", _is_rank, "a whole number from 1"),
        alphas=pick.pattern("alpha_pattern", _is_number, "a finite number"),
        rank_stabilised=bool(pick.one("use_rslora", lambda value: isinstance(value, bool), "true or false", False)),
        adapts=_target(pick),
    )


def _require_known(entries: Mapping[str, Any], path: str | Path) -> None:
    """Refuse every entry that is neither used, nor without effect, nor off."""
    strange = []
    for key, value in entries.items():
        if key in _LORA:
            allowed = any(value is each or (isinstance(each, str) and value == each) for each in _LORA[key])
        else:
            allowed = key in _USED or key in _WORDS or any(type(value) is type(off) and value == off for off in _OFF)
        if not allowed:
            strange.append(f"{key} = {value!r}")
    if strange:
        msg = (
            f"{path}: only LoRA matrices A and B can be read, as plain LoRA applies them; found {len(strange)} entries "
            f"that ask for more: {', '.join(strange)}. Merge the adapter in PEFT and load the merged model."
        )
        raise ValueError(msg)


class _Entries:
    """Entries with the file that errors name."""

    def __init__(self, entries: Mapping[str, Any], source: str):
        self.entries, self.source = entries, source

    def one(self, key: str, fits: Callable[[Any], bool], expected: str, default: Any = None) -> Any:
        value = self.entries.get(key)
        value = default if value is None else value
        return value if fits(value) else self.refuse(key, value, expected)

    def pattern(self, key: str, fits: Callable[[Any], bool], expected: str) -> dict[str, Any]:
        found = self.one(key, lambda value: isinstance(value, dict), f"an object of name -> {expected}", {})
        for name, value in found.items():
            if not fits(value):
                self.refuse(f"{key}[{name!r}]", value, expected)
            self.expression(key, name)
        return found

    def names(self, key: str) -> str | list[str]:
        """A regular expression, or a list of names; an empty list where there is none."""

        def fits(value: Any) -> bool:
            return isinstance(value, str) or (isinstance(value, list) and all(isinstance(name, str) for name in value))

        found = self.one(key, fits, "a text or a list of texts", [])
        if isinstance(found, str):
            self.expression(key, found)
        return found

    def expression(self, key: str, text: str) -> None:
        try:
            re.compile(text)
        except re.error as error:
            self.refuse(key, text, f"a regular expression ({error})")

    def refuse(self, key: str, found: Any, expected: str) -> NoReturn:
        msg = f"{self.source}: damaged adapter: {key} must be {expected}; found {found!r}."
        raise ValueError(msg)


def _target(pick: _Entries) -> Callable[[str], bool]:
    """Whether PEFT would adapt a module of this name."""
    targets, excluded, patterns = (pick.names(k) for k in ("target_modules", "exclude_modules", "layers_pattern"))
    if not targets:
        pick.refuse("target_modules", pick.entries.get("target_modules"), "the modules' names or an expression")
    layers = pick.one("layers_to_transform", _are_layers, "a whole number or a list of them", [])
    layers = [layers] if isinstance(layers, int) else layers
    if (layers and isinstance(targets, str)) or (patterns and not layers):
        pick.refuse("layers_to_transform", layers, "given with a list of target_modules, and with layers_pattern")
    patterns = [patterns] if isinstance(patterns, str) and patterns else list(patterns)
    for text in patterns:
        pick.expression("layers_pattern", text)

    def adapts(module: str) -> bool:
        if isinstance(targets, str) and targets.lower() == "all-linear":
            return not _named(excluded, module) and module.rpartition(".")[2] != "lm_head"
        inside = not layers or module in targets or _layer(module, patterns) in layers
        return _named(targets, module) and inside and not _named(excluded, module)

    return adapts


def _named(names: str | list[str], module: str) -> bool:
    """Whether a regular expression is the whole of a module's name, or a name of a list its end."""
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)


def _layer(module: str, patterns: list[str]) -> int | None:
    found = [re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", module) for pattern in patterns] or [_LAYER.match(module)]
    return next((int(match[match.re.groups]) for match in found if match), None)


def _matched(pattern: Mapping[str, Any], module: str, default: Any) -> Any:
    """PEFT's own lookup, so that adapters with hand-written patterns mean here what they mean there."""
    return next((value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", module)), default)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_rank(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _are_layers(value: Any) -> bool:
    several = value if isinstance(value, list) else [value]
    return all(isinstance(number, int) and not isinstance(number, bool) for number in several)
