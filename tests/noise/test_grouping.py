import numpy as np
import pytest

from rlgns.noise.grouping import default_num_groups, environment_groups, transition_groups

T, N = 5, 12


def rollout(layout: str) -> np.ndarray:
    """[T·N] the environment that each transition of a flat rollout came from."""
    of_environment = np.tile(np.arange(N), (T, 1))  # [T, N]
    return of_environment.T.reshape(-1) if layout == "env_major" else of_environment.reshape(-1)


@pytest.mark.parametrize("layout", ["env_major", "time_major"])
@pytest.mark.parametrize("num_groups", [2, 3, 4, 6, 12])
def test_every_group_is_made_of_whole_environments(layout, num_groups):
    groups = environment_groups(T, N, num_groups, layout)
    assert groups.shape == (num_groups, T * N // num_groups)
    for group in rollout(layout)[groups]:
        environments, counts = np.unique(group, return_counts=True)
        assert len(environments) == N // num_groups
        assert (counts == T).all()


@pytest.mark.parametrize("layout", ["env_major", "time_major"])
def test_environment_groups_hold_every_transition_once(layout):
    groups = environment_groups(T, N, 4, layout)
    assert groups.dtype == np.int64
    assert groups.flags.c_contiguous
    assert sorted(groups.flat) == list(range(T * N))


def test_layouts_by_hand():
    # T = 2, N = 4. env_major: [e0 e0 e1 e1 e2 e2 e3 e3]; time_major: [e0 e1 e2 e3 e0 e1 e2 e3]
    assert environment_groups(2, 4, 2, "env_major").tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert environment_groups(2, 4, 2, "time_major").tolist() == [[0, 4, 1, 5], [2, 6, 3, 7]]
    assert environment_groups(2, 4, 2).tolist() == environment_groups(2, 4, 2, "env_major").tolist()


@pytest.mark.parametrize("num_units", range(4, 201))
def test_the_default_number_of_groups_divides_and_is_at_least_four(num_units):
    K = default_num_groups(num_units)
    assert num_units % K == 0
    assert K >= 4
    divisors = [k for k in range(4, num_units + 1) if num_units % k == 0]
    assert max([k for k in divisors if k <= 16] or divisors[:1]) == K


@pytest.mark.parametrize(("num_units", "K"), [(4, 4), (8, 8), (12, 12), (16, 16), (22, 11), (64, 16), (197, 197)])
def test_default_numbers_of_groups_by_hand(num_units, K):
    assert default_num_groups(num_units) == K


@pytest.mark.parametrize("num_units", [0, 1, 3])
def test_fewer_than_four_units_are_refused(num_units):
    with pytest.raises(ValueError, match=f"{num_units} independent units cannot be split into 4 groups or more"):
        default_num_groups(num_units)


@pytest.mark.parametrize("num_groups", [0, 1, 5, 24])
def test_environments_that_do_not_divide_are_refused_with_the_numbers_that_do(num_groups):
    with pytest.raises(ValueError, match=rf"num_envs 12 .* into {num_groups} groups; use one of \[2, 3, 4, 6, 12\]"):
        environment_groups(T, N, num_groups)


def test_one_environment_cannot_be_split():
    with pytest.raises(ValueError, match=r"num_envs 1 .*; use at least 2 environments"):
        environment_groups(T, 1, 2)


def test_an_unknown_layout_is_refused():
    with pytest.raises(ValueError, match="layout 'env-major' is not known; use 'env_major' or 'time_major'"):
        environment_groups(T, N, 4, "env-major")


def test_transition_groups_are_a_partition():
    groups = transition_groups(60, 5, np.random.default_rng(0))
    assert groups.shape == (5, 12)
    assert sorted(groups.flat) == list(range(60))


def test_transition_groups_leave_out_a_remainder_at_random():
    rng = np.random.default_rng(0)
    left_out = {index for _ in range(200) for index in set(range(17)) - set(transition_groups(17, 4, rng).flat)}
    assert left_out == set(range(17))


def test_transition_groups_follow_the_generator():
    first, again, other = (transition_groups(60, 5, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


@pytest.mark.parametrize(("num_transitions", "num_groups"), [(3, 4), (10, 1), (10, 0), (0, 2)])
def test_fewer_transitions_than_groups_are_refused(num_transitions, num_groups):
    with pytest.raises(ValueError, match=f"{num_transitions} transitions cannot be split into {num_groups} groups"):
        transition_groups(num_transitions, num_groups, np.random.default_rng(0))
