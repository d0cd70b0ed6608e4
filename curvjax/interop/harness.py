"""A decoder as a model of EleutherAI's lm-evaluation-harness (`pip install 'curvjax[eval]'`).

Imported by name and not by `curvjax.interop`: the harness is a large package that nothing else here needs.
"""

from itertools import islice
from typing import NoReturn

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from curvjax.data import with_begin
from curvjax.evaluation import EncodedPair, continuation_scores
from curvjax.models import Decoder
from curvjax.models.tokenizer import Tokenizer
from curvjax.tick import Tick


class HarnessModel(TemplateLM):
    """Log-likelihoods for the harness, for `lm_eval.simple_evaluate(model=HarnessModel(model, tokenizer), tasks=...)`.

    Tasks whose `output_type` is multiple_choice, loglikelihood or loglikelihood_rolling work; those that have the model
    write do not. All requests of a kind come at once, so that what they begin with is read once in a row
    (`continuation_scores`), be it a context of several choices or the examples before all questions.

    Source: the interface and the border between context and continuation are the harness's own, 0.4.13. Unlike its
    `HFLM`, contexts longer than the model was made for are refused and not cut.
    """

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        *,
        length: int = 128,
        rows_at_once: int = 16,
        progress: Tick | None = None,
    ):
        """A model of the harness.

        Args:
          model: any decoder, adapters included.
          tokenizer: that of the model; its `begin` stands before each context and each window of a long text.
          length: tokens in the shortest rows.
          rows_at_once: rows of `length` in memory at a time.
          progress: told `(done, all)` rows after each microbatch.

        Raises:
          ValueError: if the tokenizer has neither a bos_id nor an eos_id, which stands before a text without context.
        """
        super().__init__()
        first = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
        if first is None:
            msg = "the harness needs a token before texts without context: a tokenizer with a bos_id or an eos_id."
            raise ValueError(msg)
        self.model, self.encoder, self.first = model, tokenizer, first
        self.length, self.rows_at_once, self.progress = length, rows_at_once, progress

    @property
    def eot_token_id(self) -> int:
        """What stands before a text without context."""
        return self.first

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: object) -> list[int]:
        """Token ids of `string`; what stands before it comes later."""
        return self.encoder.encode(string)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of each whole text, nats, in windows as long as the model takes, each token counted once."""
        windows = [self._windows(request.args[0]) for request in requests]
        scores = iter(self._scores([pair for text in windows for pair in text]))
        totals = [sum(nats for nats, _ in islice(scores, len(text))) for text in windows]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> NoReturn:
        """Not there.

        Raises:
          NotImplementedError: always.
        """
        msg = (
            f"curvjax scores texts and does not write them, and {requests[0].task_name!r} has output_type "
            "generate_until. Tasks of multiple_choice (arc_easy, hellaswag, piqa, sciq), loglikelihood "
            "(lambada_openai) and loglikelihood_rolling (wikitext) do work."
        )
        raise NotImplementedError(msg)

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: object
    ) -> list[tuple[float, bool]]:
        scores = self._scores([EncodedPair(tuple(context), tuple(ids)) for _, context, ids in requests])
        for request, score in zip(requests, scores, strict=True):
            self.cache_hook.add_partial("loglikelihood", request[0], score)
        return scores

    def _scores(self, pairs: list[EncodedPair]) -> list[tuple[float, bool]]:
        if not pairs:  # texts without a token
            return []
        whole = [pair._replace(context=tuple(with_begin(self.encoder, pair.context))) for pair in pairs]
        found = continuation_scores(
            self.model, whole, length=self.length, rows_at_once=self.rows_at_once, progress=self.progress
        )
        return list(zip(found.log_probability.tolist(), found.greedy.tolist(), strict=True))

    def _windows(self, text: str) -> list[EncodedPair]:
        longest = self.model.config.max_positions - len(self.encoder.begin)
        windows = get_rolling_token_windows(self.tok_encode(text), self.first, longest, context_len=1)
        return [EncodedPair(tuple(context), tuple(ids)) for context, ids in map(make_disjoint_window, windows)]
