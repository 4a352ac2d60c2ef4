"""What the environment says of the ranks is a group that can be joined, or refused at once: nobody waits for it."""

import pytest

from core.errors import UserError
from core.parallel.ranks import process_group

WHOLE = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"RANK": "-1"}, "RANK '-1', which is no whole number"),
        ({"RANK": "first"}, "RANK 'first', which is no whole number"),
        ({"RANK": "2"}, "RANK 2 and WORLD_SIZE 2, but ranks count from 0"),
        ({"WORLD_SIZE": "0"}, "RANK 0 and WORLD_SIZE 0, but ranks count from 0"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE '', which is no whole number"),
        ({"WORLD_SIZE": None, "RANK": "1"}, "RANK 1 and WORLD_SIZE 1, but ranks count from 0"),
        ({"RANK": None}, "WORLD_SIZE 2, but no RANK: start with torchrun"),
        ({"MASTER_ADDR": None, "MASTER_PORT": None}, "WORLD_SIZE 2, but no MASTER_ADDR, no MASTER_PORT"),
    ],
)
def test_environment_that_describes_no_group_is_refused(monkeypatch, changes, message):
    for name, value in (WHOLE | changes).items():
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message), process_group("cpu"):
        pass


def test_process_that_torchrun_did_not_start_is_a_group_of_one(monkeypatch):
    for name in WHOLE:
        monkeypatch.delenv(name, raising=False)
    with process_group("cpu") as ranks:
        assert (ranks.rank, ranks.world_size) == (0, 1)
