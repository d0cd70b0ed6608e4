"""Claim: shares that a descent found for pruning without repair serve SparseGPT, which repairs what it prunes.

    nice .venv/bin/python -m experiments.outcomes.carried --record sparsity_wanda_60_16384_seed0.json \
        --arms "fisher-trace + owl" descent

Two CPU cores: three minutes an arm. The amounts of arms of a record, chosen on the record's selection text for its own
method, are built by another one from the same calibration rows, and measured on the same tests. What could refute it:
shares of a score that lose less here, or no difference from uniform.
"""

from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import msgspec
import tyro

from curvjax.evaluation import paired_difference, perplexity
from curvjax.models import load_model
from curvjax.records import Allocation, Comparison, TextOutcome, plain, read_json, write_json
from curvjax.runs.draft import rebuilt_readable
from curvjax.runs.evaluate import text_outcome
from experiments.methods import surgery_named
from experiments.outcomes.run import FOLDER, Settings, read_texts

UNIFORM = "uniform"


@dataclass(frozen=True, kw_only=True)
class CarriedSettings:
    """Which amounts, and what builds them."""

    record: str = "sparsity_wanda_60_16384_seed0.json"
    """Of `experiments.outcomes.run`, on SmolLM2-135M with its default texts."""
    arms: tuple[str, ...] = ("descent",)
    """Of the record; uniform is always among them."""
    begun: tuple[Path, ...] = ()
    """Allocations found by other means, such as `curvjax descend --start`."""
    method: str = "sparsegpt"
    """The surgery that builds, with settings after a slash: gptq/act_order=false."""
    tokens: int = 16384
    """To calibrate on, as for the record."""
    tested: int = 4096
    """Of each test text."""
    seed: int = 0
    """Of the record's texts."""


def main(settings: CarriedSettings) -> None:
    """Every arm built and measured; those in the record of this experiment are not built again."""
    comparison, loaded = Comparison.load(FOLDER / settings.record), load_model(Settings().model)
    found = comparison.outcomes
    assert found is not None
    asked = {arm.method: arm.amounts for arm in found.arms if arm.method in {UNIFORM, *settings.arms}}
    asked |= {path.stem: dict(Allocation.load(path).amounts) for path in settings.begun}
    if missing := sorted({UNIFORM, *settings.arms} - set(asked)):
        msg = f"the record has no arms {missing}; it has {[arm.method for arm in found.arms]}."
        raise SystemExit(msg)
    texts = read_texts(loaded, Settings(seed=settings.seed, tokens=settings.tokens, tested=settings.tested))
    method = surgery_named(settings.method)
    judged = {"selection": texts.selection, **texts.tests}
    builder = settings.method.translate(str.maketrans({"/": "-", ":": "of", '"': None}))
    more = "" if settings.tested == CarriedSettings.tested else f"_{settings.tested}"
    path = FOLDER / f"carried_{builder}{more}_{settings.record}"
    kept: dict[str, Any] = read_json(path)["arms"] if path.is_file() else {}
    for name, amounts in asked.items():
        if name not in kept:
            model = rebuilt_readable(method, loaded.model, texts.text.batch, amounts)
            measured = {text: perplexity(model, each.batch, rows_at_once=4) for text, each in judged.items()}
            outcomes = {text: text_outcome(each) for text, each in measured.items()}
            kept[name] = plain({"amounts": amounts, "texts": outcomes})
            write_json(path, {"method": plain(method) | {"name": method.name}, "arms": kept, "paired": paired(kept)})
        print(name, *(f"{text} {each['perplexity']:.1f}" for text, each in kept[name]["texts"].items()), flush=True)
    for pair in paired(kept):
        told = f"{pair['arm']} less {pair['against']}, {pair['text']}:"
        print(f"{told} {pair['difference']:+.3f} ± {pair['standard_error']:.3f} nats")


def paired(arms: dict[str, Any]) -> list[dict[str, Any]]:
    """Every two arms on the same rows: nats of the later one less those of the earlier, with standard errors."""
    found = []
    for (other, against), (name, arm) in combinations(arms.items(), 2):
        for text, outcome in arm["texts"].items():
            rows, before = (msgspec.convert(each, TextOutcome) for each in (outcome, against["texts"][text]))
            apart = paired_difference(rows, before)
            pair = {"arm": name, "against": other, "text": text, "difference": apart.difference}
            found.append(pair | {"standard_error": apart.standard_error})
    return found


if __name__ == "__main__":
    main(tyro.cli(CarriedSettings, description=__doc__))
