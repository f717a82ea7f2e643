"""What trades live: a policy of a run, its seeds together, or a rule, each as ``evaluate.py`` judges it."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from perpgym.agents.artifact import META_FILE, Artifact, load_artifact
from perpgym.agents.baselines import make_baseline
from perpgym.agents.ensemble import Ensemble, Rule
from perpgym.agents.protocol import LiveAgent
from perpgym.agents.trained import TrainedAgent
from perpgym.experiments.live_account import Call
from perpgym.experiments.run_folder import RunFolder
from perpgym.experiments.settings import Settings


def load_policies(call: Call) -> tuple[Artifact, ...]:
    """The chosen policies of the run: of one seed, or of all finished ones where they decide together.

    A rule needs none of their decisions, but their account: settings, limits, contracts and columns.

    Raises:
        FileNotFoundError, ValueError: there is none, it is damaged, or a window shows it other numbers than
            its training did (more than 1e-3 apart).
    """
    artifacts = tuple(load_artifact(folder) for folder in _folders(call))
    if call.baseline is None:
        for artifact in artifacts:
            artifact.check_parity()
    return artifacts


def _folders(call: Call) -> list[Path]:
    folder = Path(call.run)
    if (folder / META_FILE).is_file():
        if call.ensemble is not None:
            raise ValueError(
                f"ensemble={call.ensemble} takes the seeds of a run, and {folder} holds one policy: name the "
                "run's folder"
            )
        return [folder]
    run = RunFolder(folder)
    seeds = Settings.from_mapping(run.read_config()).seeds
    finished = [seed for seed in seeds if run.selection(seed).exists()]
    if call.seed is not None and call.seed not in finished:
        raise ValueError(f"{folder}: seed {call.seed} has not finished; finished are {finished}")
    if not finished:
        raise ValueError(f"{folder}: no seed has finished training: resume it, or name a policy's folder")
    if call.ensemble is None:
        finished = [finished[0] if call.seed is None else call.seed]
    return [run.policy(seed, int(run.read_selection(seed)["best"])) for seed in finished]


def make_agent(call: Call, artifacts: tuple[Artifact, ...]) -> LiveAgent:
    """What decides; its name says so to people, and to the journal whose memory it keeps.

    Args:
        call: the command line.
        artifacts: from :func:`load_policies`.

    Raises:
        ValueError: the rule or its number of contracts is none, a vote is asked for on continuous actions, or
            the policy should abstain and cannot tell how uncertain it is.
    """
    run, config = Path(call.run).name, artifacts[0].env_config
    if call.baseline is not None:
        rule = make_baseline(call.baseline, config, n_contracts=len(artifacts[0].contracts))
        rule.name = f"{rule.name} (baseline={call.baseline}) on the account of {run}"
        return rule
    # a bare policy: the ring has the columns that the artifact names, and the exchange's rules were compared
    if call.ensemble is None:
        seed = "" if artifacts[0].seed is None else f", seed {artifacts[0].seed}"
        return TrainedAgent(
            artifacts[0].policy, name=f"{run}{seed}", config=config, abstain_above=call.abstain_above
        )
    members = [TrainedAgent(artifact.policy, name=f"seed {artifact.seed}") for artifact in artifacts]
    rule_of_seeds = cast(Rule, call.ensemble)
    together = Ensemble(members, config, rule=rule_of_seeds, abstain_above=call.abstain_above)
    together.name = f"{run}, {together.name}"
    return together


def what_trades(call: Call, agent: LiveAgent) -> str:
    """For the first line and the page: who decides, and beyond which uncertainty it holds."""
    if call.abstain_above is None:
        return agent.name
    return f"{agent.name}, holding above an uncertainty of {call.abstain_above:g}"
