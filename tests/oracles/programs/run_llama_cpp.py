"""llama.cpp's side: what `llama-quantize --tensor-type-file PLAN MODEL OUT TYPE` does, by the function it calls.

python run_llama_cpp.py MODEL PLAN OUT TYPE
"""

import ctypes
import sys
from pathlib import Path

import llama_cpp


def main(model: str, plan: str, out: str, file: str) -> None:
    """The quantised file."""
    lines = [line.rsplit("=", 1) for line in Path(plan).read_text().splitlines()]
    kinds = [getattr(llama_cpp, f"GGML_TYPE_{kind.upper()}") for _, kind in lines]
    patterns = [pattern.lower().encode() for pattern, _ in lines]  # llama-quantize lowers them too
    overrides = (llama_cpp.llama_model_tensor_override * (len(lines) + 1))(*zip(patterns, kinds, strict=True))
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.nthread = 2
    settings.ftype = {"f16": llama_cpp.LLAMA_FTYPE_MOSTLY_F16, "q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0}[file]
    settings.tt_overrides = overrides  # ends in one of null
    llama_cpp.llama_backend_init()
    if llama_cpp.llama_model_quantize(model.encode(), out.encode(), ctypes.byref(settings)):
        raise SystemExit("llama_model_quantize failed.")


if __name__ == "__main__":
    main(*sys.argv[1:])
