"""Published layer scores and plans, one paper a file, all with one signature, in a registry by name."""

from curvjax.registry import import_all
from curvjax.scores.evidence import Evidence as Evidence
from curvjax.scores.registry import PLANS as PLANS
from curvjax.scores.registry import SCORES as SCORES
from curvjax.scores.registry import Plan as Plan
from curvjax.scores.registry import Planner as Planner
from curvjax.scores.registry import Score as Score
from curvjax.scores.registry import plan as plan
from curvjax.scores.registry import score as score

import_all(__name__, __path__)
