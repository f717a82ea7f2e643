"""A policy on disk is all that an evaluation needs, and nothing that does not fit it is accepted."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from perpgym.agents.artifact import (
    META_FILE,
    WEIGHTS_FILE,
    Artifact,
    _digest,
    load_artifact,
    save_artifact,
)
from perpgym.agents.checkpoint import DamagedFileError
from perpgym.agents.protocol import Agent
from perpgym.agents.trained import TrainedAgent
from perpgym.data.features.scaler import fit_scaler
from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig, PerpVecEnv, RiskLimits
from perpgym.envs.spaces import ACCOUNT_NAMES, PORTFOLIO_NAMES
from perpgym.policies import PerpActorCriticPolicy, PolicyConfig
from perpgym.policies.encoders import Encoder

SMALL = PolicyConfig(d_model=8, n_layers=2, n_heads=2, band=6, risk_hidden=4, risk_chunk=4, risk_warmup=4)
REACH = SMALL.receptive_field
ENV = EnvConfig(window_bars=REACH, max_exposure=1.5)


@pytest.fixture(scope="module")
def tape(make_tape: Callable[..., Tape]) -> Tape:
    return make_tape(bars=300)


@pytest.fixture(scope="module")
def policy(tape: Tape) -> PerpActorCriticPolicy:
    env = PerpVecEnv(tape, n_paths=2, config=ENV)
    torch.manual_seed(0)
    policy = PerpActorCriticPolicy(
        env.single_observation_space,
        env.single_action_space,
        lambda _: 1e-3,
        config=SMALL,
        market_scaler=fit_scaler(tape.features, 0, 200),
        risk_scaler=fit_scaler(tape.risk, 0, 200),
    )
    torch.nn.init.normal_(policy.action_net.weight)
    return policy


@pytest.fixture
def folder(policy: PerpActorCriticPolicy, tape: Tape, tmp_path: Path) -> Path:
    save_artifact(
        tmp_path / "run",
        policy,
        tape=tape,
        env_config=ENV,
        limits=RiskLimits(max_notional=1e6),
        seed=7,
        commit="abc",
        extra={"experiment": "ppo_btc"},
    )
    return tmp_path / "run"


def observations(tape: Tape, *, with_windows: bool) -> dict[str, Any]:
    env = PerpVecEnv(tape, n_paths=2, config=ENV, with_windows=with_windows)
    env.reset(seed=4)
    observation, *_ = env.step(np.full((2, 2), 0.5, np.float32))
    return observation


def test_loaded_policy_acts_like_the_saved_one_on_either_face(
    folder: Path, policy: PerpActorCriticPolicy, tape: Tape
) -> None:
    artifact = load_artifact(folder)
    policy.bind(tape)
    artifact.policy.bind(tape)
    expected, _ = policy.predict(observations(tape, with_windows=False), deterministic=True)
    for with_windows in (False, True):
        action, _ = artifact.policy.predict(observations(tape, with_windows=with_windows), deterministic=True)
        np.testing.assert_allclose(action, expected, atol=1e-6)


def test_artifact_carries_what_evaluation_and_live_need(folder: Path, tape: Tape) -> None:
    artifact = load_artifact(folder)
    assert isinstance(artifact, Artifact)
    assert artifact.feature_names == tape.feature_names
    assert artifact.contracts == tape.contracts
    assert artifact.env_config == ENV
    assert artifact.limits == RiskLimits(max_notional=1e6)
    assert artifact.policy.config == SMALL
    assert artifact.data_hash == tape.data_hash
    assert (artifact.seed, artifact.commit, artifact.extra) == (7, "abc", {"experiment": "ppo_btc"})
    assert {"perpgym", "python", "torch"} <= artifact.versions.keys()
    assert 0 <= artifact.parity_error < 1e-5
    artifact.check_tape(tape)


def test_policy_whose_windows_and_stretches_agree_is_admitted_to_live(folder: Path, tape: Tape) -> None:
    artifact = load_artifact(folder)
    assert artifact.check_parity() == artifact.parity_error
    assert artifact.check_parity(tape) < 1e-5


@pytest.mark.parametrize("error", [0.0011, float("inf"), float("nan")])
def test_policy_that_answers_windows_differently_is_refused_for_live(folder: Path, error: float) -> None:
    rewrite(folder, parity_error=error)
    with pytest.raises(ValueError, match=r"apart \(when it was saved\), at most 0.001 is allowed"):
        load_artifact(folder).check_parity()


class CentredOverBars(torch.nn.Module):
    """A broken encoder: it takes a statistic over the bars that it happens to be shown."""

    def __init__(self, causal: Encoder) -> None:
        super().__init__()
        self.causal = causal
        self.receptive_field = causal.receptive_field

    def encode(self, stretch: torch.Tensor, first_bar: torch.Tensor) -> torch.Tensor:
        embedding = self.causal.encode(stretch, first_bar)
        return embedding - embedding.mean(1, keepdim=True)


def test_encoder_that_looks_at_its_batch_is_caught_on_the_machine_that_measures_it(
    folder: Path, tape: Tape
) -> None:
    artifact = load_artifact(folder)
    features = artifact.policy.features_extractor
    features.market_encoder = CentredOverBars(features.market_encoder)  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"apart \(on this machine\), at most 0.001 is allowed"):
        artifact.check_parity(tape)


def test_tape_that_does_not_fit_is_refused_by_name(folder: Path, tape: Tape) -> None:
    artifact = load_artifact(folder)
    renamed = replace(tape, feature_names=("feature_0", "feature_1", "feature_2", "rsi_14"))
    with pytest.raises(ValueError, match=r"features differ: missing \['feature_3'\], unknown \['rsi_14'\]"):
        artifact.check_tape(renamed)
    with pytest.raises(ValueError, match="risk columns differ: order"):
        artifact.check_tape(replace(tape, risk_names=tape.risk_names[::-1]))
    other = replace(tape, contracts=(replace(tape.contracts[0], taker_rate=0.001),))
    with pytest.raises(ValueError, match=r"contract taker_rate: trained on 0\.0004, was 0\.001"):
        artifact.check_tape(other)
    minutes = tape.open_time_ms[0] + 60_000 * np.arange(len(tape))
    stampless = {
        "stamp_start": np.zeros_like(tape.stamp_start),
        "stamp_time_ms": tape.stamp_time_ms[:0],
        "stamp_rate": tape.stamp_rate[:0],
    }
    with pytest.raises(ValueError, match="bar_ms"):
        artifact.check_tape(replace(tape, bar_ms=60_000, open_time_ms=minutes, **stampless))


@pytest.mark.parametrize("name", [META_FILE, WEIGHTS_FILE])
@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_damaged_artifact_is_refused(folder: Path, name: str, damage: str) -> None:
    content = bytearray((folder / name).read_bytes())
    if damage == "truncated":
        content = content[:-20]
    else:
        # a digit of the json, a bit of the weights
        place = content.index(b'"seed": 7') + 8 if name == META_FILE else len(content) - 9
        content[place] ^= 1
    (folder / name).write_bytes(bytes(content))
    with pytest.raises(DamagedFileError, match="copy the folder again"):
        load_artifact(folder)


def test_missing_artifact_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no artifact\.json"):
        load_artifact(tmp_path)


def rewrite(folder: Path, **changes: Any) -> None:
    """Change fields and sign again, as another version of perpgym would have written them."""
    body = json.loads((folder / META_FILE).read_text())
    del body["sha256"]
    body.update(changes)
    (folder / META_FILE).write_text(json.dumps({"sha256": _digest(body), **body}))


def test_artifact_of_another_format_is_refused(folder: Path) -> None:
    rewrite(folder, format=99)
    with pytest.raises(ValueError, match="has format 99, this perpgym reads 1"):
        load_artifact(folder)


@pytest.mark.parametrize("content", ["[1]", "1", "null", "[" * 100_000 + "]" * 100_000, "\x00", "{}"])
def test_what_is_no_artifact_at_all_is_refused(folder: Path, content: str) -> None:
    (folder / META_FILE).write_text(content)
    with pytest.raises(DamagedFileError, match="truncated or no artifact: copy the folder again"):
        load_artifact(folder)


@pytest.mark.parametrize("kind", ["clairvoyant", []])
def test_a_kind_of_policy_of_another_version_says_which_version_to_use(folder: Path, kind: object) -> None:
    rewrite(folder, policy_kind=kind, versions={"perpgym": "9.1"})
    with pytest.raises(ValueError, match=r"does not know.*actor_critic.*evaluate with perpgym 9\.1"):
        load_artifact(folder)


@pytest.mark.parametrize("name", ["parity_error", "market_scaler", "weights_sha256", "contracts", "extra"])
def test_an_artifact_without_a_field_is_refused_by_name(folder: Path, name: str) -> None:
    rewrite(folder, **{name: None})
    with pytest.raises(ValueError, match=rf"{name} must be .*, was None.*evaluate with perpgym 0"):
        load_artifact(folder)
    body = json.loads((folder / META_FILE).read_text())
    del body["sha256"], body[name]
    (folder / META_FILE).write_text(json.dumps({"sha256": _digest(body), **body}))
    with pytest.raises(ValueError, match=f"{name} must be .*, was missing"):
        load_artifact(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"contracts": []}, "contracts must be a list of one or more, was empty"),
        ({"contracts": [{"symbol": 1, "evil": 2}]}, "whose settings this one does not know"),
        ({"contracts": ["BTC"]}, "whose settings this one does not know"),
        ({"feature_names": []}, "feature_names must be a list of one or more"),
        (
            {"market_scaler": {"center": "x"}},
            "settings this one does not know.*a scaler has the fields",
        ),
        ({"policy_config": {"layers": 3}}, "whose settings this one does not know"),
        ({"policy_settings": {"evil": 1}}, "whose settings this one does not know"),
        ({"policy_settings": {"optimizer_kwargs": {"lr": "x"}}}, "whose settings this one does not know"),
        ({"versions": None}, "versions must be a mapping, was None.*evaluate with perpgym of that time"),
        ({"format": 2, "versions": None}, "has format 2.*evaluate with perpgym of that time"),
        ({"bar_ms": "1h"}, "bar_ms must be a whole number, was '1h'"),
        ({"parity_error": "x"}, "parity_error must be a number, was 'x'"),
        ({"parity_error": float("-inf")}, "parity_error must not be negative, was -inf"),
    ],
)
def test_an_artifact_whose_fields_make_no_sense_is_refused_in_words(
    folder: Path, changes: dict[str, Any], message: str
) -> None:
    rewrite(folder, **changes)
    with pytest.raises(ValueError, match=message):
        load_artifact(folder)


def test_a_network_that_is_too_large_to_be_the_weights_is_refused(folder: Path) -> None:
    body = json.loads((folder / META_FILE).read_text())
    # some petabytes
    rewrite(folder, policy_config={**body["policy_config"], "value_hidden": [10**8, 10**8]})
    with pytest.raises(DamagedFileError, match="does not fit its policy_config"):
        load_artifact(folder)


def test_an_error_below_none_admits_nothing_to_live(folder: Path) -> None:
    artifact = replace(load_artifact(folder), parity_error=float("-inf"))
    with pytest.raises(ValueError, match=r"at most 0\.001 is allowed"):
        artifact.check_parity()


def test_artifact_with_other_account_columns_is_refused(folder: Path) -> None:
    rewrite(folder, account_columns=["exposure"])
    with pytest.raises(ValueError, match="account_columns differ"):
        load_artifact(folder)


def test_setting_that_this_version_does_not_know_is_refused(folder: Path) -> None:
    rewrite(folder, policy_config={**SMALL.to_json(), "n_experts": 8})
    with pytest.raises(ValueError, match="n_experts"):
        load_artifact(folder)


def test_trained_agent_decides_like_predict_in_chunks_of_any_length(
    policy: PerpActorCriticPolicy, tape: Tape
) -> None:
    observation = observations(tape, with_windows=False)
    policy.bind(tape)
    expected, _ = policy.predict(observation, deterministic=True)
    for chunk_bars in (1, 7, 1_024):
        agent: Agent = TrainedAgent(policy, chunk_bars=chunk_bars)
        for row, bar in enumerate(observation["bar"][:, 0]):
            for visited in (max(int(bar) - 3, REACH - 1), int(bar)):
                action = agent.act(tape, visited, observation["account"], observation["portfolio"])
            np.testing.assert_allclose(action[row], expected[row], atol=1e-6)


def test_trained_agent_follows_weights_that_move_and_leaves_the_policys_tape_alone(
    policy: PerpActorCriticPolicy, tape: Tape, make_tape: Callable[..., Tape]
) -> None:
    policy.bind(tape)
    agent, account, portfolio = (
        TrainedAgent(policy),
        np.zeros((1, 1, len(ACCOUNT_NAMES)), np.float32),
        np.zeros((1, len(PORTFOLIO_NAMES)), np.float32),
    )
    before = agent.act(tape, 100, account, portfolio)
    with torch.no_grad():
        policy.features_extractor.market_encoder.embed.weight.mul_(-1.0)
    moved = agent.act(tape, 100, account, portfolio)
    assert np.abs(moved - before).max() > 1e-3
    agent.act(make_tape(bars=300, seed=9), 100, account, portfolio)
    assert policy.features_extractor.bound.tape is tape
    with torch.no_grad():
        policy.features_extractor.market_encoder.embed.weight.mul_(-1.0)


def test_trained_agent_refuses_bars_without_a_whole_receptive_field_and_tapes_that_do_not_fit(
    folder: Path, tape: Tape
) -> None:
    agent = TrainedAgent(load_artifact(folder))
    account, portfolio = (
        np.zeros((1, 1, len(ACCOUNT_NAMES)), np.float32),
        np.zeros((1, len(PORTFOLIO_NAMES)), np.float32),
    )
    with pytest.raises(ValueError, match=f"can decide at bars {REACH - 1} to 299"):
        agent.act(tape, REACH - 2, account, portfolio)
    with pytest.raises(ValueError, match="features differ"):
        agent.act(replace(tape, feature_names=("a", "b", "c", "d")), 100, account, portfolio)
