"""A draw of the fuzz suite (`make fuzz` runs all of it), and the suite's own verdicts."""

import os
import random

import huggingface_hub
import pytest
import torch
from fuzz_calls import Call, all_calls
from run_fuzz import FOREIGN, HANG, RIGHT, SENTENCE, WRONG, fuzz, memory_limit, quiet, table, try_input, try_right

from vjepa2_hf.specs import check_count


@pytest.mark.parametrize("call", all_calls(), ids=lambda call: call.name)
def test_right_arguments_give_a_right_result(call):
    with quiet():
        try_right(call)


def test_wrong_inputs_end_in_a_right_result_or_in_one_sentence(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # no name is looked up on the Hub
    outcomes = fuzz(300, seed=20)
    failures = [f"{each.call}({each.inputs}): {each.detail}" for each in outcomes if each.is_failure]
    assert not failures, "\n".join(failures)
    assert len({each.call for each in outcomes}) == len(all_calls())


def judged(function, holds=lambda result, arguments: True, timeout=1.0) -> str:
    call = Call("call", function, lambda: {"size": 1}, {"size": "integer"}, holds)
    return try_input(call, random.Random(0), timeout).verdict


class TestVerdicts:
    def test_right_and_wrong_results(self):
        assert judged(lambda size: 1) == RIGHT
        assert judged(lambda size: 1, holds=lambda result, arguments: False) == WRONG
        assert judged(lambda size: 1, holds=lambda result, arguments: result.size) == WRONG

    def test_a_sentence_is_of_the_package_and_names_the_argument(self):
        assert judged(lambda size: check_count("size", -1)) == SENTENCE
        assert judged(lambda size: check_count("something", "else")) == FOREIGN
        assert judged(lambda size: int("x")) == FOREIGN
        assert judged(lambda size: torch.zeros(2) + torch.zeros(3)) == FOREIGN

    def test_a_call_that_does_not_end(self):
        def endless(size):
            while True:
                pass

        assert judged(endless, timeout=0.1) == HANG

    @pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="the limit is Linux's")
    def test_an_allocation_of_gigabytes(self):
        with memory_limit(2**30):
            assert judged(lambda size: torch.zeros(2**31)) == FOREIGN

    def test_the_same_seed_gives_the_same_inputs(self):
        first, second = (fuzz(30, seed=5, only="Schedule") for _ in range(2))
        assert [(one.call, one.verdict) for one in first] == [(one.call, one.verdict) for one in second]
        assert table(first).splitlines()[-1].split()[0] == "all"
