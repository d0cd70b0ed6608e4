"""Published rules, one paper a file, in a registry by name."""

from curvjax.allocation.rules.registry import RULES as RULES
from curvjax.allocation.rules.registry import Allocator as Allocator
from curvjax.allocation.rules.registry import Rule as Rule
from curvjax.allocation.rules.registry import rule as rule
from curvjax.registry import import_all

import_all(__name__, __path__)
