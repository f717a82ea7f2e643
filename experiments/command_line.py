"""What a mistyped command line is told: Hydra composes it, this module words what Hydra refuses."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from hydra import compose, initialize_config_module
from hydra.errors import HydraException, MissingConfigException
from omegaconf import OmegaConf

from perpgym.experiments.console import print_error
from perpgym.experiments.settings import did_you_mean

_UNKNOWN_KEY = re.compile(r"Could not override '(?P<key>.+)'\.\nTo append to your config use (?P<append>.+)")
# sections that take names which no config file mentions
_OPEN = ("data.columns.", "data.simulated.")


def run(main: Callable[[], None], config_name: str) -> None:
    """Call a script's Hydra main; a command line that does not compose is one message and exit code 1.

    Args:
        main: decorated by ``hydra.main``.
        config_name: of the config that it composes.
    """
    # Hydra would answer a misspelt key with the advice to add it as a new one, which nothing would read
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        main()
    except HydraException as error:
        print_error(in_words(error, config_name, sys.argv[1:]))
        sys.exit(1)


def in_words(error: HydraException, config_name: str, overrides: list[str]) -> str:
    """What was wrong with a command line and what was probably meant.

    Args:
        error: Hydra's.
        config_name: of the config that the overrides belong to.
        overrides: as they were typed.
    """
    if found := _UNKNOWN_KEY.match(str(error)):
        key = found["key"]
        known = known_keys(config_name, [o for o in overrides if not o.startswith(key)])
        text = f"the config has no setting {key!r}{did_you_mean(key, known) or _beside(key, known)}"
        return f"{text}; to add it, write {found['append']}" if key.startswith(_OPEN) else text
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        hint = did_you_mean(name, error.options)
        return f"there is no {group} {name!r}{hint}; there are: {', '.join(error.options)}"
    return str(error)


def known_keys(config_name: str, overrides: list[str]) -> list[str]:
    """Dotted paths of every setting and section, with the choices of groups among the overrides."""
    choices = [o for o in overrides if re.fullmatch(r"\+?[a-z_]+=[\w-]+", o)]
    with initialize_config_module("perpgym.configs", version_base="1.3"):
        try:
            config = compose(config_name, overrides=choices)
        except HydraException:
            config = compose(config_name)
    plain: Any = OmegaConf.to_container(config, resolve=False)
    return list(_paths(plain))


def _beside(key: str, known: list[str]) -> str:
    """What else stands where an unknown key would."""
    section = key.rpartition(".")[0]
    names = [path for path in known if path.rpartition(".")[0] == section]
    return f"; there are: {', '.join(names)}" if names else ""


def _paths(section: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in section.items():
        if name.startswith("_"):
            continue
        yield prefix + name
        if isinstance(value, dict):
            yield from _paths(value, f"{prefix}{name}.")
