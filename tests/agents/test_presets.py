"""Presets of published hyperparameters, value by value, and that they train."""

import inspect
import json
import re

import pytest
import stable_baselines3
import torch
from stable_baselines3.common.atari_wrappers import AtariWrapper

from rlgns.agents.config import TrainConfig
from rlgns.agents.options import parse
from rlgns.agents.presets import preset_names, preset_options, read_preset
from rlgns.commands.cli import main
from rlgns.runs.flags import help_texts
from rlgns.runs.options import as_mapping

ATARI = {
    "stack_num": 4, "frameskip": 4, "noop_max": 30, "episodic_life": True, "reward_clipping": True,
    "use_fire_reset": True, "repeat_action_probability": 0.0,
}  # fmt: skip

EXPECTED = {
    "zoo-ppo": ATARI | {
        "algo": "ppo", "num_envs": 8, "num_steps": 128, "num_epochs": 4, "num_minibatches": 1024 // 256,
        "total_transitions": 10**7, "learning_rate": 2.5e-4, "anneal_learning_rate": True, "clip_coef": 0.1,
        "anneal_clip_coef": True, "vf_coef": 0.5, "ent_coef": 0.01, "gamma": 0.99, "gae_lambda": 0.95,
        "max_grad_norm": 0.5, "normalize_advantage": True, "optimizer_eps": 1e-5,
    },
    "zoo-a2c": ATARI | {
        "algo": "a2c", "num_envs": 16, "total_transitions": 10**7, "ent_coef": 0.01, "vf_coef": 0.25,
        "optimizer_eps": 1e-5, "num_steps": 5, "learning_rate": 7e-4, "anneal_learning_rate": False, "gamma": 0.99,
        "gae_lambda": 1.0, "max_grad_norm": 0.5, "normalize_advantage": False, "rmsprop_alpha": 0.99,
    },
    "cleanrl-ppo": ATARI | {
        "algo": "ppo", "num_envs": 8, "num_steps": 128, "num_epochs": 4, "num_minibatches": 4,
        "total_transitions": 10**7, "learning_rate": 2.5e-4, "anneal_learning_rate": True, "clip_coef": 0.1,
        "anneal_clip_coef": False, "vf_coef": 0.5 / 2, "ent_coef": 0.01, "gamma": 0.99, "gae_lambda": 0.95,
        "max_grad_norm": 0.5, "normalize_advantage": True, "optimizer_eps": 1e-5,
    },
}  # fmt: skip
"""From hyperparams/ppo.yml, hyperparams/a2c.yml and cleanrl/ppo_atari.py at the commits that the presets name."""

SB3 = {
    "num_steps": "n_steps", "num_epochs": "n_epochs", "learning_rate": "learning_rate", "clip_coef": "clip_range",
    "vf_coef": "vf_coef", "ent_coef": "ent_coef", "gamma": "gamma", "gae_lambda": "gae_lambda",
    "max_grad_norm": "max_grad_norm", "normalize_advantage": "normalize_advantage",
}  # fmt: skip


def defaults_of(function):
    return {name: argument.default for name, argument in inspect.signature(function).parameters.items()}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_preset_has_the_values_of_its_source_and_no_others(name):
    assert preset_options(name) == EXPECTED[name]


@pytest.mark.parametrize(("name", "kind"), [("sb3-ppo", stable_baselines3.PPO), ("sb3-a2c", stable_baselines3.A2C)])
def test_the_presets_of_stable_baselines3_are_the_defaults_of_the_library_itself(name, kind):
    options, theirs = dict(preset_options(name)), defaults_of(kind.__init__)
    assert options.pop("algo") == kind.__name__.lower()
    assert options.pop("anneal_learning_rate") is False  # a number is a constant
    num_envs = options.pop("num_envs")
    for ours, name_there in SB3.items():
        if ours in options or (name_there in theirs and ours not in ("num_epochs", "clip_coef")):
            assert options.pop(ours) == theirs[name_there], ours
    model = kind("MlpPolicy", "CartPole-v1", device="cpu")
    optimiser = model.policy.optimizer.param_groups[0]
    assert options.pop("optimizer_eps") == optimiser["eps"]
    if name == "sb3-ppo":
        assert options.pop("anneal_clip_coef") is False
        assert num_envs * theirs["n_steps"] // options.pop("num_minibatches") == theirs["batch_size"]
    else:
        assert isinstance(model.policy.optimizer, torch.optim.RMSprop)
        assert options.pop("rmsprop_alpha") == optimiser["alpha"]
    assert not options


def test_the_atari_options_are_those_of_stable_baselines3_s_wrapper():
    wrapper = defaults_of(AtariWrapper.__init__)
    names = {
        "frameskip": "frame_skip", "noop_max": "noop_max", "episodic_life": "terminal_on_life_loss",
        "reward_clipping": "clip_reward", "repeat_action_probability": "action_repeat_probability",
    }  # fmt: skip
    assert {ours: wrapper[theirs] for ours, theirs in names.items()} == {name: ATARI[name] for name in names}


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_names_its_source_and_stands_in_the_help_and_parses(name):
    preset = read_preset(name)
    assert re.fullmatch(r"https://github\.com/\S+/blob/(\w{40}|v[\d.]+)/\S+\.(yml|py)", preset["source"])
    assert name in help_texts(TrainConfig)["preset"]
    config = parse(["--preset", name])
    assert {option: getattr(config, option) for option in preset["options"]} == preset["options"]


def test_what_is_typed_or_stands_in_a_file_wins_over_the_preset(tmp_path):
    path = tmp_path / "options.yaml"
    path.write_text("preset: zoo-ppo\nnum_envs: 16\ngamma: 0.9\n")
    config = parse([f"--config={path}", "--gamma", "0.95", "--preset", "cleanrl-ppo"])
    assert (config.preset, config.num_envs, config.gamma, config.vf_coef) == ("cleanrl-ppo", 16, 0.95, 0.25)


def test_an_unknown_preset_lists_those_that_exist_and_another_algorithm_is_refused(capsys):
    for command in (["train", "atari"], ["bench", "atari"]):
        assert main([*command, "--preset", "zoo-pp"]) == 2
        line = capsys.readouterr().err
        assert line == (
            "error: unknown preset 'zoo-pp'; did you mean zoo-ppo? There are: cleanrl-ppo, sb3-a2c, sb3-ppo, zoo-a2c, "
            "zoo-ppo\n"
        )
        assert main([*command, "--preset", "zoo-ppo", "--algo", "a2c"]) == 2
        assert "preset zoo-ppo is for ppo, not a2c; leave out --algo" in capsys.readouterr().err


SHORTER = {
    "sb3-ppo": {"num_steps": 64, "num_minibatches": 8}, "zoo-ppo": {"num_steps": 8}, "cleanrl-ppo": {"num_steps": 8},
}  # fmt: skip
"""Options without which three updates would take minutes."""


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_trains_a_few_updates_and_its_run_can_be_repeated(name, tmp_path):
    options = {**preset_options(name), **SHORTER.get(name, {})}
    typed = {
        "total_transitions": 3 * options["num_envs"] * options["num_steps"], "wandb": "disabled",
        "num_torch_threads": 1, "out": tmp_path / "run", **SHORTER.get(name, {}),
    }  # fmt: skip
    if name.startswith("sb3"):
        typed["env"] = "CartPole-v1"
    flags = [f"--{option.replace('_', '-')}={value}" for option, value in typed.items()]
    assert main(["train", "atari", "--preset", name, *flags]) == 0
    assert json.loads((tmp_path / "run/summary.json").read_text())["progress/steps"] == 3
    saved = json.loads((tmp_path / "run/config.json").read_text())["options"]
    assert saved["preset"] == name
    again = as_mapping(parse([f"--config={tmp_path / 'run'}"]))
    assert again == {**saved, "out": None}
