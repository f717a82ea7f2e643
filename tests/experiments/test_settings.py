"""Configs are data: every file composes, and none may choose what code runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

from perpgym.data.load import DataConfig
from perpgym.envs.config import EnvConfig
from perpgym.experiments.settings import _SECTIONS, Settings, build
from perpgym.policies.config import PolicyConfig
from perpgym.policies.market_encoder import ENCODERS

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
EXPERIMENTS = sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml"))
# composition sets these from the policy and the reward
_COMPOSED = {"window_bars"} | {
    field.name for field in dataclasses.fields(EnvConfig) if field.name.startswith("reward")
}
REWARDS = sorted(path.stem for path in (CONFIGS / "reward").glob("*.yaml") if path.stem != "shared")


def composed(*overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = OmegaConf.to_container(compose("config", overrides=list(overrides)), resolve=True)
    assert isinstance(config, dict)
    return {str(k): v for k, v in config.items() if k not in ("run_dir", "overwrite", "resume")}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes(experiment: str) -> None:
    assert Settings.from_mapping(composed(f"+experiment={experiment}")).name == experiment


@pytest.mark.parametrize(
    ("override", "section", "name", "value"),
    [
        ("agent.observation=window", "agent", "observation", "window"),
        ("agent.popart=true", "agent", "popart", True),
        ("agent.learning_rate_schedule=cosine", "agent", "learning_rate_schedule", "cosine"),
        ("env.action=target", "env", "action", "target"),
        ("policy.state_clip=3.0", "policy", "state_clip", 3.0),
        ("features.clip=3.0", "features", "clip", 3.0),
    ],
)
def test_an_ablation_is_one_setting_away(override: str, section: str, name: str, value: object) -> None:
    plain, ablated = Settings.from_mapping(composed()), Settings.from_mapping(composed(override))
    changed = dataclasses.replace(getattr(plain, section), **{name: value})
    assert getattr(ablated, section) == changed != getattr(plain, section)
    assert dataclasses.replace(ablated, **{section: getattr(plain, section)}) == plain


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("env.taker_rate=4", "taker_rate must lie between"),
        ("agent.gamma=1.5", "gamma must lie between"),
        ("seeds=[0,0]", "seeds must be distinct"),
        ("split.valid_end=2023-06-30", "valid_end must come after"),
    ],
)
def test_an_impossible_value_is_refused_in_words(override: str, words: str) -> None:
    raw = composed(override)
    with pytest.raises(ValueError, match=words):
        Settings.from_mapping(raw)


@pytest.mark.parametrize("data", ["auto", "simulated", "store", "download"])
def test_every_data_source_without_a_path_composes(data: str) -> None:
    assert Settings.from_mapping(composed(f"data={data}")).data.source == data


@pytest.mark.parametrize("data", ["freqtrade", "binance_vision", "table"])
def test_every_data_source_with_a_path_composes(data: str) -> None:
    assert Settings.from_mapping(composed(f"data={data}", "data.path=/somewhere")).data.path == "/somewhere"


def test_a_data_source_may_be_spelt_with_a_hyphen() -> None:
    for override in ("data=binance-vision", "data.source=binance-vision"):
        assert composed(override, "data.path=/x")["data"].keys() == composed()["data"].keys()
        config = Settings.from_mapping(composed(override, "data.path=/x"))
        assert config.data.source == "binance_vision"


def test_the_institutional_account_differs_in_two_settings() -> None:
    plain = Settings.from_mapping(composed()).env
    desk = Settings.from_mapping(composed("env=institutional")).env
    assert desk == dataclasses.replace(plain, funding_multiplier=0.8, risk_free_rate=0.03)
    assert (plain.funding_multiplier, plain.risk_free_rate) == (1.0, 0.0)


def test_the_issue_s_defaults_stand_in_the_config() -> None:
    env = Settings.from_mapping(composed()).env
    assert (env.initial_wallet, env.leverage, env.taker_rate, env.max_drawdown) == (1e6, 20.0, 0.0004, 0.3)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_encoder_is_one_word_away_and_sees_63_bars(encoder: str) -> None:
    policy = Settings.from_mapping(composed(f"policy={encoder}")).policy
    assert policy.encoder == encoder
    assert policy.receptive_field == 63
    default = Settings.from_mapping(composed()).policy
    assert (policy.d_model, policy.risk_hidden) == (default.d_model, default.risk_hidden)


def test_a_policy_offers_the_settings_that_its_encoder_reads_and_no_others() -> None:
    offered = {encoder: set(composed(f"policy={encoder}")["policy"]) - {"_target_"} for encoder in ENCODERS}
    assert set().union(*offered.values()) == {f.name for f in dataclasses.fields(PolicyConfig)}
    with pytest.raises(ConfigCompositionException, match=r"policy\.band"):
        composed("policy=tcn", "policy.band=8")


@pytest.mark.parametrize("section", sorted(set(_SECTIONS) - {"split", "policy"}))
def test_every_setting_of_a_component_can_be_overridden_by_name(section: str) -> None:
    config = composed()[section]
    fields = {f.name for f in dataclasses.fields(_SECTIONS[section])}
    assert set(config) - {"_target_"} == fields - (_COMPOSED if section == "env" else set())


@pytest.mark.parametrize("reward", REWARDS)
def test_every_reward_is_one_word_away_with_every_setting_of_its_class(reward: str) -> None:
    section = composed(f"reward={reward}")["reward"]
    built = build(section, _SECTIONS["reward"], "reward")
    assert set(section) - {"_target_"} == {f.name for f in dataclasses.fields(built)}


def test_a_misspelt_key_names_the_nearest_setting() -> None:
    with pytest.raises(ValueError, match="did you mean leverage"):
        build({"levrage": 3}, EnvConfig, "env")


def test_a_config_cannot_choose_foreign_code() -> None:
    with pytest.raises(ValueError, match="class of perpgym"):
        build({"_target_": "os.system", "command": "true"}, EnvConfig, "env")
    with pytest.raises(ValueError, match="not a settings class"):
        build({"_target_": "perpgym.data.load.load_bars"}, DataConfig, "data")

    with pytest.raises(ValueError, match="does not exist"):
        build({"_target_": "perpgym.nowhere.Thing"}, EnvConfig, "env")
    with pytest.raises(ValueError, match="no EnvConfig"):
        build({"_target_": "perpgym.agents.ppo.PPOConfig"}, EnvConfig, "env")


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("training", "total_steps", 1.5),
        ("training", "total_steps", True),
        ("training", "threads", None),
        ("training", "device", "gpu3"),
        ("split", "embargo_bars", 1.5),
        ("split", "train_end", 2023),
        ("env", "leverage", "lots"),
        ("env", "stop_loss", "tight"),
        ("agent", "learning_rate", [0.1]),
        ("agent", "popart", "yes"),
        ("features", "market", "log_return_1"),
        ("features", "market", [1]),
        ("features", "clip", -1.0),
        ("policy", "policy_hidden", 64),
        ("data", "simulated", [1]),
        ("evaluation", "random_draws", -1),
        ("evaluation", "bootstrap_draws", 0),
        ("evaluation", "seed", -1),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_by_name(section: str, name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{section}: .*{name}"):
        build({name: value}, _SECTIONS[section], section)


def test_a_whole_number_serves_where_a_fraction_may_stand() -> None:
    assert build({"leverage": 3}, EnvConfig, "env").leverage == 3


@pytest.mark.parametrize("seeds", [3, [], ["a"], [1.5], [-1], [True], [0, 0], [2**32]])
def test_seeds_are_distinct_whole_numbers(seeds: object) -> None:
    with pytest.raises(ValueError, match="seeds"):
        Settings.from_mapping({**composed(), "seeds": seeds})


def test_a_run_has_a_name() -> None:
    with pytest.raises(ValueError, match="name"):
        Settings.from_mapping({**composed(), "name": ""})


def test_an_experiment_file_opens_with_the_command_that_runs_it() -> None:
    for experiment in EXPERIMENTS:
        text = (CONFIGS / "experiment" / f"{experiment}.yaml").read_text()
        assert f"# python train.py +experiment={experiment}" in text
        assert yaml.safe_load(text)["name"] == experiment
