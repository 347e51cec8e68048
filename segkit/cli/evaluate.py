"""evaluate: score models on labelled images, or compare two."""

from collections.abc import Sequence

from segkit.cli.process import errors_as_sentences, rules_of_models, wait_briefly
from segkit.config import EvaluateConfig, parse_args


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; `argv` defaults to the arguments of the process."""
    wait_briefly()
    with errors_as_sentences("evaluate", EvaluateConfig):
        config = parse_args(EvaluateConfig, argv, prog="segkit evaluate", start_from=rules_of_models)
        from segkit.workflows.evaluate import evaluate

        evaluate(**vars(config), verbose=True)
