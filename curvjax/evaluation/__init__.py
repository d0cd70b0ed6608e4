"""How good a model is, and how sure of that one can be: perplexity, ranked choice, paired differences."""

from curvjax.evaluation.choice import RankedChoice as RankedChoice
from curvjax.evaluation.choice import encode_choices as encode_choices
from curvjax.evaluation.choice import ranked_choice as ranked_choice
from curvjax.evaluation.continuations import Continuations as Continuations
from curvjax.evaluation.continuations import EncodedPair as EncodedPair
from curvjax.evaluation.continuations import continuation_scores as continuation_scores
from curvjax.evaluation.intervals import Interval as Interval
from curvjax.evaluation.intervals import student_interval as student_interval
from curvjax.evaluation.paired import ChoiceDifference as ChoiceDifference
from curvjax.evaluation.paired import Difference as Difference
from curvjax.evaluation.paired import paired_choice as paired_choice
from curvjax.evaluation.paired import paired_difference as paired_difference
from curvjax.evaluation.perplexity import Perplexity as Perplexity
from curvjax.evaluation.perplexity import perplexity as perplexity
from curvjax.evaluation.scoring import TargetLogProbabilities as TargetLogProbabilities
from curvjax.evaluation.scoring import Targets as Targets
from curvjax.evaluation.scoring import require_positions as require_positions
from curvjax.evaluation.scoring import target_log_probabilities as target_log_probabilities
