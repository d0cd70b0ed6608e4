"""What does each kind of surgery save where the model runs: in time and in bytes, in llama.cpp and in JAX?

Command:   .venv/bin/python -m experiments.serving.run                  (about 10 minutes on two quiet cores)
Needs:     `make test-oracles`, for xllamacpp.
Model:     SmolLM2-135M in float16, as GGUF; time does not depend on which weights stay, so that amounts are uniform
           and codes nearest.
Measured:  tokens a second that are read (prompts of 512) and written (128 after them) by llama.cpp, and read by our
           jitted decoder in float32; bytes of the file, and of the parameters in JAX. All variants take turns in every
           round of one run; medians over rounds, as ratios to the dense model of the same round.
Control:   the dense file beside itself: a second server with the same file.
Expected:  zeros in place save nothing; fewer channels and fewer bits do.
"""

import json
import os
import tempfile
import time
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
import xllamacpp
from flax import nnx
from gguf import GGUFReader, GGUFWriter, quants

from curvjax.interop import save_gguf
from curvjax.models import Decoder, load_model
from curvjax.models.demo import demonstration_files
from curvjax.records import machine, versions, write_json
from curvjax.storage import Format
from curvjax.surgery import drop_layers, projections, quantization_plan, quantize_nearest
from curvjax.surgery.shrinking.structured import prune_channels

FOLDER = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Serving:
    """Sizes."""

    model: str = "smollm2-135m"
    """A demonstration model that is a GGUF file."""
    prompt: int = 512
    """Tokens read."""
    written: int = 128
    """Tokens written after them; at most as many as `prompt`."""
    rounds: int = 7
    """Turns of every variant; a first one more is not counted."""
    threads: int = 2
    """Of llama.cpp."""
    seed: int = 0
    """Of the prompts."""
    out: Path = FOLDER / "record.json"
    """Where the record goes."""


def main(settings: Serving) -> None:
    """All variants in turn, and the record."""
    before = os.getloadavg()
    with tempfile.TemporaryDirectory() as scratch:
        made = variants(settings, Path(scratch))
        servers = {name: Server(file, settings) for name, (file, _) in made.items()}
        readers = {name: reader(model) for name, (_, model) in made.items()}
        rng = np.random.default_rng(settings.seed)
        speeds: list[dict[str, dict[str, float]]] = []
        for turn in range(settings.rounds + 1):
            tokens = rng.integers(1000, 40_000, settings.prompt).tolist()
            found = {name: servers[name](tokens) | {"jax": readers[name](tokens)} for name in made}
            speeds += [found] if turn else []
            print(f"round {turn}/{settings.rounds}", flush=True)
        rows = {name: row(file, model, name, speeds) for name, (file, model) in made.items()}
    record = {
        "settings": asdict(settings) | {"out": settings.out.name},
        "variants": rows,
        "versions": versions() | {"xllamacpp": xllamacpp.__version__},
        "machine": machine() | {"load_average": {"before": before, "after": os.getloadavg()}},
    }
    write_json(settings.out, record)
    print(table(rows))


def variants(settings: Serving, scratch: Path) -> dict[str, tuple[Path, Decoder]]:
    """`name -> file, model`: each written by us."""
    dense = scratch / "dense.gguf"
    half_precision(demonstration_files(settings.model)[0], dense)
    model = read(dense)
    layers = [f"layers.{index}" for index in range(len(model.layers))]
    channels = model.layers[0].mlp.down_proj.kernel.shape[0]
    kernels = projections(model)
    energies = {path: jnp.ones(kernels[path].kernel.shape[0]) for path in kernels if path.endswith("down_proj")}

    def narrow(share: float) -> Decoder:
        removed = round(share * channels / 32) * 32  # codes come in groups of 32
        return prune_channels(model, energies, dict.fromkeys(layers, removed)).model

    def codes(widths: dict[str, int], of: Decoder = model) -> Decoder:
        return quantize_nearest(of, quantization_plan(of, widths, Format(32, symmetric=True, scales="float16"))).model

    mixed = {name: (4, 4, 5, 8)[index % 4] for index, name in enumerate(layers)}
    fewer = len(layers) // 5
    made = {
        "20% of channels out": narrow(0.2),
        "40% of channels out": narrow(0.4),
        f"{fewer} of {len(layers)} layers out": drop_layers(model, range(2, 2 + fewer)),
        "8 bits": codes(dict.fromkeys(layers, 8)),
        "4, 5 and 8 bits, 5.25 on average": codes(mixed),
        "4 bits": codes(dict.fromkeys(layers, 4)),
        "4 bits, 20% of channels out": codes(dict.fromkeys(layers, 4), narrow(0.2)),
    }
    zeros = scratch / "zeros.gguf"
    half_precision(dense, zeros, change=halved)
    files = {"dense": (dense, model), "dense again": (dense, model), "half of the weights zero": (zeros, read(zeros))}
    for number, (name, changed) in enumerate(made.items()):
        save_gguf(changed, dense, scratch / str(number))
        files[name] = scratch / str(number) / "model.gguf", changed
    return files


def read(file: Path) -> Decoder:
    """The model of a file."""
    return load_model(file).model


def half_precision(
    source: Path, target: Path, change: Callable[[np.ndarray], np.ndarray] = lambda values: values
) -> None:
    """The file with its matrices in float16, those of layers changed."""
    file = GGUFReader(source)
    writer = GGUFWriter(target, file.fields["general.architecture"].contents())
    for name, field in file.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        value, (kind, *of) = field.contents(), field.types
        writer.add_key_value(name, value, kind, sub_type=of[-1] if of else None)
    for tensor in file.tensors:
        values = quants.dequantize(tensor.data, tensor.tensor_type)
        if values.ndim > 1:
            values = (change(values) if tensor.name.startswith("blk.") else values).astype(np.float16)
        writer.add_tensor(tensor.name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def halved(values: np.ndarray) -> np.ndarray:
    """The smaller half of the entries zero."""
    return np.where(np.abs(values) > np.median(np.abs(values)), values, 0)


class Server:
    """llama.cpp with a file."""

    def __init__(self, file: Path, settings: Serving) -> None:
        common = xllamacpp.CommonParams()
        common.model.path, common.n_parallel, common.warmup = str(file), 1, False
        common.n_ctx = settings.prompt + settings.written + 16
        common.cpuparams.n_threads = common.cpuparams_batch.n_threads = settings.threads
        self.server, self.written = xllamacpp.Server(common), settings.written

    def __call__(self, tokens: list[int]) -> dict[str, float]:
        """Tokens a second, read and written."""
        body = {
            "prompt": tokens,
            "n_predict": self.written,
            "ignore_eos": True,
            "cache_prompt": False,
            "temperature": 0.0,
        }
        request = urllib.request.Request(
            self.server.listening_address + "/completion",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as reply:
            found = json.load(reply)["timings"]
        if (found["prompt_n"], found["predicted_n"]) != (len(tokens), self.written):
            msg = f"llama.cpp read {found['prompt_n']} and wrote {found['predicted_n']} tokens."
            raise RuntimeError(msg)
        return {"read": found["prompt_per_second"], "written": found["predicted_per_second"]}


def reader(model: Decoder) -> Callable[[list[int]], float]:
    """Tokens a second that our decoder reads, compiled before."""
    graph, state = nnx.split(model)

    def logits(state: Any, tokens: jax.Array) -> jax.Array:
        return nnx.merge(graph, state)(tokens)

    compiled = jax.jit(logits)

    def timed(tokens: list[int]) -> float:
        row = jnp.asarray([tokens])
        jax.block_until_ready(compiled(state, row))
        start = time.perf_counter()
        jax.block_until_ready(compiled(state, row))
        return len(tokens) / (time.perf_counter() - start)

    return timed


def row(file: Path, model: Decoder, name: str, rounds: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """A variant in the medians over rounds, with the spread of its ratios to the dense model."""
    speeds = {}
    for kind in ("read", "written", "jax"):
        ratios = [turn[name][kind] / turn["dense"][kind] for turn in rounds]
        speeds[kind] = {
            "tokens_per_second": float(np.median([turn[name][kind] for turn in rounds])),
            "to_dense": float(np.median(ratios)),
            "quartiles": np.quantile(ratios, [0.25, 0.75]).tolist(),
        }
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(model)))
    return {"file_bytes": file.stat().st_size, "jax_bytes": held, **speeds}


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Ratios to the dense model."""
    lines = [
        "| model | GGUF | read | written | in JAX | read |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    first = rows["dense"]
    for name, each in rows.items():
        sizes = [
            f"{each[key] / 1e6:.0f} MB" if name == "dense" else f"{each[key] / first[key]:.2f}"
            for key in ("file_bytes", "jax_bytes")
        ]
        speeds = [
            f"{each[kind]['tokens_per_second']:.0f}/s"
            if name == "dense"
            else f"{each[kind]['to_dense']:.2f} ({each[kind]['quartiles'][0]:.2f}-{each[kind]['quartiles'][1]:.2f})"
            for kind in ("read", "written", "jax")
        ]
        lines.append(f"| {name} | {sizes[0]} | {speeds[0]} | {speeds[1]} | {sizes[1]} | {speeds[2]} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main(tyro.cli(Serving, description=__doc__))
