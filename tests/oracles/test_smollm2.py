"""The demonstration model on real texts and on a task gives what other implementations give."""

import pytest

from curvjax.data import read_task
from curvjax.evaluation import ranked_choice
from tests.models.test_smollm2 import negative_log_likelihood, perplexity, smollm2  # noqa: F401

# First 4096 tokens of the texts joined by empty lines, in windows of 512 of which 511 tokens are predicted. Computed
# independently with transformers on torch and with a forward pass in NumPy, which agree to 0.01.
PERPLEXITIES = {"squad": 27.31, "boolq": 20.37, "coqa": 22.57}

pytestmark = pytest.mark.demo_model


@pytest.mark.parametrize("text", PERPLEXITIES)
def test_perplexities_are_those_of_other_implementations(smollm2, negative_log_likelihood, text):  # noqa: F811
    found = perplexity(smollm2, negative_log_likelihood, text, 4096)
    assert found == pytest.approx(PERPLEXITIES[text], rel=5e-4)  # which is their last digit


def test_zero_shot_accuracy_is_that_of_another_implementation(smollm2):  # noqa: F811
    choice = ranked_choice(smollm2.model, smollm2.tokenizer, read_task("arc-easy")[:40])
    assert choice.accuracy == 0.5  # as are the first 200 questions
    assert choice.accuracy_per_character == 0.425
    assert choice.gold_nll == pytest.approx(16.31372, abs=1e-4)  # an independent forward, one unpadded choice a row
