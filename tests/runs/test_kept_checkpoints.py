"""Which checkpoints are kept, when, and how they are chosen."""

import pytest

from rlgns.runs.kept_checkpoints import KeptCheckpoints, chosen_checkpoints, kept_checkpoints, points


@pytest.mark.parametrize(
    ("total", "number", "expected"),
    [(100, 3, [25, 50, 100]), (100, 1, [100]), (100, 0, []), (5, 8, [1, 2, 5]), (1, 4, [1])],
)
def test_points_are_halves_of_the_run(total, number, expected):
    assert points(total, number) == expected


def write(path):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"checkpoint")


def test_each_point_is_kept_once_at_the_first_update_beyond_it_even_if_the_run_is_resumed(tmp_path):
    kept = KeptCheckpoints(tmp_path, 100, 3)
    for examples in range(8, 64, 8):
        if path := kept.path_if_due(examples):
            write(path)
    assert list(kept_checkpoints(tmp_path)) == [32, 56]
    resumed = KeptCheckpoints(tmp_path, 100, 3)  # from a checkpoint at 40
    for examples in range(48, 105, 8):
        if path := resumed.path_if_due(examples):
            write(path)
    assert list(kept_checkpoints(tmp_path)) == [32, 56, 104]


def test_nothing_is_kept_unless_it_is_asked_for(tmp_path):
    kept = KeptCheckpoints(tmp_path, 100, 0)
    assert [kept.path_if_due(examples) for examples in (10, 100)] == [None, None]


def test_checkpoints_are_chosen_by_name(tmp_path):
    for examples in (400, 25, 100):
        write(tmp_path / "checkpoints" / f"{examples}.pt")
    write(tmp_path / "checkpoints" / "notes.pt")
    write(tmp_path / "checkpoint.pt")
    assert list(chosen_checkpoints(tmp_path, "last")) == ["last"]
    assert list(chosen_checkpoints(tmp_path, "all")) == ["25", "100", "400", "last"]
    assert chosen_checkpoints(tmp_path, "130") == {"100": tmp_path / "checkpoints" / "100.pt"}


@pytest.mark.parametrize(
    ("choice", "reason"),
    [
        ("last", "has no checkpoint.pt"),
        ("100", "has kept no checkpoint but the last"),
        ("x", "neither last nor all"),
    ],
)
def test_a_checkpoint_that_is_not_there_is_refused_in_words(tmp_path, choice, reason):
    with pytest.raises(ValueError, match=reason):
        chosen_checkpoints(tmp_path, choice)
