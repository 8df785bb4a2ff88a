from __future__ import annotations

import inspect
import pickle

import pytest

from segfleet import errors
from segfleet.errors import Problem, SegfleetError, SpecError

EXAMPLES = [
    SpecError([Problem("optim.lr", "-1: too small", "use 0.1"), Problem("", "no name")], "job.yaml"),
    errors.DataError("shard 'a.tar' is cut; prepare it again"),
    errors.FileMissingError("manifest.json", "s3://bucket/data"),
    errors.QueueError("full"),
    errors.UnknownJobError("job-abc"),
    errors.IllegalTransitionError("job-abc", "succeeded", "cancel", "it is over"),
    errors.JobChangedError("job-abc", "3", "running"),
    errors.AttemptFencedError("job-abc-a1", "a newer attempt runs"),
    errors.IdempotencyConflictError("key", "job-abc"),
    errors.QuotaExceededError("project 'vision'", "10", "10"),
    errors.QueueUnavailableError("the database is locked; try again"),
    errors.LeadershipLostError("epoch 3 has ended: epoch 4 leads"),
    errors.CheckpointError("damaged"),
    errors.ModelError("no model 'x'"),
    errors.ModelRefusedError("not a model of this job"),
    errors.LaunchError("unreachable"),
    errors.ServiceError("unreachable"),
    errors.TooManyStreamsError("this token", "100"),
    errors.TryBusyError(),
    errors.AccessError("this needs the role admin"),
    errors.UnauthorizedError("no token"),
    errors.UnknownTokenError("0123456789ab"),
    errors.WebhookError("no https"),
    errors.UnknownWebhookError("wh-0123456789ab"),
    errors.SettingsError("port 1 in use"),
]
CLASSES = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, SegfleetError)]


def test_there_is_an_example_of_every_class() -> None:
    assert {type(error) for error in EXAMPLES} == set(CLASSES) - {SegfleetError}


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_errors_survive_the_way_between_processes(error: SegfleetError) -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        copy = pickle.loads(pickle.dumps(error, protocol))
        assert type(copy) is type(error)
        assert str(copy) == str(error)
        assert vars(copy) == vars(error)


def test_codes_are_distinct() -> None:
    codes = [c.code for c in CLASSES]
    assert len(set(codes)) == len(codes)


def test_the_docstring_draws_every_class() -> None:
    assert errors.__doc__ is not None
    assert [c.__name__ for c in CLASSES if c.__name__ not in errors.__doc__] == []


def test_spec_error_lists_every_problem_with_its_way_out() -> None:
    assert str(EXAMPLES[0]) == "job.yaml: 2 problems\n  - optim.lr: -1: too small (use 0.1)\n  - no name"
    assert isinstance(EXAMPLES[0], SpecError)
    assert EXAMPLES[0].as_json()[0] == {"path": "optim.lr", "message": "-1: too small", "hint": "use 0.1"}


def test_messages_carry_the_values() -> None:
    text = "\n".join(map(str, EXAMPLES))
    for value in ("'job-abc'", "it is succeeded", "it is over", "job-abc-a1", "'key'"):
        assert value in text
    assert str(errors.DataError()) == errors.DataError.__doc__
