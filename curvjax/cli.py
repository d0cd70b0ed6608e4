"""The `curvjax` command: one subcommand for each step, and `run` for all of them.

A subcommand is imported when it is named, so that asking for help waits for nothing.
"""

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Any

COMMANDS = {
    "run": ("outcomes.Run", "gains, budgets, fine-tunes and pruning against controls, and the report"),
    "score": ("scoring.Score", "a score of every layer, by default the certified gain -> gains.json"),
    "allocate": ("budgets.Allocate", "scores to ranks, experts, sparsities or bits -> allocation.json"),
    "refine": ("scoring.Refine", "measure on only where whole ranks or experts are still open"),
    "transfer": ("scoring.Transfer", "what allocating by one text costs on another"),
    "compare": ("budgets.Compare", "published scores and rules at one budget"),
    "descend": ("budgets.Descend", "sparsities by prices measured at the pruned model -> allocation.json"),
    "adapt": ("rebuilding.Adapt", "fine-tune LoRA adapters of the allocated ranks or experts"),
    "prune": ("rebuilding.Prune", "remove the allocated weights, channels or heads"),
    "quantize": ("rebuilding.Quantize", "round to the allocated bit widths"),
    "factorize": ("rebuilding.Factorize", "cut projections to the allocated ranks"),
    "upcycle": ("rebuilding.Upcycle", "grow MLPs into mixtures of the allocated numbers of experts"),
    "rebuild": ("rebuilding.Rebuild", "any of these, and methods of your own, by name"),
    "evaluate": ("outcomes.Evaluate", "perplexity on texts, accuracy on tasks"),
    "export": ("outcomes.Export", "files that PEFT, llm-compressor and transformers load"),
    "report": ("outcomes.Report", "a run directory as one page, figures and a summary"),
    "methods": ("budgets.Methods", "all scores, rules, programs and methods, with their sources"),
}
RESUMING = ("run", "score", "descend", "adapt")
"""Those that keep on disk what is done."""
DESCRIPTION = (
    "Which layers of a language model deserve capacity, how much, and can you prove it? Certified curvature-adjusted "
    "gains, convex budgets, model surgery."
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, run one command, and turn refusals into one line and exit status 1."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        print(_help())
        raise SystemExit(0 if given else 2)
    warnings.showwarning = _print_warning  # ty: ignore[invalid-assignment] it takes all of the arguments
    try:
        _run(given[0], given[1:])
    except (ValueError, KeyError, OSError, ImportError) as error:
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f"curvjax: {text}", file=sys.stderr)
        raise SystemExit(1) from None
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        text = str(error).splitlines()[0] if str(error) else "an array was too large"
        print(f"curvjax: out of memory: {text}; take fewer --rows at a time, or a smaller --length.", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        goes_on = "; the same command goes on from here" if given[0] in RESUMING else ""
        print(f"curvjax: stopped{goes_on}.", file=sys.stderr)
        raise SystemExit(130) from None


def _run(name: str, arguments: list[str]) -> None:
    if name not in COMMANDS:
        msg = f"there is no command {name!r}; there are {', '.join(COMMANDS)}."
        raise ValueError(msg)
    import tyro

    from curvjax.commands.choice import with_choices
    from curvjax.commands.place import require_place
    from curvjax.registry import import_installed

    module, _, kind = COMMANDS[name][0].partition(".")
    command = getattr(import_module(f"curvjax.commands.{module}"), kind)
    import_installed()
    command = with_choices(command, arguments)
    config = (tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff)
    run: Any = tyro.cli(command, prog=f"curvjax {name}", args=arguments, config=config)
    require_place(run)
    run()


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {what}" for name, (_, what) in COMMANDS.items()]
    usage = ["usage: curvjax COMMAND ...", "", DESCRIPTION, "", "commands:", *lines]
    return "\n".join([*usage, "", "`curvjax COMMAND --help` lists every setting with its default."])


def _print_warning(message: Warning | str, *_: object) -> None:
    print(f"curvjax: warning: {message}", file=sys.stderr)
