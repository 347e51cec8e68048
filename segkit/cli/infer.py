"""infer: segment photographs with trained models."""

import sys
from collections.abc import Sequence

from segkit.cli.process import SOME_FAILED, errors_as_sentences, program, rules_of_models, wait_briefly, with_flags
from segkit.config import InferConfig, parse_args
from segkit.console import printable


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; `argv` defaults to the arguments of the process."""
    wait_briefly()
    with errors_as_sentences("infer", InferConfig):
        config = parse_args(InferConfig, argv, prog=program("infer"), start_from=rules_of_models)
        from segkit.workflows.infer import predict

        result = predict(**vars(config), verbose=True)
        for failure in result.failures:
            print(printable(f"segkit infer: skipped: {with_flags(failure.error, vars(config))}"), file=sys.stderr)
    if result.failures:
        sys.exit(SOME_FAILED)
