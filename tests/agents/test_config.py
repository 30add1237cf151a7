import json
import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
from support.processes import child_environment

from rlgns.agents.config import A2C_DEFAULTS, CHANGEABLE_ON_RESUME, PPO_DEFAULTS, TrainConfig, resolved
from rlgns.agents.options import parse
from rlgns.commands.cli import main
from rlgns.runs.files import write_json
from rlgns.runs.options import as_mapping, from_mapping

FLAGS = {f.name: "--" + f.name.replace("_", "-") for f in fields(TrainConfig)}


def changed(config: TrainConfig) -> dict[str, object]:
    """The options that differ from those of a run without any flag."""
    plain = resolved(TrainConfig())
    names = [f.name for f in fields(config) if getattr(config, f.name) != getattr(plain, f.name)]
    return {name: getattr(config, name) for name in names}


def yaml_file(folder: Path, text: str) -> str:
    path = folder / "run.yaml"
    path.write_text(text)
    return str(path)


@pytest.fixture(scope="module")
def help_text() -> str:
    return subprocess.run(
        [sys.executable, "scripts/train_atari.py", "--help"],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2], env=child_environment(COLUMNS=120),
    ).stdout  # fmt: skip


# Defaults


def test_a2cs_defaults_are_those_of_mnih_2016_and_openai_baselines():
    config = parse([])
    assert (config.algo, config.num_envs, config.num_steps, config.batch_size) == ("a2c", 16, 5, 80)
    assert (config.learning_rate, config.anneal_learning_rate) == (7e-4, False)
    assert (config.gamma, config.gae_lambda, config.ent_coef, config.vf_coef) == (0.99, 1.0, 0.01, 0.25)
    assert (config.max_grad_norm, config.rmsprop_alpha, config.optimizer_eps) == (0.5, 0.99, 1e-5)
    assert (config.normalize_advantage, config.log_every) == (False, 10)


def test_ppos_defaults_are_those_of_schulman_2017():
    config = parse(["--algo", "ppo"])
    assert (config.num_envs, config.num_steps, config.batch_size) == (8, 128, 1024)
    assert (config.learning_rate, config.anneal_learning_rate) == (2.5e-4, True)
    assert (config.gamma, config.gae_lambda, config.ent_coef, config.vf_coef) == (0.99, 0.95, 0.01, 0.5)
    assert (config.clip_coef, config.anneal_clip_coef, config.num_epochs, config.num_minibatches) == (0.1, True, 4, 4)
    assert (config.normalize_advantage, config.log_every) == (True, 1)


def test_the_algorithms_defaults_stand_for_nothing_but_none():
    assert A2C_DEFAULTS.keys() == PPO_DEFAULTS.keys()
    assert all(getattr(TrainConfig(), name) is None for name in A2C_DEFAULTS)
    assert parse(["--algo", "ppo", "--num-envs", "4", "--normalize-advantage", "False"]).normalize_advantage is False


def test_a_resolved_configuration_stays_as_it_is():
    assert resolved(resolved(TrainConfig(algo="ppo"))) == resolved(TrainConfig(algo="ppo"))


def test_the_learning_rate_depends_on_the_batch_size_with_lr_batch_scale():
    """ε*/(1 + B*/B)^α by hand: B = 80, so 1e-3/(1 + 240/80)^½ = 5e-4 and 1e-3/(1 + 240/80) = 2.5e-4."""
    scaled = ["--learning-rate", "1e-3", "--lr-batch-scale", "240"]
    assert parse(["--learning-rate", "1e-3"]).effective_learning_rate == 1e-3
    assert parse(scaled).effective_learning_rate == pytest.approx(5e-4, rel=1e-12)
    assert parse([*scaled, "--lr-batch-exponent", "1"]).effective_learning_rate == pytest.approx(2.5e-4, rel=1e-12)
    with pytest.raises(ValueError, match="lr_batch_scale -1"):
        parse(["--lr-batch-scale", "-1"])


# Flags


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--measure=True"], {}),
        (["--measure=False"], {"measure": False}),
        (["--no-measure"], {"measure": False}),
        (["--by_layer=True"], {"by_layer": True}),
        (["--anneal_learning_rate=True"], {"anneal_learning_rate": True}),
        (["--algo=a2c", "--normalize_advantage=True"], {"normalize_advantage": True}),
        (["--anneal_learning_rate=None"], {}),
        (["--anneal-learning-rate", "--seed=3"], {"anneal_learning_rate": True, "seed": 3}),
        (["--anneal-learning-rate", "True"], {"anneal_learning_rate": True}),
        (["--anneal-learning-rate", "--no-anneal-learning-rate"], {}),
        (["--no_anneal_learning_rate", "--anneal-learning-rate"], {"anneal_learning_rate": True}),
        (["--wandb_tags=['a', 'b']"], {"wandb_tags": ("a", "b")}),
        (["--wandb_tags=['a','b']", "--seed=3"], {"wandb_tags": ("a", "b"), "seed": 3}),
        (["--wandb_tags=[]"], {}),
        (["--wandb-tags", "a", "b"], {"wandb_tags": ("a", "b")}),
        (["--wandb_notes=[not a list]"], {"wandb_notes": "[not a list]"}),
        (["--num_envs=8"], {"num_envs": 8}),
        (["--num-envs", "8"], {"num_envs": 8}),
        (["--measure_every=None"], {}),
        (["--learning_rate=0.0007"], {}),
        (["--learning-rate", "1e-3"], {"learning_rate": 1e-3}),
        (["--out=runs/x"], {"out": Path("runs/x")}),
        (["--unit=transition"], {"unit": "transition"}),
    ],
)
def test_flags_are_accepted_in_the_spellings_of_people_and_of_sweeps(arguments, expected):
    assert changed(parse(arguments)) == expected


def test_every_sweep_spelling_of_a_configuration_gives_it_back():
    """`${args}` prints `--name=value` with Python's own spelling of the value."""
    config = resolved(TrainConfig(algo="ppo", seed=4, wandb_tags=("a", "b"), by_layer=True, measure=False))
    printed = [f"--{name}={value}" for name, value in as_mapping(config).items()]
    assert parse(printed) == config


def test_a_list_that_is_none_is_refused():
    with pytest.raises(ValueError, match="is not a list; give --wandb-tags a b"):
        parse(["--wandb_tags=[a"])


@pytest.mark.parametrize("name", list(FLAGS))
def test_every_flag_has_help(name, help_text):
    entry = re.search(rf"^  {FLAGS[name]}[ ,].*?(?=^  -|^\S|\Z)", help_text, re.DOTALL | re.MULTILINE)
    assert entry, f"{FLAGS[name]} is not in the help"
    words = " ".join(entry[0].split()).partition("(default:")[0].removeprefix(FLAGS[name])
    assert re.search(r"[a-z]{4,}", re.sub(r"--no-\S+", "", words)), f"no description: {words}"


def test_flags_stand_in_groups_with_config_among_them(help_text):
    headings = re.findall(r"^([A-Z].*):$", help_text, re.MULTILINE)
    assert headings == list(TrainConfig.GROUPS)
    run = help_text.partition("\nRun:\n")[2].partition("\nWeights & Biases:\n")[0]
    assert "--config FILE" in run
    assert "--resume PATH" in run


def test_help_names_the_defaults_of_measure_every(help_text):
    from rlgns.agents.cadence import updates_per_measurement

    words = " ".join(help_text.split())
    assert f"A2C {updates_per_measurement(1, True)}, PPO {updates_per_measurement(TrainConfig().num_epochs)}]" in words


def test_help_and_bad_input_are_answered_without_torch():
    code = """
import sys
from rlgns.agents.cli import main
for arguments in (["--help"], ["--num-envs", "x"]):
    try:
        print(main(arguments))
    except SystemExit as stopped:
        print(stopped.code)
assert main(["--num-envs", "0"]) == 2
slow = {"torch", "stable_baselines3", "wandb", "matplotlib", "ale_py", "gymnasium"} & set(sys.modules)
assert not slow, slow
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 0, done.stderr
    exit_codes = [int(line) for line in done.stdout.splitlines() if line.isdigit()]
    assert exit_codes == [0, 2]


# Ranges


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-envs", "0"], "num_envs 0 is out of range; give --num-envs from 1 to 16,384"),
        (["--num-steps", "-1"], "num_steps -1 is out of range; give --num-steps from 1 to"),
        (["--total-transitions", "0"], "total_transitions 0 is out of range"),
        (["--learning-rate", "0"], "learning_rate 0 is out of range; give --learning-rate above 0"),
        (["--learning-rate", "nan"], "learning_rate nan is out of range"),
        (["--algo=ppo", "--num-minibatches", "0"], "num_minibatches 0 is out of range"),
        (["--measure-every", "0"], "measure_every 0 is out of range"),
        (["--checkpoint-seconds", "0"], "checkpoint_seconds 0 is out of range"),
        (["--ent-coef", "-0.1"], "ent_coef -0.1 is out of range; give --ent-coef from 0 to"),
        (["--ent-coef", "nan"], "ent_coef nan is out of range"),
        (["--seed", "-1"], "seed -1 is out of range; give --seed from 0 to below 2,147,483,648"),
        (["--seed=2147483647"], "seed 2147483647 is too large; give --seed from 0 to 2147483632"),
        (["--gamma", "1.5"], "gamma 1.5 is out of range; give --gamma from 0 to 1"),
        (["--gae-lambda", "nan"], "gae_lambda nan is out of range"),
        (["--repeat-action-probability", "2"], "repeat_action_probability 2 is out of range"),
    ],
)
def test_a_number_out_of_range_is_named_with_the_remedy(arguments, message):
    with pytest.raises(ValueError, match=message):
        parse(arguments)


def test_minibatches_divide_ppos_batch_and_the_nearest_counts_that_do_are_named():
    with pytest.raises(ValueError, match=r"num_minibatches 5 .* 4 × 16 = 64 transitions; use --num-minibatches 4 or 8"):
        parse(["--algo=ppo", "--num-envs=4", "--num-steps=16", "--num-minibatches=5"])


def test_minibatches_of_a_fixed_size_grow_in_number_with_the_batch():
    shape = ["--algo=ppo", "--num-steps=16", "--minibatch-size=32"]
    few, many = parse([*shape, "--num-envs=4"]), parse([*shape, "--num-envs=16"])
    assert (few.num_minibatches, many.num_minibatches) == (2, 8)
    assert resolved(few) == few  # as a resumed run is resolved again
    with pytest.raises(ValueError, match=r"minibatch_size 24 .* 4 × 16 = 64 .*; use --minibatch-size 16 or 32"):
        parse(["--algo=ppo", "--num-envs=4", "--num-steps=16", "--minibatch-size=24"])
    with pytest.raises(ValueError, match=r"minibatch_size 128 .* = 64 transitions; use --minibatch-size 64"):
        parse(["--algo=ppo", "--num-envs=4", "--num-steps=16", "--minibatch-size=128"])
    # a run's configuration, or a preset, holds a number of minibatches as well: the size wins
    assert resolved(replace(few, num_envs=16)).num_minibatches == 8
    preset = parse(["--preset=sb3-ppo", "--env=CartPole-v1", "--num-envs=4", "--num-steps=16", "--minibatch-size=32"])
    assert preset.num_minibatches == 2
    with pytest.raises(ValueError, match="minibatch_size"):
        parse(["--algo=a2c", "--minibatch-size=32"])
    with pytest.raises(ValueError, match=r"minibatch_size 1 is a single transition.*; use --minibatch-size 2"):
        parse([*shape[:2], "--num-envs=4", "--minibatch-size=1"])


def test_a_typed_number_of_minibatches_replaces_the_size_of_a_file_and_contradicts_a_typed_size(tmp_path):
    file = tmp_path / "options.yaml"
    file.write_text("algo: ppo\nnum_envs: 4\nnum_steps: 16\nminibatch_size: 32\n")
    assert parse([f"--config={file}"]).num_minibatches == 2
    typed = parse([f"--config={file}", "--num_minibatches", "4"])
    assert (typed.num_minibatches, typed.minibatch_size) == (4, None)
    assert parse([f"--config={file}", "--num-minibatches=4", "--minibatch-size", "16"]).num_minibatches == 4
    with pytest.raises(ValueError, match=r"num_minibatches 2 contradicts minibatch_size 16, which makes 4 of 64"):
        parse([f"--config={file}", "--num_minibatches=2", "--minibatch-size", "16"])


# YAML


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path):
    path = yaml_file(tmp_path, "algo: ppo\nnum-envs: 4\nlearning_rate: 1e-3\nwandb_tags: [a, b]\nout: there\n")
    config = parse(["--config", path, "--num-envs", "16"])
    assert (config.algo, config.num_envs, config.learning_rate) == ("ppo", 16, 1e-3)
    assert (config.wandb_tags, config.out) == (("a", "b"), Path("there"))
    assert config.num_steps == 128
    assert parse([f"--config={path}"]).num_envs == 4


def test_an_empty_file_says_nothing(tmp_path):
    assert parse(["--config", yaml_file(tmp_path, "# nothing\n")]) == parse([])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("num_enves: 8", "unknown option 'num_enves' in .*run.yaml; did you mean num_envs?"),
        ("qqq: 8", "unknown option 'qqq' in .*; --help lists the options"),
        ("num_envs: many", "num_envs 'many' in .*run.yaml is not an integer; give --num-envs from 1 to 16,384"),
        ("num_envs: 1.5", "num_envs 1.5 in .* is not an integer"),
        ("algo: dqn", "algo 'dqn' in .* is not one of a2c, ppo"),
        ("game: [pong]", "game \\['pong'\\] in .* is not text"),
        ("- 1\n- 2", "holds a list; expected options by name, 'num_envs: 16'"),
        ("a: [", "is not YAML"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_one_line(text, message, tmp_path):
    with pytest.raises(ValueError, match=message) as error:
        parse(["--config", yaml_file(tmp_path, text)])
    assert "\n" not in str(error.value)


def test_a_file_that_is_missing_or_not_named_is_said(tmp_path):
    with pytest.raises(ValueError, match=r"--config .*none.yaml cannot be read: No such file"):
        parse(["--config", str(tmp_path / "none.yaml")])
    with pytest.raises(ValueError, match=r"--config needs a value, as in --config run.yaml"):
        parse(["--config"])


def test_a_configuration_survives_json_and_back():
    config = resolved(TrainConfig(algo="ppo", out=Path("x"), wandb_tags=("a", "b")))
    assert resolved(from_mapping(TrainConfig, as_mapping(config), "memory")) == config


# Resuming


@pytest.fixture
def saved_run(tmp_path) -> Path:
    config = resolved(TrainConfig(env="CartPole-v1", num_envs=4, gamma=0.9, wandb="disabled", total_transitions=500))
    write_json(tmp_path / "config.json", {"options": as_mapping(replace(config, out=tmp_path))})
    return tmp_path


def test_a_resumed_run_has_the_options_of_the_run(saved_run):
    config = parse(["--resume", str(saved_run)])
    assert (config.env, config.num_envs, config.gamma, config.wandb) == ("CartPole-v1", 4, 0.9, "disabled")
    assert (config.resume, config.out) == (saved_run, None)


def test_where_and_how_long_a_resumed_run_runs_may_be_changed_also_to_what_is_the_default(saved_run):
    config = parse(["--resume", str(saved_run), "--total-transitions", "300000", "--wandb=online"])
    assert (config.total_transitions, config.wandb) == (TrainConfig().total_transitions, "online")
    assert {"device", "num_torch_threads", "checkpoint_seconds", "wandb_tags"} <= CHANGEABLE_ON_RESUME


def test_the_whole_command_line_of_the_run_may_be_repeated(saved_run):
    again = ["--env", "CartPole-v1", "--num-envs", "4", "--gamma", "0.9", "--num-steps", "5"]
    assert parse(["--resume", str(saved_run), *again]) == parse(["--resume", str(saved_run)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-envs", "8"], r"num_envs 8 cannot be changed .* \(it has 4\); leave out --num-envs or start a new run"),
        (["--gamma", "0.99"], r"gamma 0.99 cannot be changed .* \(it has 0.9\)"),  # 0.99 is the default
        (["--algo", "ppo"], "algo ppo cannot be changed"),
        (["--no-measure"], "measure False cannot be changed"),
    ],
)
def test_what_a_resumed_run_is_cannot_be_changed(arguments, message, saved_run):
    with pytest.raises(ValueError, match=message):
        parse(["--resume", str(saved_run), *arguments])


def test_a_file_cannot_change_what_a_resumed_run_is_either(saved_run, tmp_path):
    path = yaml_file(tmp_path, "num_envs: 8")
    with pytest.raises(ValueError, match="num_envs 8 cannot be changed"):
        parse(["--resume", str(saved_run), "--config", path])
    assert parse(["--resume", str(saved_run), "--config", yaml_file(tmp_path, "device: cpu")]).device == "cpu"


def test_resuming_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no run to resume"):
        parse(["--resume", str(tmp_path)])
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json is damaged; name another run directory"):
        parse(["--resume", str(tmp_path)])


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--nenvs", "4"], r"unknown flag --nenvs; did you mean --num-envs\?$"),
        (["--learning-rate", "abc"], r"learning_rate 'abc' is not a number; give --learning-rate above 0, up to"),
        (["--algo", "dqn"], r"algo 'dqn' is not one of a2c, ppo; give another --algo$"),
        (["--num-envs"], r"--num-envs needs a value, as in --num-envs VALUE; --help lists the options$"),
        (["--num-envs", "3.5"], r"num_envs '3.5' is not an integer; give --num-envs from 1"),
        (["breakout"], r"'breakout' belongs to no flag; --help lists the options$"),
    ],
)
@pytest.mark.parametrize("columns", ["60", "80", "200"])
def test_what_the_flags_parser_refuses_is_one_line(arguments, complaint, columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    with pytest.raises(ValueError, match=complaint) as caught:
        parse(arguments)
    assert "\n" not in str(caught.value)
    assert not set("│─╭") & set(str(caught.value))


@pytest.mark.parametrize("task", ["digits", "self_play"])
def test_a_run_of_another_task_is_met_with_the_command_that_made_it(task, tmp_path, capsys):
    short = {"digits": ["--max-steps", "2"], "self_play": ["--num-envs", "4", "--total-transitions", "64"]}[task]
    assert main(["train", task, *short, "--wandb", "disabled", "--out", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    assert main(["train", "atari", "--resume", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    name = {"digits": "digits", "self_play": "recurrent PPO on two-player Pong"}[task]
    assert f"run holds a run of {name}, which this command cannot continue" in line
    assert "use the command that made it" in line


def test_a_misspelt_option_of_a_saved_run_is_still_met_with_the_nearest(saved_run):
    content = json.loads((saved_run / "config.json").read_text())
    content["options"]["num_enves"] = content["options"].pop("num_envs")
    (saved_run / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"unknown option 'num_enves' in .*; did you mean num_envs"):
        parse(["--resume", str(saved_run)])
