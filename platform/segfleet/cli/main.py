"""The command `segfleet`: its verbs, and the one place that turns errors into exit codes."""

from __future__ import annotations

import sys

import typer

from segfleet.cli import access, bench, datasets, jobs, local, models, quotas, retention, searches, webhooks
from segfleet.cli.output import fail
from segfleet.errors import (
    AccessError,
    IdempotencyConflictError,
    IllegalTransitionError,
    ModelError,
    QuotaExceededError,
    SegfleetError,
    SettingsError,
    UnknownJobError,
    WebhookError,
)

FAILED, WRONG_USE = 1, 2
# What the user can only mend by another command line; everything else is a job, check or service that failed.
_WRONG_USE = (
    SettingsError,
    UnknownJobError,
    ModelError,
    IllegalTransitionError,
    IdempotencyConflictError,
    QuotaExceededError,
    AccessError,
    WebhookError,
)

app = typer.Typer(
    name="segfleet",
    help="Train semantic segmentation models through a durable job queue.\n\n"
    "Start with: segfleet up; segfleet submit SPEC --follow; "
    "segfleet predict --model NAME@ALIAS IMAGE --out DIR\n\n"
    "The home folder is ~/.segfleet or $SEGFLEET_HOME; a service elsewhere is reached by $SEGFLEET_URL and "
    "$SEGFLEET_TOKEN. Exit code: 0 done, 1 the job or check failed, 2 wrong use.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
for _group in (local, datasets, jobs, searches):
    _group.register(app)
app.add_typer(models.app, name="models")
app.add_typer(quotas.app, name="quota")
app.add_typer(access.app, name="token")
app.add_typer(webhooks.app, name="webhook")
app.add_typer(retention.app, name="retention")
access.register(app)
app.add_typer(bench.app, name="bench")
models.register(app)


def exit_code(error: SegfleetError) -> int:
    """What the process answers to an error: 1 a job or check failed, 2 wrong use."""
    return WRONG_USE if isinstance(error, _WRONG_USE) else FAILED


def main() -> None:
    """Run the command line of this process."""
    try:
        app()
    except SegfleetError as error:
        fail(str(error))
        sys.exit(exit_code(error))


if __name__ == "__main__":
    main()
