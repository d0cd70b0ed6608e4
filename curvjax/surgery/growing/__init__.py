"""What is added to a model: adapters, experts and their routers, MLPs grown to mixtures; how they start and learn."""

from curvjax.registry import import_all

import_all(__name__, __path__)
