"""A mistyped command line is answered with what was probably meant, never with advice to add the mistake."""

from __future__ import annotations

import pytest
from hydra import compose, initialize_config_module
from hydra.errors import HydraException

from perpgym.experiments.command_line import in_words
from perpgym.experiments.settings import did_you_mean


def refusal(*overrides: str, config_name: str = "config") -> str:
    """What a person reads for overrides that Hydra refuses."""
    with (
        initialize_config_module("perpgym.configs", version_base="1.3"),
        pytest.raises(HydraException) as error,
    ):
        compose(config_name, overrides=list(overrides))
    return in_words(error.value, config_name, list(overrides))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("agent.learning_rat=1", "no setting 'agent.learning_rat' (did you mean agent.learning_rate?)"),
        # the right name in no section, or in a misspelt one
        ("learning_rate=1", "did you mean agent.learning_rate?"),
        ("agnet.learning_rate=1", "did you mean agent.learning_rate?"),
        ("datta=simulated", "did you mean data?"),
        ("seed=3", "did you mean seeds"),
        ("agent.horsepower=3", "there are: agent.learning_rate, agent.learning_rate_schedule"),
        ("data=simulate", "there is no data 'simulate' (did you mean simulated?); there are: auto"),
        ("+experiment=ppo_bct", "there is no experiment 'ppo_bct' (did you mean ppo_btc or hppo_btc?)"),
    ],
)
def test_a_misspelt_override_names_the_nearest_that_exist(override: str, words: str) -> None:
    told = refusal(override)
    assert words in told
    assert "use +" not in told


def test_settings_of_a_chosen_group_are_known() -> None:
    assert "did you mean data.simulated.edge?" in refusal("data=simulated", "data.simulated.egde=0")
    # the negative control: real data have no edge
    assert "data.simulated.edge?" not in refusal("data.simulated.egde=0")


def test_only_a_section_of_free_names_may_be_added_to() -> None:
    assert "write +data.columns.time=Date" in refusal("data=table", "data.path=x", "data.columns.time=Date")
    assert "write +" not in refusal("env.colour=3")


def test_another_script_s_config_has_its_own_settings() -> None:
    assert "did you mean period?" in refusal("perid=test", config_name="evaluate")


def test_a_second_mistake_does_not_hide_the_first() -> None:
    assert "did you mean agent.gamma?" in refusal("agent.gama=1", "datta=simulated")


def test_what_hydra_says_well_is_left_as_it_is() -> None:
    assert "+experiment=ppo_btc" in refusal("experiment=ppo_btc")


def test_nothing_near_is_no_hint() -> None:
    assert did_you_mean("agent.horsepower", ["agent.gamma", "env.leverage"]) == ""
