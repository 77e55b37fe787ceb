"""Notes on programs whose densities are not those of what they simulate, or whose latents have no prior of their own.

Read from traces, and from runs at other inputs. Knows nothing of models.
"""

import contextlib
from collections.abc import Sequence

import torch
from pyro.distributions import MaskedDistribution
from pyro.poutine import Trace

from pyro_arbuf.programs.runs import ProgramRuns
from pyro_arbuf.programs.sites import program_sites
from pyro_arbuf.programs.vectorization import log_densities
from pyro_arbuf.random_state import seeded
from pyro_arbuf.workflow.trace_sites import layers, numbered

LENGTHS = (3, 5)  # numbers of trials at which priors are compared


def law_notes(runs: ProgramRuns, traces: Sequence[Trace], of_inputs: Sequence[str]) -> list[str]:
    """What was found, each a sentence with a remedy.

    Args:
        runs: The program.
        traces: Of single runs.
        of_inputs: What `priors_of_inputs` returns.
    """
    notes, scored = [], {latent.name for latent in runs.latents}
    sites = [
        (name, site)
        for trace in traces
        for name, site in program_sites(trace).items()
        if name in scored or any(name == of or numbered(of, [name]) for of in runs.outcome.names)
    ]
    weighted = list(dict.fromkeys(name for name, site in sites if _is_weighted(site)))
    if weighted:
        notes.append(
            f"Sites {weighted[:3]} are scaled or masked; simulations ignore that and densities do not, so that refine "
            "scores another law than the network learns: remove the scale, the mask or the subsample of a plate."
        )
    if of_inputs:
        notes.append(
            f"The prior of {list(of_inputs)} depends on the inputs of the trials, or on their number, so that latents "
            "have no prior of their own; draw them before x is read, and scale inputs outside the program."
        )
    return notes


def priors_of_inputs(runs: ProgramRuns) -> tuple[str, ...]:
    """Latents whose density at the same values is another one with other inputs, or with more of them."""
    names = [latent.name for latent in runs.latents]
    if not names:
        return ()
    with contextlib.suppress(Exception):  # a prior without a density, or a program that needs other numbers of trials
        x = [runs.inputs(number) for number in ((1, 1) if runs.outcome.single else LENGTHS)]
        sites = program_sites(runs.run(x[0], until=names))
        values = {name: sites[name]["value"] for name in names}
        found = []
        for each, seed in ((x[0], 0), (x[0], 1), (x[1], 0)):
            with seeded(seed):
                trace = runs.run(each, given=values, until=names)
            found.append({name: d for name, d in log_densities(program_sites(trace)).items() if name in values})
        one, again, other = found
        if one.keys() == again.keys() == other.keys():
            # What another seed changes too depends on sites that are integrated out.
            same = [name for name in one if torch.equal(one[name], again[name])]
            return tuple(name for name in same if not torch.equal(one[name], other[name]))
    return ()


def check_own_prior(of_inputs: Sequence[str]) -> None:
    """Raises ValueError if latents, as `priors_of_inputs` returns them, have no prior without inputs."""
    if of_inputs:
        raise ValueError(
            "latents must have a prior that does not depend on the inputs; got one that does for "
            f"{list(of_inputs)}; draw them before x is read, and scale inputs outside the program"
        )


def _is_weighted(site: dict) -> bool:
    """Whether a site's density counts more or less than once, or not for all of its members."""
    masks = [site["mask"], *(layer._mask for layer in layers(site) if isinstance(layer, MaskedDistribution))]
    hidden = any(mask is not None and not bool(torch.as_tensor(mask).all()) for mask in masks)
    return hidden or bool((torch.as_tensor(site["scale"]) != 1).any())
