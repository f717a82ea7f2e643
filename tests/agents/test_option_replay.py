"""What came of options: R and gamma^k by hand, realised durations, and that gamma alone would be wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from perpgym.agents.option_replay import OptionBatch, OptionReplay

GAMMA = 0.5
ACCOUNTS = 2


class Story:
    """One path; the reward is the number of the observation that it follows from.

    Account 0 decides every third bar, account 1 every fourth; the option's column says which decision it is.
    """

    def __init__(self) -> None:
        self.replay = OptionReplay(
            option_size=1, n_paths=1, n_accounts=ACCOUNTS, capacity=64, state_size=1, n_branches=1, n_levels=3
        )
        self.number = 0
        self.since = np.zeros(ACCOUNTS, np.int64)
        self.decisions = np.zeros(ACCOUNTS, np.int64)
        self.observe()

    def observe(self) -> None:
        due = self.since % np.array([3, 4]) == 0
        state = np.zeros((1, ACCOUNTS, 2), np.float32)
        state[..., 0], state[..., 1] = self.number, self.decisions
        self.replay.observe_due(due[None])
        # the level of the observation's number is forbidden there
        mask = np.broadcast_to(np.arange(3) != self.number % 3, (1, ACCOUNTS, 1, 3))
        self.replay.observe(np.array([100 + self.number]), state, mask)
        self.decisions += due
        now = self.decisions[due].astype(np.float32)[:, None]
        self.replay.begin(due[None], now, (now % 3).astype(np.int64))

    def step(self, *, dead: int | None = None, ends: bool = False, reward: float | None = None) -> None:
        terminated = np.zeros((1, ACCOUNTS), np.bool_)
        if dead is not None:
            terminated[0, dead] = True
        brought = np.full((1, ACCOUNTS), self.number if reward is None else reward)
        self.replay.book(np.full((1, ACCOUNTS, 1), self.number % 3), brought, terminated)
        self.number += 1
        self.since += 1
        if dead is not None:
            self.since[dead] = 0
        if ends:
            self.replay.end(np.array([0]), np.full((1, ACCOUNTS, 1), self.number, np.float32))
            self.since[:] = 0
        self.observe()

    def sample(self, *, n_step: int = 2, max_bars: int = 4, gamma: float = GAMMA) -> OptionBatch:
        return self.replay.sample_options(
            2_000, 5, n_step=n_step, max_bars=max_bars, gamma=gamma, rng=np.random.default_rng(0)
        )


def rows(batch: OptionBatch, level: str, account: int) -> dict[int, tuple[float, float, float, bool]]:
    """By the number of a decision's observation: reward, discount, number where its target stands, is due."""
    after = getattr(batch, level)
    which = batch.begins if level == "manager" else batch.is_decision[..., None].expand(batch.begins.shape)
    found = {}
    for place in which[..., account].nonzero().tolist():
        at = (*place, account)
        number = int(batch.state[at][0])
        found[number] = (
            float(after.reward[at]),
            float(after.discount[at]),
            float(after.state[at][0]),
            bool(after.is_due[at]),
        )
        assert int(after.offset[at]) == found[number][2] - number + place[1]
        there = torch.arange(3) != found[number][2] % 3
        # of what a final observation would allow nothing is known
        assert after.mask[at][0].tolist() in (there.tolist(), [True] * 3)
    return found


def test_an_option_earns_its_discounted_rewards_and_its_successor_counts_gamma_to_the_k() -> None:
    story = Story()
    for _ in range(14):
        story.step()
    three, four = (rows(story.sample(), "manager", account) for account in range(ACCOUNTS))
    # 3 + 4/2 + 5/4, and then the state at 6 an eighth
    assert three[3] == (6.25, 0.125, 6.0, True)
    # 4 + 5/2 + 6/4 + 7/8, and then the state at 8 a sixteenth
    assert four[4] == (8.875, 0.0625, 8.0, True)
    # what runs on is not learnt from: its end is not known
    assert (sorted(three), sorted(four)) == ([0, 3, 6, 9], [0, 4, 8])


def test_the_workers_target_stops_where_its_option_does() -> None:
    story = Story()
    for _ in range(14):
        story.step()
    found = rows(story.sample(n_step=2), "worker", 0)
    assert found[3] == (3.0 + 2.0, 0.25, 5.0, False)
    assert found[4] == (4.0 + 2.5, 0.25, 6.0, True)
    # one bar is left of the option
    assert found[5] == (5.0, 0.5, 6.0, True)
    assert sorted(found) == list(range(14))


def test_a_death_ends_the_option_and_nothing_comes_after_it() -> None:
    story = Story()
    for number in range(14):
        story.step(dead=0 if number == 4 else None)
    found = rows(story.sample(), "manager", 0)
    assert found[3] == (3.0 + 2.0, 0.0, 5.0, True)
    # the next life begins at once with a decision, which again lasts three bars
    assert found[5] == (5.0 + 3.0 + 1.75, 0.125, 8.0, True)
    # the other account on the path lives on
    assert rows(story.sample(), "manager", 1)[4] == (8.875, 0.0625, 8.0, True)


def test_an_episode_that_is_cut_off_ends_its_options_after_the_bars_that_they_lasted() -> None:
    story = Story()
    for number in range(14):
        story.step(ends=number == 6)
    # 6 alone, and then the final observation, 7, where the manager would decide
    assert rows(story.sample(), "manager", 0)[6] == (6.0, 0.5, 7.0, True)
    assert rows(story.sample(), "manager", 1)[4] == (4.0 + 2.5 + 1.5, 0.125, 7.0, True)
    assert rows(story.sample(), "worker", 0)[6] == (6.0, 0.5, 7.0, True)


def test_the_managers_return_stops_where_the_worker_explores_and_goes_on_within_the_option() -> None:
    story = Story()
    for number in range(14):
        # at 4 account 0 is a bar into its option, at 8 account 1 begins one
        story.replay.explore(np.array([[number == 4, number == 8]]))
        story.step()
    three, four = (rows(story.sample(), "manager", account) for account in range(ACCOUNTS))
    assert three[3] == (3.0, 0.5, 4.0, False)
    assert three[6] == (6.0 + 3.5 + 2.0, 0.125, 9.0, True)
    # nothing but what the worker thinks of the option at once
    assert four[8] == (0.0, 1.0, 8.0, False)
    assert four[4] == (8.875, 0.0625, 8.0, True)
    # the worker's own targets are of what was done
    assert rows(story.sample(), "worker", 0)[3] == (3.0 + 2.0, 0.25, 5.0, False)


def test_states_hold_the_option_in_force_and_choices_stand_where_they_were_made() -> None:
    story = Story()
    for _ in range(14):
        story.step()
    batch = story.sample()
    number = batch.state[:, :, 0, 0]
    inside = batch.is_decision
    torch.testing.assert_close(batch.state[:, :, 0, 1][inside], (number // 3 + 1)[inside])
    begins = batch.begins[..., 0]
    torch.testing.assert_close(batch.choice[:, :, 0, 0][begins], ((number // 3 + 1) % 3)[begins].long())


@pytest.mark.parametrize("is_right", [True, False])
def test_a_bar_that_always_pays_one_is_worth_1_over_1_less_gamma_and_gamma_for_gamma_to_the_k_misses_it(
    is_right: bool,
) -> None:
    """V = R + gamma^k V has that fixed point, whatever the durations; V = R + gamma V has not."""
    gamma, story = 0.9, Story()
    for _ in range(60):
        story.step(reward=1.0)
    batch = story.sample(gamma=gamma)
    reward, discount = batch.manager.reward[batch.begins], batch.manager.discount[batch.begins]
    assert len(set(discount.tolist())) == 2
    value = 0.0
    for _ in range(300):
        value = float((reward + (discount if is_right else gamma) * value).mean())
    if is_right:
        assert value == pytest.approx(1.0 / (1.0 - gamma), rel=1e-4)
    else:
        assert value > 2.0 / (1.0 - gamma)


def test_a_replay_goes_on_from_its_arrays_in_the_middle_of_options() -> None:
    story, other = Story(), Story()
    for _ in range(14):
        story.step()
    other.replay.load_state_dict({k: v.copy() for k, v in story.replay.state_dict().items()})
    assert rows(story.sample(), "manager", 1) == rows(other.sample(), "manager", 1)
    np.testing.assert_array_equal(other.replay.newest()[0], story.replay.newest()[0])
    np.testing.assert_array_equal(other.replay.newest_due(), story.replay.newest_due())
