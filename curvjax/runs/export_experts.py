"""Mixtures of LoRA experts for PEFT: merged by their use of a text, with what that costs."""

import json
from pathlib import Path
from typing import NamedTuple

from curvjax.interop import PeftAdapter, require_new, save_peft
from curvjax.models import Decoder, Loaded
from curvjax.records import plain
from curvjax.runs.objective import objective
from curvjax.runs.text import TextSettings, read, with_validation
from curvjax.surgery import expert_usage, merge_experts

MERGED_FILE = "merged.json"
_ROWS = 2  # in memory at a time


class MergedAdapter(NamedTuple):
    """What merging made and cost, on documents of the text that the use was not measured on.

    adapter: what was written. base, mixture, merged: mean cross-entropy, nats. divergence: mean of KL(mixture | merged)
    over the counted tokens, nats. usage: mean gates by module path. lost: by path, what did not fit into the rank.
    """

    adapter: PeftAdapter
    base: float
    mixture: float
    merged: float
    divergence: float
    usage: dict[str, list[float]]
    lost: dict[str, float]


def export_merged(
    model: Decoder,
    loaded: Loaded,
    directory: str | Path,
    *,
    base: str,
    data: str,
    tokens: int,
    rank: int = 0,
    rank_stabilised: bool = False,
) -> MergedAdapter:
    """Write one PEFT adapter, the experts of each projection merged by the router's mean gates; and merged.json.

    Args:
      model: with mixtures of experts, on the weights of `loaded`.
      loaded: the model without them.
      directory: must be new or empty.
      base: name of the base model, for PEFT to find it by.
      data: text, three of four documents to measure the use on, the others to measure what merging costs.
      tokens: of each of the two.
      rank: at most, see `merge_experts`.
      rank_stabilised: as for `save_peft`.

    Returns:
      What was written, and what merging costs.

    Raises:
      FileExistsError: if `directory` holds anything.
      ValueError: if the model has no mixtures, the text is too short, or the rank is negative.
    """
    require_new(directory)
    settings = TextSettings(tokens=tokens, length=min(tokens, TextSettings.length))
    used, held = with_validation(read(data, loaded, settings), loaded, settings)
    usage = expert_usage(model, used.batch)
    merged, lost = merge_experts(model, usage, rank=rank)
    loss = objective(loaded.model, held.batch, kind="loss", rows=_ROWS)
    losses = [loss(each) for each in (loaded.model, model, merged)]
    divergence = objective(model, held.batch, kind="divergence", rows=_ROWS)(merged)
    written = save_peft(merged, directory, base=base, rank_stabilised=rank_stabilised)
    shares = {path: each.tolist() for path, each in usage.items()}
    found = MergedAdapter(written, *losses, divergence, shares, lost)
    text = json.dumps(plain(found._asdict() | {"adapter": written._asdict(), "data": data}), indent=1)
    (Path(directory) / MERGED_FILE).write_text(text + "\n", encoding="utf-8")
    return found
