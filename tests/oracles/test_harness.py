"""EleutherAI's lm-evaluation-harness over a decoder, against our own ranked choice."""

import json

import numpy as np
import pytest
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager

from curvjax.data import with_examples
from curvjax.evaluation import ranked_choice
from curvjax.interop.harness import HarnessModel
from curvjax.models import Loaded, load_model
from curvjax.models.tokenizer import Tokenizer
from tests.evaluation.plain import text_log_probabilities
from tests.runs.tiny import questions, save_tiny_model

pytestmark = pytest.mark.oracle

ASKED, EXAMPLES = questions(24), questions(3, seed=5)
TASK = """
task: tiny
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/asked.json, train: {folder}/examples.json}}}}
test_split: test
fewshot_split: train
fewshot_config: {{sampler: first_n}}
output_type: multiple_choice
doc_to_text: "{{{{context}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: label
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory) -> Loaded:
    return load_model(save_tiny_model(tmp_path_factory.mktemp("harness") / "tiny", layers=2))


@pytest.fixture
def model(loaded):
    return HarnessModel(loaded.model, loaded.tokenizer, length=32, rows_at_once=4)


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """Nothing from the network, and nothing left in the user's caches."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    for name, given in (("asked", ASKED), ("examples", EXAMPLES)):
        lines = [
            json.dumps({
                "context": q.contexts[0],
                "choices": [one.strip() for one in q.continuations],
                "label": q.label,
            })
            for q in given
        ]
        (tmp_path / f"{name}.json").write_text("\n".join(lines))
    (tmp_path / "tiny.yaml").write_text(TASK.format(folder=tmp_path))
    return TaskManager(include_path=str(tmp_path), include_defaults=False)


@pytest.mark.parametrize("shots", [0, 2])
def test_accuracy_in_the_harness_is_that_of_ranked_choice(model, loaded, tasks, shots):
    found = simple_evaluate(
        model=model, tasks=["tiny"], task_manager=tasks, num_fewshot=shots, bootstrap_iters=0, log_samples=True
    )
    ours = ranked_choice(loaded.model, loaded.tokenizer, with_examples(ASKED, EXAMPLES[:shots]))
    theirs = [[response[0][0] for response in sample["resps"]] for sample in found["samples"]["tiny"]]
    np.testing.assert_allclose(theirs, ours.log_probability, rtol=1e-5)
    assert found["results"]["tiny"]["acc,none"] == ours.accuracy
    assert found["results"]["tiny"]["acc_norm,none"] == ours.accuracy_per_character
    assert 0 < ours.accuracy < 1


def likelihood(loaded, given, predicted):
    """One row, read in one call."""
    ids = [*given, *predicted]
    logp = text_log_probabilities(loaded.model, ids[:-1], length=64)
    return sum(logp[place - 1, ids[place]] for place in range(len(given), len(ids)))


def test_whole_texts_are_read_in_windows_after_the_token_that_ends_a_document(model, loaded):
    texts = [" ".join(f"w{n % 60}" for n in range(start, start + 90)) for start in (0, 7)]
    found = model.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0) for text in texts])
    for total, ids in zip(found, map(loaded.tokenizer.encode, texts), strict=True):
        wanted = likelihood(loaded, [loaded.tokenizer.eos_id], ids[:64]) + likelihood(loaded, ids[25:64], ids[64:])
        assert total == pytest.approx(wanted, rel=1e-5)
    assert model.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, ("",), 0)]) == [0]


def test_texts_without_context_follow_the_token_that_ends_a_document(model, loaded):
    found = model.loglikelihood([Instance("loglikelihood", {}, ("", "w1 w2"), 0)])
    wanted = likelihood(loaded, [loaded.tokenizer.eos_id], loaded.tokenizer.encode("w1 w2"))
    assert found[0][0] == pytest.approx(wanted, rel=1e-5)


def test_what_begins_a_text_stands_before_every_context_once(model, loaded):
    (first,) = loaded.tokenizer.encode("w5")
    tokenizer = Tokenizer(loaded.tokenizer.backend, bos_id=first, eos_id=1, begin_of_text="always")
    begun = HarnessModel(loaded.model, tokenizer, length=32)
    with_it, without = ([Instance("loglikelihood", {}, (text, " w1 w2"), 0)] for text in ("w5 w3 w4", "w3 w4"))
    assert model.loglikelihood(with_it) == begun.loglikelihood(with_it) == begun.loglikelihood(without)
    assert model.loglikelihood(without) != model.loglikelihood(with_it)


def test_what_cannot_be_done_is_refused(model, loaded):
    request = Instance("generate_until", {}, ("w1", {}), 0, metadata=("gsm8k", 0, 1))
    with pytest.raises(NotImplementedError, match=r"'gsm8k' has output_type generate_until. Tasks of multiple_choice"):
        model.generate_until([request])
    with pytest.raises(ValueError, match="a tokenizer with a bos_id or an eos_id"):
        HarnessModel(loaded.model, Tokenizer(loaded.tokenizer.backend))
