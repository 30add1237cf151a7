"""YAML files of options are read as their authors mean them; malformed ones are refused at once, in one line."""

import time
from pathlib import Path

import pytest

from rlgns.runs.yaml_files import MAX_BYTES, parse_yaml, read_options


def read(folder: Path, text: str) -> dict:
    path = folder / "options.yaml"
    path.write_text(text)
    return read_options(path)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001), ("-2E5", -2e5), ("1.0e-3", 0.001), (".5", 0.5), ("1_000.5", 1000.5), ("+.5e1", 5.0),
        ("1e400", float("inf")), ("-.inf", float("-inf")), ("12", 12), ("0x10", 16), ("-3", -3), ("1_000", 1000),
        ("'1e-3'", "1e-3"), ("e3", "e3"), ("1e", "1e"), ("2020-13-45", "2020-13-45"), ("2020-01-01", "2020-01-01"),
        ("v1.2.3", "v1.2.3"), ("~", None), ("yes", True), ("!!float 1", 1.0), ("!!str 1", "1"), ("[1, [2]]", [1, [2]]),
    ],
)  # fmt: skip
def test_values_are_read_as_their_authors_mean_them(text, value):
    parsed = parse_yaml(text, "text")
    assert parsed == value
    assert type(parsed) is type(value)


def test_dashes_are_underscores_and_an_empty_file_holds_no_options(tmp_path):
    assert read(tmp_path, "num-envs: 8\nb: {c-d: 1}\n") == {"num_envs": 8, "b": {"c-d": 1}}
    assert read(tmp_path, "# nothing\n") == {}
    assert read(tmp_path, "\ufeffa: 1\n") == {"a": 1}


def test_aliases_and_merges_of_a_usual_size_are_accepted(tmp_path):
    assert read(tmp_path, "a: &a {x: 1, y: 2}\nb: *a\nc: {<<: *a, x: 3}\n")["c"] == {"x": 3, "y": 2}


BOMB = "\n".join(["a0: &a0 [x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30))])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "gives 'a' twice, again in line 3"),
        ("x: {a: 1, a: 1}", "gives 'a' twice"),
        ("num-envs: 1\nnum_envs: 2", "gives 'num_envs' twice, with dashes and with underscores"),
        ("1: a", "has '1' in line 1 where a name is expected"),
        ("x: {on: a}", "has 'on' in line 1 where a name is expected"),
        ("~: a", "has '~' in line 1"),
        ("? [a]\n: b", "has a sequence in line 1 where a name is expected"),
        ("? {a: b}\n: b", "has a mapping in line 1"),
        ("[" * 100_000, "is nested more than 32 deep in line 1"),
        ("a: " + "{b: " * 100_000, "is nested more than 32 deep"),
        ("\n".join(" " * i + "a:" for i in range(500)), "is nested more than 32 deep in line 33"),
        ("- " * 5000, "is nested more than 32 deep"),
        (BOMB, "holds more than 100,000 values, aliases written out"),
        ("a: &a [*a]", "has an alias *a within itself in line 1"),
        ("a: &a {<<: *a}", "has an alias *a within itself"),
        ("a: *b", "is not YAML: found undefined alias"),
        ("a: [" + "1," * 200_000 + "]", "holds more than 100,000 values"),
        ("a: [", "is not YAML"),
        ("a: \x00", "is not YAML"),
        ("a: 1\n---\nb: 2", "is not YAML: expected a single document"),
        ("a: =\nb: [1", "is not YAML"),
        ("- 1", "holds a list; expected options by name"),
        ("text", "holds a str; expected"),
        ("7", "holds a int; expected"),
        ("a: " + "9" * 5000, "which is no int"),
        ("a: !!int x", "has 'x' in line 1, which is no int"),
        ("a: !!float x", "which is no float"),
        ("a: !!bool x", "which is no bool"),
        ("a: !!python/object:os.system x", "has a type of its own"),
        ("a: !!binary x", "has a type of its own"),
        ("a: !!timestamp x", "has a type of its own"),
        ("a: !local {b: 1}", "has a type of its own, !local"),
        ("x" * (MAX_BYTES + 1), "is larger than 1,048,576 bytes"),
    ],
)
def test_a_malformed_file_is_refused_in_one_line_at_once(text, message, tmp_path):
    started = time.process_time()
    with pytest.raises(ValueError, match=r"options\.yaml") as error:
        read(tmp_path, text)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400 + len(str(tmp_path))
    assert time.process_time() - started < 20


def test_a_file_that_cannot_be_read_is_named_with_the_option(tmp_path):
    with pytest.raises(ValueError, match=r"--config .*none.yaml cannot be read: No such file"):
        read_options(tmp_path / "none.yaml")
    with pytest.raises(ValueError, match=r"sweep file .* cannot be read: Is a directory"):
        read_options(tmp_path, "sweep file")
    (tmp_path / "bytes.yaml").write_bytes(b"a: \xff")
    with pytest.raises(ValueError, match="cannot be read: it is not text"):
        read_options(tmp_path / "bytes.yaml")
    with pytest.raises(ValueError, match="is larger than"):
        read_options(Path("/dev/zero"))
