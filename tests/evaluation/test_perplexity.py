import jax
import jax.numpy as jnp
import numpy as np
import pytest

from curvjax.data import Document, pack
from curvjax.evaluation import perplexity
from curvjax.evaluation.perplexity import clustered_mean
from tests.data.encoders import Characters
from tests.evaluation.plain import batch_log_probabilities, text_log_probabilities

TEXTS = ("a little text", "one more", "and the last of them")


def test_packing_does_not_change_a_documents_likelihood(model):
    documents = [Document(text, text) for text in TEXTS]
    packed = perplexity(model, pack(documents, Characters(), length=40))
    alone = [perplexity(model, pack([document], Characters(), length=24)) for document in documents]
    assert packed.row_tokens.shape == (1,)
    assert packed.tokens == sum(one.tokens for one in alone) == sum(len(text) - 1 for text in TEXTS)
    np.testing.assert_allclose(packed.row_nll.sum(), sum(one.row_nll.sum() for one in alone), rtol=2e-6)


def test_perplexity_is_the_exponential_of_the_mean_over_counted_tokens(model):
    batch = pack([Document(text, text.upper(), prompt=text) for text in TEXTS], Characters(), length=40)
    picked = np.take_along_axis(batch_log_probabilities(model, batch), np.asarray(batch.targets)[..., None], axis=-1)
    picked = picked[..., 0]
    result = perplexity(model, batch)
    assert result.tokens == sum(map(len, TEXTS)) == result.row_tokens.sum()
    assert result.tokens_read == 2 * result.tokens - len(TEXTS)  # the prompts too, the last tokens not
    np.testing.assert_allclose(result.nll, -(picked * batch.weights).sum() / batch.weights.sum(), rtol=2e-6)
    assert result.perplexity == np.exp(result.nll)
    np.testing.assert_allclose(result.row_nll, -(picked * batch.weights).sum(axis=1), rtol=2e-6)


def test_a_batch_that_counts_nothing_is_refused(model):
    batch = pack([Document("1", "abc")], Characters(), length=4)
    with pytest.raises(ValueError, match=r"no position of the \(1, 4\) batch has a weight"):
        perplexity(model, batch._replace(weights=jnp.zeros_like(batch.weights)))


def test_standard_error_of_equal_clusters_is_that_of_their_means():
    sums = np.asarray([3.0, 5.0, 4.0, 8.0])
    mean, error = clustered_mean(sums, np.full(4, 2.0))
    assert mean == (sums / 2).mean()
    assert error == pytest.approx((sums / 2).std(ddof=1) / 2)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_standard_error_of_unequal_clusters_is_the_spread_over_repetitions(seed):
    generator = np.random.default_rng(seed)
    draws = []
    for _ in range(2000):
        counts = generator.integers(5, 15, 60).astype(float)
        draws.append(clustered_mean(counts * generator.normal(1, 0.2, 60) + generator.normal(0, 1, 60), counts))
    means, errors = np.transpose(draws)
    assert errors.mean() == pytest.approx(means.std(), rel=0.07)  # 2000 draws: 1.6% for one standard error


@pytest.mark.parametrize("empty", [1, 6])
def test_rows_that_count_nothing_are_no_clusters(empty):
    sums, counts = np.asarray([310.0, 260.0, 90.0]), np.asarray([100.0, 100.0, 30.0])
    assert clustered_mean(np.pad(sums, (0, empty)), np.pad(counts, (0, empty))) == clustered_mean(sums, counts)
    assert np.isnan(clustered_mean(np.pad(sums[:1], (0, empty)), np.pad(counts[:1], (0, empty)))[1])


def test_padding_and_prompts_change_no_statistic(model):
    documents = [Document(text, text.upper(), prompt=text) for text in TEXTS]
    batch = pack(documents, Characters(), length=40)
    rows = len(batch.tokens)
    assert rows > 1
    padded = jax.tree.map(lambda leaf: jnp.pad(leaf, ((0, 2), (0, 0))), batch)
    prompts = batch._replace(weights=jnp.zeros_like(batch.weights))
    both = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), padded, prompts)
    alone, among = perplexity(model, batch), perplexity(model, both)
    assert among.tokens == alone.tokens
    assert among.nll == pytest.approx(alone.nll, rel=2e-6)
    assert among.standard_error == pytest.approx(alone.standard_error, rel=1e-4)
    assert among.interval == pytest.approx(alone.interval, rel=1e-4)
    assert among.interval.degrees == rows - 1


def test_what_begins_a_text_is_read_and_its_first_token_predicted_from_it(model):
    plain, begun = (perplexity(model, pack([Document("1", "abc")], Characters(begin=b), length=4)) for b in ((), (7,)))
    logp = text_log_probabilities(model, [7, *map(ord, "abc")])
    assert (plain.tokens, begun.tokens) == (2, 3)
    wanted = -sum(logp[place, ord(letter)] for place, letter in enumerate("abc"))
    assert begun.nll == pytest.approx(wanted / 3, rel=5e-6)


def test_a_prompt_longer_than_a_row_is_read_to_its_end(model):
    with pytest.warns(
        UserWarning, match="1 of 1 prompts did not fit into rows of 8 tokens: their first tokens, 5 in all"
    ):
        batch = pack([Document("1", "XYZ", prompt="abcdefghijk")], Characters(), length=8)
    logp = text_log_probabilities(model, [*map(ord, "fghijkXY")])
    wanted = -sum(logp[5 + place, ord(letter)] for place, letter in enumerate("XYZ"))
    assert perplexity(model, batch).row_nll[0] == pytest.approx(wanted, rel=5e-6)


def test_one_cluster_has_no_standard_error():
    mean, error = clustered_mean(np.asarray([6.0]), np.asarray([3.0]))
    assert mean == 2
    assert np.isnan(error)
