"""Train an agent: python train.py +experiment=ppo_btc [data=simulated] [seeds=[0,1,2]] [resume=FOLDER]."""

from __future__ import annotations

import logging
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from perpgym.experiments.command_line import run
from perpgym.experiments.console import CONSOLE, errors_in_words, python, set_up_log, training_bar
from perpgym.experiments.market import Market, open_market, set_threads
from perpgym.experiments.run_folder import RunError, RunFolder, config_hash
from perpgym.experiments.settings import Settings
from perpgym.experiments.training import Progress, StopRequestedError, train_seed

_LOG = logging.getLogger("perpgym.train")
# the name in configs/config.yaml, which every experiment replaces
UNNAMED = "unnamed"
# what a command line says about this call, and not about the run
_CALL = ("run_dir", "overwrite", "resume")


@hydra.main(version_base="1.3", config_path="configs", config_name="config")
def main(config: DictConfig) -> None:
    """Train every seed of the composed config, or go on with an interrupted run."""
    set_up_log()
    with errors_in_words():
        plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
        call = {name: plain.pop(name) for name in _CALL}
        if call["resume"]:
            folder = RunFolder(Path(call["resume"]))
            plain = folder.read_config()
            if folder.is_config_altered():
                raise RunError(
                    f"{folder.config} is not what the run was started with, and going on with other settings "
                    "would be neither run: restore it, or start another run"
                )
        elif not call["run_dir"]:
            raise ValueError("run_dir is empty: name the folder that the run is written to")
        else:
            folder = RunFolder(Path(call["run_dir"]))
        settings = Settings.from_mapping(plain)
        if not call["resume"]:
            folder.check_room(overwrite=call["overwrite"])
        announce(settings, folder)
        set_threads(settings.training.threads)
        market = open_market(settings)
        if not call["resume"]:
            settings, plain = _as_it_was_loaded(settings, plain, market)
            folder.create(plain, _facts(settings, market), overwrite=call["overwrite"])
        try:
            train(market, settings, folder, config_hash(plain))
        except StopRequestedError:
            CONSOLE.print(
                f"stopped and saved; go on with: {python()} train.py resume={folder.path}", soft_wrap=True
            )
            sys.exit(130)
        except OSError as error:
            raise OSError(
                error.errno, f"{error.strerror}; go on with: {python()} train.py resume={folder.path}"
            ) from error
        CONSOLE.print(f"done; judge it with: {python()} evaluate.py run={folder.path}", soft_wrap=True)
        curves = shlex.quote(str(folder.tensorboard))
        CONSOLE.print(f"curves: {python()} -m tensorboard.main --logdir {curves}", soft_wrap=True)


def announce(settings: Settings, folder: RunFolder) -> None:
    """Say in one line what is trained; in a second one, if nobody named it, that these are the defaults."""
    data, algorithm = settings.data, type(settings.agent).__name__.removesuffix("Config")
    _LOG.info(
        "%s: %s on %s %s (data=%s), %s steps for each of seeds %s, written to %s",
        settings.name, algorithm, ", ".join(data.symbols), data.timeframe, data.source,
        f"{settings.training.total_steps:,}", ", ".join(map(str, settings.seeds)), folder.path,
    )  # fmt: skip
    if settings.name == UNNAMED:
        _LOG.warning(
            "no experiment was named, so these are the defaults: +experiment=ppo_btc trains a named one, "
            "name=ANYTHING names this one"
        )


def train(market: Market, settings: Settings, folder: RunFolder, digest: str) -> None:
    """Every seed that is not done yet."""
    total = settings.training.total_steps
    for seed in settings.seeds:
        if folder.selection(seed).exists():
            _LOG.info("seed %d is done already", seed)
            continue
        # processor time does not pass as a clock's does, so nobody knows how many steps it allows
        shown = total if settings.training.max_seconds is None else None
        with training_bar(f"{settings.name} seed {seed}", shown) as on_step:
            progress = Progress(seed=seed, total_steps=total, on_step=on_step)
            train_seed(market, settings, seed, folder, digest, progress=progress)


def _as_it_was_loaded(
    settings: Settings, plain: dict[str, Any], market: Market
) -> tuple[Settings, dict[str, Any]]:
    """After a fallback, the config that is kept says ``simulated``: evaluation must see the same market."""
    if market.fallback_reason is None:
        return settings, plain
    plain = {**plain, "data": {**plain["data"], "source": "simulated"}}
    return replace(settings, data=replace(settings.data, source="simulated")), plain


def _facts(settings: Settings, market: Market) -> dict[str, Any]:
    return {
        "name": settings.name,
        "seeds": list(settings.seeds),
        **market.facts(),
    }


if __name__ == "__main__":
    run(main, "config")
