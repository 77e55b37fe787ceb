"""What commands share: types of their arguments, options that exclude each other, whether a network fits."""

from pathlib import Path
from typing import Annotated

import tyro

from pyro_arbuf.network.config import ModelConfig
from pyro_arbuf.priors.recipes import RECIPES
from pyro_arbuf.programs.named_functions import is_function_name


def _prior_name(text: list[str]) -> str:
    """The name of a shipped prior, or of a function of the user's own."""
    if text[0] not in RECIPES and not is_function_name(text[0]):
        raise ValueError(f"must be one of {', '.join(RECIPES)}, or module:function; got {text[0]!r}")
    return text[0]


_PRIOR = tyro.constructors.PrimitiveConstructorSpec(
    nargs=1,
    metavar="PRIOR",
    instance_from_str=_prior_name,
    is_instance=lambda value: isinstance(value, str),
    str_from_instance=lambda value: [value],
)
PriorName = Annotated[str, _PRIOR]
NetworkName = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]


def refuse(why: str, **options: object) -> None:
    """Raises ValueError if options are given that are for something else; `None` is not given."""
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value is not None]
    if given:
        raise ValueError(f"{', '.join(given)} {why}; leave {'it' if len(given) == 1 else 'them'} out")


def check_folder(option: str, path: Path | None) -> None:
    """Raises ValueError unless the folder of a file that a command will write is there; `None` = no file."""
    if path is not None and not path.parent.is_dir():
        raise ValueError(f"{option} must be in a folder that exists; got {path}; make the folder {path.parent} first")


def check_fits(config: ModelConfig, wanted: ModelConfig, name: str) -> None:
    """Raises ValueError if a model cannot take the tasks of a prior, whose configuration is `wanted`."""
    has, needs = (
        f"dim_x = {c.dim_x}, dim_y = {c.dim_y}, latents {[(latent.name, latent.shape) for latent in c.latents]}"
        for c in (config, wanted)
    )
    if has != needs:
        raise ValueError(f"a model of the prior {wanted.prior!r} must have {needs}; {name} has {has}")
