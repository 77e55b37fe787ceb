"""Functions of a user's own files by name, "my_module:draw", and what a network of one is scored on.

For the command line: the current directory is made importable.
"""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyro_arbuf.network.config import ModelConfig
from pyro_arbuf.programs.configuration import check_program, outcome_names
from pyro_arbuf.programs.function_prior import (
    FunctionPrior,
    check_no_program_arguments,
    is_function_prior,
    probe,
)
from pyro_arbuf.programs.program_batches import ProgramSource
from pyro_arbuf.programs.simulator import Simulator
from pyro_arbuf.training.sources import PriorSource


def is_function_name(name: str) -> bool:
    """Whether a name is that of a function in a module, module:function."""
    return ":" in name


def find_function(name: str) -> Callable[..., Any]:
    """Imports a function by its name; modules in the current directory are found too.

    Args:
        name: "my_module:draw", or "my_package.my_module:draw".

    Raises:
        ValueError: If the name has another form, there is no such module, or no such function in it; says what is
            there instead.
    """
    module_name, _, function_name = name.partition(":")
    stem = module_name.removesuffix(".py")
    if not all(part.isidentifier() for part in (*stem.split("."), function_name)) or stem != module_name:
        hint = f"; write {stem.replace('/', '.')}:{function_name or 'draw'}" if module_name.endswith(".py") else ""
        raise ValueError(f"a function must be named as module:function, my_module:draw; got {name!r}{hint}")
    folder = Path.cwd()
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise  # of something that the module imports
        there = ", ".join(sorted(path.stem for path in folder.glob("*.py"))) or "none"
        raise ValueError(
            f"there is no module {module_name!r}, neither in {folder} nor installed; the modules in that folder are: "
            f"{there}; start the command where the file {module_name.split('.')[0]}.py is"
        ) from error
    function = getattr(module, function_name, None)
    if callable(function):
        return function
    own = [n for n, value in vars(module).items() if getattr(value, "__module__", None) == module_name]
    there = ", ".join(sorted(n for n in own if callable(vars(module)[n]))) or "none"
    what = "no function" if function is None else f"a {type(function).__name__}, not a function,"
    raise ValueError(
        f"there is {what} {function_name!r} in the module {module_name!r} ({module.__file__}); its functions are: "
        f"{there}; name one of them, or add it"
    )


def source_of_function(name: str, inputs: str | None, config: ModelConfig) -> PriorSource | ProgramSource:
    """The data that a network is scored on: of a function by its name, a prior or a Pyro program.

    Args:
        name: As `find_function` takes it.
        inputs: Likewise, of the function that draws a program's inputs; `None` = it has none.
        config: Of the network.

    Raises:
        ValueError: If there is no such function, it breaks a rule, or a program is not that of the network.
    """
    function = find_function(name)
    if is_function_prior(function):
        check_no_program_arguments(inputs=inputs)
        probed = probe(function, config.num_context, outcomes=config.outcomes)
        return PriorSource(FunctionPrior(function), probed.config)
    draw_inputs = None if inputs is None else find_function(inputs)
    names = [latent.name for latent in config.latents]
    simulator = Simulator(function, draw_inputs, names, outcome_names(config))
    check_program(simulator, config)
    return ProgramSource(simulator, config)
