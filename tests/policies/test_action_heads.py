"""Masked choices: their probabilities are those of torch, and what is forbidden never happens."""

from __future__ import annotations

import pytest
import torch
from gymnasium import spaces
from torch.distributions import Categorical

from perpgym.policies.action_heads import ChoiceActions, GaussianActions, make_action_heads

COUNTS = (4, 3, 1, 2)


def draw(n: int = 200, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and masks that leave something of every number."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3.0 * torch.randn(n, sum(COUNTS), generator=generator)
    mask = torch.rand(n, sum(COUNTS), generator=generator) < 0.6
    first = 0
    for count in COUNTS:
        mask[:, first] |= ~mask[:, first : first + count].any(-1)
        first += count
    return logits, mask


@pytest.mark.parametrize("counts", [COUNTS, (3, 3)])
def test_probability_and_entropy_are_those_of_independent_categoricals(counts: tuple[int, ...]) -> None:
    heads = ChoiceActions(counts)
    logits, mask = (columns[:, : sum(counts)] for columns in draw())
    for first in torch.tensor((0, *counts[:-1])).cumsum(0):
        mask[:, first] = True
    actions = heads.sample(logits, heads.noise((len(logits),), torch.Generator().manual_seed(1)), mask)
    log_prob, entropy = torch.zeros(len(logits)), torch.zeros(len(logits))
    first = 0
    for i, count in enumerate(counts):
        part = slice(first, first + count)
        one = Categorical(logits=logits[:, part].masked_fill(~mask[:, part], -torch.inf))
        log_prob += one.log_prob(actions[:, i])
        p = one.probs
        entropy -= (p * torch.where(p > 0, p.log(), 0.0)).sum(-1)
        first += count
    torch.testing.assert_close(heads.log_prob(logits, actions, mask), log_prob)
    torch.testing.assert_close(heads.entropy(logits, mask), entropy.mean())


def test_samples_come_as_often_as_their_probability_says() -> None:
    heads = ChoiceActions((3,))
    logits = torch.tensor([0.0, 1.0, -1.0]).expand(200_000, 3)
    sampled = heads.sample(logits, heads.noise((200_000,), torch.Generator().manual_seed(0)))
    frequency = torch.bincount(sampled.flatten().long(), minlength=3) / 200_000
    torch.testing.assert_close(frequency, torch.softmax(logits[0], -1), atol=5e-3, rtol=0)


def test_what_is_forbidden_is_never_sampled_nor_the_mode() -> None:
    heads = ChoiceActions(COUNTS)
    logits, mask = draw(5_000)
    noise = heads.noise((len(logits),), torch.Generator().manual_seed(2))
    for actions in (heads.sample(logits, noise, mask), heads.mode(logits, mask)):
        first = 0
        for i, count in enumerate(COUNTS):
            chosen = actions[:, i : i + 1].long()
            assert (chosen < count).all()
            assert mask[:, first : first + count].gather(1, chosen).all()
            first += count


def test_forbidden_choices_get_no_gradient() -> None:
    heads = ChoiceActions(COUNTS)
    logits, mask = draw(50)
    logits.requires_grad_()
    actions = heads.mode(logits, mask)
    (heads.log_prob(logits, actions, mask).sum() + heads.entropy(logits, mask)).backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert not logits.grad[~mask].any()
    assert logits.grad[mask].any()


def test_every_action_space_has_its_distribution() -> None:
    log_std = torch.nn.Parameter(torch.zeros(2))
    assert isinstance(make_action_heads(spaces.Box(-1.0, 1.0, (2,)), log_std), GaussianActions)
    ladder, heads = (
        make_action_heads(space, None) for space in (spaces.Discrete(5), spaces.MultiDiscrete([4, 3]))
    )
    assert isinstance(ladder, ChoiceActions)
    assert isinstance(heads, ChoiceActions)
    assert (ladder.counts, heads.counts) == ((5,), (4, 3))
