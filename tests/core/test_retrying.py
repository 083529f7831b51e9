from retrieve_rerank.retrying import pauses


def test_one_pause_fewer_than_tries_each_in_the_upper_half_of_a_doubling_bound():
    for _ in range(50):
        found = list(pauses(6, first=1.0, longest=5.0))
        assert len(found) == 5
        for pause, bound in zip(found, (1.0, 2.0, 4.0, 5.0, 5.0), strict=True):
            assert bound / 2 <= pause <= bound


def test_one_try_is_never_waited_for():
    assert list(pauses(1)) == []


def test_callers_that_fail_together_do_not_come_back_together():
    assert len({tuple(pauses()) for _ in range(20)}) > 1
