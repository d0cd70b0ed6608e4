"""Is what questions and choices begin with worth reading only once?

Command:   python -m experiments.evaluation.prefixes        (writes prefixes.json beside itself)
Hardware:  2 CPU cores, no accelerator; about 3 minutes
Expected:  over three times as fast as with a segment for every choice without examples, over four times with five;
           the same log-probabilities up to float32. The least of the rounds counts; the first one compiles.
Control:   the same choices as segments packed by best fit, in the same run and in turns; a difference of
           log-probabilities above 1e-3 nats refutes the claim
"""

import os
import subprocess
import time
from pathlib import Path

import numpy as np

from curvjax.data import Piece, arrange, few_shot, read_task
from curvjax.evaluation import EncodedPair, Targets, continuation_scores, encode_choices, target_log_probabilities
from curvjax.models import Decoder, load_model
from curvjax.records import machine, versions, write_json
from curvjax.runs.stopwatch import timed

MODEL, TASK, SEED, LENGTH, ROWS = "smollm2-135m", "sciq", 0, 128, 8
QUESTIONS, ROUNDS = {0: 6, 5: 4}, 2


def read_apart(model: Decoder, pairs: list[EncodedPair]) -> tuple[np.ndarray, int]:
    """Log-probability of every continuation, each pair a segment of its own; and the tokens read."""
    texts = [np.asarray([*pair.context, *pair.continuation[:-1]], np.int32) for pair in pairs]
    width = LENGTH << ((max(map(len, texts)) - 1) // LENGTH).bit_length()
    placed = arrange([Piece(text, text * 0, text * 0.0) for text in texts], length=width)
    owner = np.repeat(np.arange(len(pairs)), [len(pair.continuation) for pair in pairs])
    place = np.concatenate([len(pair.context) - 1 + np.arange(len(pair.continuation)) for pair in pairs])
    token = np.concatenate([pair.continuation for pair in pairs])
    targets = Targets(placed.row[owner], placed.column[owner] + place, token)
    rows_at_once = -(-ROWS * LENGTH // width)
    scores = target_log_probabilities(model, placed.batch, targets, rows_at_once=rows_at_once)
    return np.bincount(owner, scores.log_probability), sum(map(len, texts))


def clocked(work):
    """What `work` returns, its seconds on the clock less compilation, and those of all cores, compilation included."""
    began = time.process_time()
    found, seconds = timed(work)
    return found, seconds, time.process_time() - began


def measured(loaded, shots: int) -> dict[str, float]:
    questions = few_shot(read_task(TASK), count=QUESTIONS[shots], shots=shots, seed=SEED).questions
    pairs = encode_choices(loaded.model, loaded.tokenizer, questions)
    together, apart = [], []
    for _ in range(ROUNDS):
        once, *seconds = clocked(lambda: continuation_scores(loaded.model, pairs, length=LENGTH, rows_at_once=ROWS))
        together.append(seconds)
        (scores, tokens), *seconds = clocked(lambda: read_apart(loaded.model, pairs))
        apart.append(seconds)
    (together, together_cpu), (apart, apart_cpu) = np.min(together, axis=0), np.min(apart, axis=0)
    found = {
        "shots": shots,
        "questions": len(questions),
        "choices": len(pairs),
        "tokens_shared": once.tokens_read,
        "tokens_apart": tokens,
        "seconds_shared": together,
        "seconds_apart": apart,
        "cpu_seconds_shared": together_cpu,
        "cpu_seconds_apart": apart_cpu,
        "ratio_of_tokens": tokens / once.tokens_read,
        "ratio_of_seconds": apart / together,
        "ratio_of_cpu_seconds": apart_cpu / together_cpu,
        "largest_difference_nats": float(np.max(np.abs(once.log_probability - scores))),
        "largest_log_probability_nats": float(np.max(np.abs(scores))),
    }
    print(found, flush=True)
    return found


def main() -> None:
    loaded = load_model(MODEL)
    record = {
        "model": MODEL,
        "task": TASK,
        "seed": SEED,
        "length": LENGTH,
        "rows": ROWS,
        "rounds": ROUNDS,
        "measured": [measured(loaded, shots) for shots in QUESTIONS],
        "commit": subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip(),
        "versions": versions(),
        "machine": machine() | {"load": os.getloadavg()[0]},
    }
    write_json(Path(__file__).with_name("prefixes.json"), record)


if __name__ == "__main__":
    main()
