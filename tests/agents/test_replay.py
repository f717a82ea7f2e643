"""The replay of stretches: what a target is made of, and that nothing is mixed or left out."""

from __future__ import annotations

import numpy as np
import pytest

from perpgym.agents.replay import StretchBatch, StretchReplay

PATHS, ACCOUNTS, LEVELS = 2, 3, 4


class Story:
    """Fills a replay; the state of account k at observation i of path p is (p, episode, i, k)."""

    def __init__(self, capacity: int = 64) -> None:
        self.replay = StretchReplay(
            n_paths=PATHS, n_accounts=ACCOUNTS, capacity=capacity, state_size=4, n_branches=1, n_levels=LEVELS
        )
        self.episode = np.zeros(PATHS, np.int64)
        self.number = np.zeros(PATHS, np.int64)
        self.observe()

    def states(self) -> np.ndarray:
        out = np.zeros((PATHS, ACCOUNTS, 4), np.float32)
        out[..., 0], out[..., 3] = np.arange(PATHS)[:, None], np.arange(ACCOUNTS)
        out[..., 1], out[..., 2] = self.episode[:, None], self.number[:, None]
        return out

    def observe(self) -> None:
        bars = 1_000 * (self.episode + 1) + self.number
        # the level of the observation's number is forbidden there
        mask = np.ones((PATHS, ACCOUNTS, 1, LEVELS), np.bool_)
        mask[np.arange(PATHS), ..., self.number % LEVELS] = False
        self.replay.observe(bars, self.states(), mask)

    def step(self, *, dead: tuple[int, int] | None = None, ends: tuple[int, ...] = ()) -> None:
        """The reward is the number of the observation that it follows from, the level its remainder by 4."""
        terminated = np.zeros((PATHS, ACCOUNTS), np.bool_)
        if dead is not None:
            terminated[dead] = True
        number = np.repeat(self.number[:, None], ACCOUNTS, axis=1)
        self.replay.book((number % LEVELS)[..., None], number.astype(float), terminated)
        self.number += 1
        if ends:
            paths = np.array(ends)
            self.replay.end(paths, self.states()[paths])
            self.episode[paths] += 1
            self.number[paths] = 0
        self.observe()

    def sample(self, batch_size: int = 3_000, stretch: int = 4, **settings: float) -> StretchBatch:
        options = {"n_step": 1, "gamma": 0.5} | settings
        return self.replay.sample(batch_size, stretch, rng=np.random.default_rng(0), **options)  # type: ignore[arg-type]


def decisions(batch: StretchBatch) -> np.ndarray:
    """(n, 9): path, episode, number, account, then level, reward, discount, target's episode and number."""
    weight = np.broadcast_to(batch.is_decision.numpy()[..., None], batch.reward.shape)
    parts = [batch.state.numpy()[weight], batch.action.numpy()[..., 0][weight][:, None]]
    parts += [x.numpy()[weight][:, None] for x in (batch.reward, batch.discount)]
    return np.concatenate([*parts, batch.next_state.numpy()[weight][:, 1:3]], axis=1)


def test_a_target_sums_the_rewards_up_to_its_observation() -> None:
    story = Story()
    for _ in range(20):
        story.step()
    rows = decisions(story.sample(n_step=3))
    number = rows[:, 2]
    assert set(number) == set(range(20))
    np.testing.assert_array_equal(rows[:, 4], number % LEVELS)
    whole = number <= 17
    np.testing.assert_allclose(rows[whole, 5], (number + 0.5 * (number + 1) + 0.25 * (number + 2))[whole])
    np.testing.assert_allclose(rows[whole, 6], 0.125)
    np.testing.assert_array_equal(rows[:, 8], np.minimum(number + 3, 20))
    # the newest observation cuts the last ones short
    np.testing.assert_allclose(rows[number == 19, 5], 19.0)
    np.testing.assert_allclose(rows[number == 19, 6], 0.5)


def test_nothing_comes_after_an_account_that_died_and_its_next_life_is_another() -> None:
    story = Story()
    for step in range(12):
        story.step(dead=(1, 2) if step == 5 else None)
    rows = decisions(story.sample(n_step=3))
    mine = rows[(rows[:, 0] == 1) & (rows[:, 3] == 2)]
    by_number = {int(row[2]): row for row in mine}
    # 4: rewards 4 + 5 / 2 and then nothing
    assert by_number[4][5] == pytest.approx(6.5)
    assert by_number[5][5] == pytest.approx(5.0)
    assert [by_number[n][6] for n in (3, 4, 5)] == [0.0, 0.0, 0.0]
    assert by_number[6][6] == pytest.approx(0.125)
    others = rows[(rows[:, 0] == 1) & (rows[:, 3] == 1) & (rows[:, 2] == 4)]
    assert others[0, 6] == pytest.approx(0.125)


def test_a_truncated_episode_is_valued_at_its_own_final_observation() -> None:
    story = Story()
    for step in range(16):
        story.step(ends=(0,) if step == 7 else ())
    rows = decisions(story.sample(n_step=3))
    last = rows[(rows[:, 0] == 0) & (rows[:, 1] == 0) & (rows[:, 2] == 7)]
    assert (last[:, 5:9] == [7.0, 0.5, 0.0, 8.0]).all()
    # and no decision ever looks into another episode
    np.testing.assert_array_equal(rows[:, 1], rows[:, 7])


def test_a_target_allows_what_its_own_observation_did_and_a_final_one_everything() -> None:
    # in a ring that has gone round, so that masks were overwritten
    story = Story(capacity=16)
    for step in range(40):
        story.step(ends=(0, 1) if step in (9, 29) else ())
    batch = story.sample(n_step=2)
    inside = batch.is_decision.numpy()
    target, mask = batch.next_state.numpy()[inside], batch.next_mask.numpy()[inside][..., 0, :]  # n K .
    # the second episode had twenty bars
    is_final = (target[..., 1] == 1) & (target[..., 2] == 20)
    assert 0 < is_final.sum() < is_final.size
    assert mask[is_final].all()
    expected = np.arange(LEVELS) != target[..., 2:3] % LEVELS
    np.testing.assert_array_equal(mask[~is_final], expected[~is_final])


def test_bars_of_a_stretch_follow_one_another_from_its_first() -> None:
    story = Story()
    for step in range(40):
        story.step(ends=(0, 1) if step in (9, 23) else ())
    batch = story.sample(stretch=5, n_step=2)
    state = batch.state.numpy()[:, :, 0]
    bars = 1_000 * (state[..., 1] + 1) + state[..., 2]
    inside = batch.is_decision.numpy()
    # no bar is wasted where an episode is as long as a stretch
    assert inside.all()
    expected = batch.first_bar.numpy()[:, None] + np.arange(5)
    np.testing.assert_array_equal(bars[inside], expected[inside])
    target = batch.next_state.numpy()[:, :, 0]
    at = batch.first_bar.numpy()[:, None] + batch.next_offset.numpy()
    np.testing.assert_array_equal((1_000 * (target[..., 1] + 1) + target[..., 2])[inside], at[inside])
    # episodes of ten, fourteen and so far sixteen bars
    booked = np.array([10, 14, 16])[state[:, 0, 1].astype(int)]
    np.testing.assert_array_equal(batch.length.numpy(), booked - state[:, 0, 2])


@pytest.mark.parametrize("stretch", [1, 4, 8])
def test_every_decision_that_is_still_held_is_drawn_about_as_often(stretch: int) -> None:
    story = Story(capacity=50)
    for step in range(200):
        story.step(ends=(0,) if step % 37 == 36 else (1,) if step % 23 == 22 else ())
    rows = decisions(story.sample(batch_size=120_000, stretch=stretch))
    _known, counts = np.unique(rows[:, :3], axis=0, return_counts=True)
    held = PATHS * 50 - 6  # final observations and the newest are no decisions
    assert abs(len(counts) - held) <= 4
    assert counts.min() > 0.4 * counts.mean()
    assert counts.max() < 2.5 * counts.mean()


def test_single_decisions_are_those_of_their_rows() -> None:
    story = Story()
    for step in range(30):
        story.step(dead=(1, 2) if step == 5 else None, ends=(0,) if step == 9 else ())
    batch = story.sample(batch_size=6_000, stretch=1, n_step=2)
    single = batch.of_one_account(np.random.default_rng(1))
    assert single.reward.shape == (2_000, 1, 1)
    rows, chosen = decisions(batch), decisions(single)
    known = {tuple(row[:4]): tuple(row[4:]) for row in rows}
    assert all(known[tuple(row[:4])] == tuple(row[4:]) for row in chosen)
    counts = np.unique(chosen[:, 3], return_counts=True)[1]
    assert counts.min() > 0.8 * counts.mean()


@pytest.mark.parametrize("capacity", [3, 4, 9])
def test_every_stretch_has_a_decision_even_where_an_episodes_last_has_been_overwritten(capacity: int) -> None:
    story = Story(capacity=capacity)
    for step in range(60):
        story.step(ends=(step % 2,) if step % 4 > 1 else ())
        for stretch in (1, 2, 4):
            batch = story.sample(batch_size=60 * stretch, stretch=stretch)
            assert batch.is_decision.any(dim=1).all()
            assert (batch.length > 0).all()


def test_an_observation_after_which_the_env_was_reset_is_no_decision() -> None:
    story = Story()
    for _ in range(3):
        story.step(ends=(0, 1))
        # the first observations of the next episodes are all there will be of them
        story.replay.cut()
        story.observe()
    story.step()
    batch = story.sample(stretch=1)
    assert batch.is_decision.all()
    np.testing.assert_array_equal(np.unique(batch.first_bar.numpy()), [1_000, 2_000, 3_000, 4_000])


def test_a_replay_of_nothing_but_final_observations_says_so() -> None:
    story = Story(capacity=2)
    story.step(ends=(0, 1))
    with pytest.raises(ValueError, match="nothing to draw yet"):
        story.sample()


def test_an_empty_replay_says_so() -> None:
    with pytest.raises(ValueError, match="nothing to draw yet"):
        Story().sample()


def test_a_replay_goes_on_from_its_arrays() -> None:
    story = Story()
    for step in range(30):
        story.step(ends=(0,) if step == 9 else ())
    other = Story()
    other.replay.load_state_dict({k: v.copy() for k, v in story.replay.state_dict().items()})
    for one, two in zip(decisions(story.sample()), decisions(other.sample()), strict=True):
        np.testing.assert_array_equal(one, two)
