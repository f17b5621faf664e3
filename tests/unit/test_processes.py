"""How processes are told apart; that they find each other is seen in `end_to_end/test_processes.py`."""

import re

import jax
import pytest

from vqathinker_jax.processes import ALONE, Processes, exchange, is_first, join
from vqathinker_jax.records import InputError


@pytest.mark.parametrize(
    ("told", "fault"),
    [
        ({"count": 2}, "2 processes with coordinator ''"),
        ({"coordinator": "10.0.0.1:8476"}, "1 processes with coordinator '10.0.0.1:8476'"),
        ({"count": 2, "coordinator": "10.0.0.1:8476", "index": 2}, "process 2 of 2"),
        ({"count": -1}, "process 0 of -1"),
    ],
)
def test_what_cannot_be_is_refused(told: dict, fault: str):
    with pytest.raises(InputError, match=re.escape(fault)):
        join(Processes(**told))


def test_one_alone_waits_for_nobody():
    join(ALONE)
    assert not jax.distributed.is_initialized()
    assert is_first()
    assert exchange({"said": ["é"]}) == [{"said": ["é"]}]


def test_where_nothing_tells_the_others_that_is_said(monkeypatch: pytest.MonkeyPatch):
    def nothing_found() -> None:
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", nothing_found)
    with pytest.raises(
        InputError, match=r"do not find each other \(coordinator_address should be defined\.\): give count"
    ):
        join(Processes(count=0))
