"""How much do solved examples help, and are the accuracies those of a working language model?

Command:   python -m experiments.evaluation.accuracy        (adds the tasks that accuracy.json beside it lacks)
Hardware:  2 CPU cores, no accelerator; about 8 minutes
Expected:  above chance by two standard errors on ARC-Easy, SciQ, PIQA and CommonsenseQA; examples help most where the
           form of the answer is not plain from the question
Control:   the share of the commonest right choice; MRPC and BoolQ ask for a judgement that a model of this size cannot
           make, and stay at it
"""

import json
import os
import subprocess
from collections import Counter
from pathlib import Path

from curvjax.data import few_shot, read_task
from curvjax.evaluation import paired_choice, ranked_choice
from curvjax.models import load_model
from curvjax.records import machine, versions, write_json
from curvjax.runs.stopwatch import timed

MODEL, SEED, LENGTH, ROWS, QUESTIONS, SHOTS = "smollm2-135m", 0, 128, 8, 100, 5
TASKS = ("commonsenseqa", "openbookqa", "arc-easy", "piqa", "mrpc", "sciq", "hellaswag", "boolq")


def measured(loaded, task: str) -> dict[str, object]:
    found, of_shots = [], {}
    for shots in (0, SHOTS):
        questions, examples = few_shot(read_task(task), count=QUESTIONS, shots=shots, seed=SEED)
        choice, seconds = timed(
            lambda asked=questions: ranked_choice(
                loaded.model, loaded.tokenizer, asked, length=LENGTH, rows_at_once=ROWS
            )
        )
        of_shots[str(shots)] = {
            "examples": [example.id for example in examples],
            "accuracy": choice.accuracy,
            "accuracy_standard_error": choice.accuracy_standard_error,
            "accuracy_per_character": choice.accuracy_per_character,
            "accuracy_per_character_standard_error": choice.accuracy_per_character_standard_error,
            "tokens_read": choice.tokens_read,
            "seconds": seconds,
        }
        found.append(choice)
    labels = Counter(question.label for question in questions)
    return {
        "questions": len(questions),
        "commonest_label": max(labels.values()) / len(questions),
        "shots": of_shots,
        "examples_help": paired_choice(found[1].correct, found[0].correct)._asdict(),
    }


def main() -> None:
    loaded, out = load_model(MODEL), Path(__file__).with_name("accuracy.json")
    tasks = json.loads(out.read_text())["tasks"] if out.exists() else {}
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    for task in (task for task in TASKS if task not in tasks):
        tasks[task] = measured(loaded, task)
        record = {
            "model": MODEL,
            "seed": SEED,
            "length": LENGTH,
            "rows": ROWS,
            "tasks": tasks,
            "commit": commit,
            "versions": versions(),
            "machine": machine() | {"load": os.getloadavg()[0]},
        }
        write_json(out, record)
        print(task, tasks[task], flush=True)


if __name__ == "__main__":
    main()
