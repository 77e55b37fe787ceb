"""What the values of an outcome are, by their distributions: real numbers, counts, or categories from 0 on.

Knows nothing of models, nor of trials.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributions as td
from torch.distributions import constraints

from pyro_arbuf.programs.sites import base_support, support_of
from pyro_arbuf.workflow.trace_sites import Site, unwrapped

MOST_CATEGORIES = 20  # of whole numbers from 0 on; more are counts, unless the site is a Categorical
REAL = "real"


def kind_of(name: str, sites: Sequence[Site]) -> str:
    """What the values of a site are, by its distribution in several runs, or by their dtype where that says nothing.

    Raises:
        ValueError: If they are neither real numbers, nor counts, nor categories from 0 on.
    """
    supports = [_base_support(site) for site in sites]
    values = [site["value"] for site in sites]
    others = [type(value).__name__ for value in values if not isinstance(value, torch.Tensor)]
    if others:
        remedy = "let its distribution's sample return torch.as_tensor(values, dtype=torch.float32)"
        raise ValueError(f"the values of the outcome {name!r} must be tensors; got {others[0]}; {remedy}")
    if not any(support is not None and support.is_discrete for support in supports):
        if all(value.is_floating_point() for value in values):
            return REAL
        if all(value.dtype == torch.bool for value in values):
            return "categorical(2)"
        if all(bool((value >= 0).all()) for value in values):
            return "count"
        raise ValueError(_wrong_values(name, "whole numbers, some of them negative", "shift them to start at 0"))
    binary = [isinstance(support, type(constraints.boolean)) for support in supports]
    if all(binary):
        return "categorical(2)"
    if any(binary):
        return _kind_of_mixed(name, sites, binary)
    if all(hasattr(support, "lower_bound") for support in supports):
        return _kind_of_integers(name, sites[0], supports)
    got = f"{type(unwrapped(sites[0])).__name__}, of support {supports[0]}"
    remedy = "draw it as real numbers, or as whole numbers from 0 on"
    if isinstance(supports[0], type(constraints.one_hot)):
        remedy = "draw the number of the category by Categorical"
    elif isinstance(unwrapped(sites[0]), td.Multinomial):
        remedy = "draw its counts as several sites, each by Binomial given those before it"
    raise ValueError(_wrong_values(name, got, remedy))


def _kind_of_mixed(name: str, sites: Sequence[Site], binary: Sequence[bool]) -> str:
    """Two categories, if the sites that are not binary by their support are so all the same."""
    others = [site for site, is_binary in zip(sites, binary, strict=True) if not is_binary]
    kind = kind_of(name, others)
    if kind == "categorical(2)":
        return kind
    laws = list(dict.fromkeys(type(unwrapped(site)).__name__ for site in sites))
    got = f"sites of different kinds, categorical(2) and {kind}, by {' and '.join(laws)}"
    raise ValueError(_wrong_values(name, got, "draw all trials by one distribution"))


def _kind_of_integers(name: str, site: Site, supports: Sequence[Any]) -> str:
    """Categories, if whole numbers from 0 to one small bound; counts, if they are those of something or unbounded."""
    law = unwrapped(site)
    lows = torch.cat([torch.as_tensor(support.lower_bound).flatten() for support in supports])
    highs = torch.cat([torch.as_tensor(getattr(s, "upper_bound", torch.inf)).flatten().double() for s in supports])
    if bool((lows < 0).any()):
        got = f"{type(law).__name__}, whole numbers from {int(lows.min())} on"
        raise ValueError(_wrong_values(name, got, f"shift it to start at 0: draw y + {-int(lows.min())}"))
    number = 1 + highs[0].item() if len(highs.unique()) == 1 and not bool(lows.any()) else torch.inf
    if isinstance(law, td.Categorical):
        if not 2 <= number < torch.inf:
            got = f"Categorical with {', '.join(f'{1 + int(high)}' for high in highs.unique())} categories"
            raise ValueError(_wrong_values(name, got, "give it the same categories in every run, at least 2"))
        return f"categorical({int(number)})"
    most = 2 if hasattr(law, "total_count") else MOST_CATEGORIES  # a number of successes is a count
    return f"categorical({int(number)})" if 2 <= number <= most else "count"


def _base_support(site: Site) -> Any:
    """The support of single numbers of a site; `None` = it does not say."""
    return base_support(support_of(site))


def _wrong_values(name: str, got: str, remedy: str) -> str:
    return (
        f"the outcome {name!r} must be real numbers, counts 0, 1, 2, ..., or categories 0, 1, ..., n-1 with one n for "
        f"all trials; got {got}; {remedy}"
    )
