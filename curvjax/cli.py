"""The `curvjax` command: one subcommand for each step, and `run` for all of them."""

import sys
import warnings
from typing import Annotated

import tyro

from curvjax.commands.budgets import Allocate, Compare
from curvjax.commands.gains import Refine, Score, Transfer
from curvjax.commands.outcomes import Evaluate, Export, Report, Run
from curvjax.commands.rebuild import Adapt, Factorize, Prune, Quantize, Upcycle

Command = (
    Annotated[Run, tyro.conf.subcommand("run")]
    | Annotated[Score, tyro.conf.subcommand("score")]
    | Annotated[Allocate, tyro.conf.subcommand("allocate")]
    | Annotated[Refine, tyro.conf.subcommand("refine")]
    | Annotated[Transfer, tyro.conf.subcommand("transfer")]
    | Annotated[Compare, tyro.conf.subcommand("compare")]
    | Annotated[Adapt, tyro.conf.subcommand("adapt")]
    | Annotated[Prune, tyro.conf.subcommand("prune")]
    | Annotated[Quantize, tyro.conf.subcommand("quantize")]
    | Annotated[Factorize, tyro.conf.subcommand("factorize")]
    | Annotated[Upcycle, tyro.conf.subcommand("upcycle")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[Report, tyro.conf.subcommand("report")]
)


def main() -> None:
    """Parse the command line, run one command, and turn refusals into one line and exit status 1."""
    description = (
        "Which layers of a language model deserve capacity, how much, and can you prove it? Certified "
        "curvature-adjusted gains, convex budgets, model surgery."
    )
    warnings.showwarning = _print_warning  # ty: ignore[invalid-assignment]
    try:
        command = tyro.cli(  # inside: settings out of range are refused as they are made
            Command,
            prog="curvjax",
            description=description,
            config=(tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff),
        )
        command()
    except (ValueError, KeyError, OSError, ImportError) as error:
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f"curvjax: {text}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("curvjax: stopped; the same command goes on from here.", file=sys.stderr)
        raise SystemExit(130) from None


def _print_warning(message: Warning | str, *_: object) -> None:
    print(f"curvjax: warning: {message}", file=sys.stderr)
