"""tune: find ensemble weights, views, class biases and a CRF on labelled images; print the infer command."""

from collections.abc import Sequence

from segkit.cli.process import errors_as_sentences, rules_of_models, wait_briefly
from segkit.config import TuneConfig, parse_args


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; `argv` defaults to the arguments of the process."""
    wait_briefly()
    with errors_as_sentences("tune", TuneConfig):
        config = parse_args(TuneConfig, argv, prog="segkit tune", start_from=rules_of_models)
        from segkit.workflows.tune import tune

        tune(**vars(config), verbose=True)
