"""Certified curvature-adjusted gains; arrays and callables only."""

from curvjax.curvature.bootstrap import Bootstrap, bootstrap_gains, weighted_gains
from curvjax.curvature.cross import CrossGain, cross_gain
from curvjax.curvature.damping import (
    Absolute,
    OfLargestEigenvalue,
    TrustRadius,
    absolute,
    of_largest_eigenvalue,
    of_mean_eigenvalue,
    trust_radius,
)
from curvjax.curvature.datainf import datainf_gain, datainf_influence, influence_score
from curvjax.curvature.diagonal import MeanDiagonals, mean_diagonals, sampled_diagonals
from curvjax.curvature.eigenvalue_density import (
    EigenvalueRange,
    RitzPair,
    SpectralDensity,
    eigenvalue_range,
    ritz_pair,
    spectral_density,
)
from curvjax.curvature.factors import FisherFactors, empirical_fisher, empirical_fisher_tokens, fisher_mc
from curvjax.curvature.fisher import UnitGram, each_gram, fisher_gains
from curvjax.curvature.gain import Gain, GainStatus, continued, gain_of, layer_gain, run_lanczos
from curvjax.curvature.hessian import hessian_product
from curvjax.curvature.landscape import LineSeries, line_series
from curvjax.curvature.layer_gains import LayerGains, UnitGain, each_layer_gain, layer_gains
from curvjax.curvature.layered import (
    LayeredLoss,
    LayeredModel,
    ggn_product,
    host_loop,
    run_passes,
    sampled_traces,
    unit_gradient,
)
from curvjax.curvature.newton import newton_edit, newton_steps
from curvjax.curvature.placement import DeviceGain, data_parallel, fully_sharded, layer_gains_over_devices
from curvjax.curvature.promise import (
    Decrease,
    Promised,
    StepPromise,
    Streams,
    decrease,
    forward_streams,
    passed_streams,
    promised,
)
from curvjax.curvature.woodbury import LowRank, gram_spectrum, low_rank_gain, woodbury_gain

__all__ = [
    "Absolute",
    "Bootstrap",
    "CrossGain",
    "Decrease",
    "DeviceGain",
    "EigenvalueRange",
    "FisherFactors",
    "Gain",
    "GainStatus",
    "LayerGains",
    "LayeredLoss",
    "LayeredModel",
    "LineSeries",
    "LowRank",
    "MeanDiagonals",
    "OfLargestEigenvalue",
    "Promised",
    "RitzPair",
    "SpectralDensity",
    "StepPromise",
    "Streams",
    "TrustRadius",
    "UnitGain",
    "UnitGram",
    "absolute",
    "bootstrap_gains",
    "continued",
    "cross_gain",
    "data_parallel",
    "datainf_gain",
    "datainf_influence",
    "decrease",
    "each_gram",
    "each_layer_gain",
    "eigenvalue_range",
    "empirical_fisher",
    "empirical_fisher_tokens",
    "fisher_gains",
    "fisher_mc",
    "forward_streams",
    "fully_sharded",
    "gain_of",
    "ggn_product",
    "gram_spectrum",
    "hessian_product",
    "host_loop",
    "influence_score",
    "layer_gain",
    "layer_gains",
    "layer_gains_over_devices",
    "line_series",
    "low_rank_gain",
    "mean_diagonals",
    "newton_edit",
    "newton_steps",
    "of_largest_eigenvalue",
    "of_mean_eigenvalue",
    "passed_streams",
    "promised",
    "ritz_pair",
    "run_lanczos",
    "run_passes",
    "sampled_diagonals",
    "sampled_traces",
    "spectral_density",
    "trust_radius",
    "unit_gradient",
    "weighted_gains",
    "woodbury_gain",
]
