"""The physics: what one task computes, how two partial results are added, and what the axes are.

Owns selection, axes and histograms. Knows nothing of managers, workers or files' whereabouts: the same
functions run inside tasks on the workers and, for the check at the end, in one plain process.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypedDict

import numpy as np
import numpy.typing as npt

TREE = "Events"
MUON_BRANCHES = ("Muon_pt", "Muon_eta", "Muon_phi", "Muon_mass", "Muon_charge")
# Older and newer NanoAOD both have one of these.
MET_BRANCHES = ("MET_pt", "PuppiMET_pt", "PFMET_pt")
WEIGHT_BRANCH = "genWeight"

MUON_ETA_MAX = 2.4  # what the CMS muon system covers
MUON_PT_MIN_GEV = 3.0

# From the light resonances to above the Z boson; logarithmic because the spectrum spans three decades.
MASS_EDGES_GEV: npt.NDArray[np.float64] = np.geomspace(0.25, 300.0, 31)
MET_EDGES_GEV: npt.NDArray[np.float64] = np.linspace(0.0, 200.0, 21)


class Variation(NamedTuple):
    """One way of looking at the same events; an analysis reads everything once per systematic variation."""

    name: str
    muon_scale: float = 1.0
    met_scale: float = 1.0


# The sizes are round numbers for show, not CMS calibrations.
VARIATIONS = (
    Variation("nominal"),
    Variation("muon scale up", muon_scale=1.01),
    Variation("muon scale down", muon_scale=0.99),
    Variation("MET scale up", met_scale=1.05),
    Variation("MET scale down", met_scale=0.95),
)


BY_NAME = {variation.name: variation for variation in VARIATIONS}


class Histograms(TypedDict):
    """Partial result for one data set under one variation. Arrays: row 0 sum of weights, row 1 sum of squares.

    A plain dict at run time, so that a pickled result carries numbers only and no class.
    """

    entries: int
    pairs: int
    simulated: bool
    mass: npt.NDArray[np.float64]
    met: npt.NDArray[np.float64]


# (data set, variation name) -> histograms
Partial = dict[tuple[str, str], Histograms]


class Events(NamedTuple):
    """The branches of one range of entries; ``muons`` and ``met`` are awkward and numpy arrays in GeV."""

    muons: Any
    met: npt.NDArray[np.float64]
    weights: npt.NDArray[np.float64]
    simulated: bool


def analyse(path: str, dataset: str, start: int, stop: int, variation_name: str) -> Partial:
    """What a map task does: fill the histograms of one range of entries.

    Args:
        path: a ROOT file with a NanoAOD tree.
        dataset: the key under which the result is kept.
        start, stop: first entry, and one past the last.
        variation_name: one of VARIATIONS.

    Returns:
        A partial result with one key.

    Raises:
        ValueError: the file has no muon or missing-energy branches.
    """
    return {(dataset, variation_name): histograms(load(path, start, stop), BY_NAME[variation_name])}


def load(path: str, start: int, stop: int) -> Events:
    """Read the few branches that the analysis needs."""
    import awkward as ak
    import uproot

    with uproot.open(path) as file:
        tree = file[TREE]
        present = set(tree.keys())
        met_branch = next((name for name in MET_BRANCHES if name in present), None)
        if met_branch is None or not present.issuperset(MUON_BRANCHES):
            wanted = f"{', '.join(MUON_BRANCHES)} and one of {', '.join(MET_BRANCHES)}"
            raise ValueError(f"{path}: not usable here: the tree {TREE} needs the branches {wanted}")
        simulated = WEIGHT_BRANCH in present
        names = [*MUON_BRANCHES, met_branch, *([WEIGHT_BRANCH] if simulated else [])]
        # One branch at a time: tree.arrays() first looks at each of a file's 1,600 branches.
        arrays = {name: tree[name].array(entry_start=start, entry_stop=stop) for name in names}
    # Only the sign of a generator weight: its size is the cross section, of which 40 events say nothing.
    weights = np.sign(ak.to_numpy(arrays[WEIGHT_BRANCH])) if simulated else np.ones(stop - start)
    muons = ak.zip({name.removeprefix("Muon_"): arrays[name] for name in MUON_BRANCHES})
    return Events(muons, ak.to_numpy(arrays[met_branch]).astype(np.float64), weights.astype(np.float64), simulated)


def histograms(events: Events, variation: Variation) -> Histograms:
    """Select muons, pair them, fill."""
    import awkward as ak

    muons = ak.with_field(events.muons, events.muons.pt * variation.muon_scale, "pt")
    muons = muons[(muons.pt > MUON_PT_MIN_GEV) & (abs(muons.eta) < MUON_ETA_MAX)]
    has_pair, mass = leading_pair_mass(muons)
    return Histograms(
        entries=len(events.met),
        pairs=len(mass),
        simulated=events.simulated,
        mass=fill(mass, events.weights[has_pair], MASS_EDGES_GEV),
        met=fill(events.met * variation.met_scale, events.weights, MET_EDGES_GEV),
    )


def leading_pair_mass(muons: Any) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
    """Mass of the pair of opposite charge that comes first when muons are ordered by momentum, as NanoAOD's are.

    Args:
        muons: per event, records with pt (GeV), eta, phi, mass (GeV), charge.

    Returns:
        Which events have such a pair, and the masses in GeV of those that do.
    """
    import awkward as ak

    pairs = ak.combinations(muons, 2, fields=["one", "two"])
    pairs = pairs[pairs.one.charge != pairs.two.charge]
    has_pair = ak.to_numpy(ak.num(pairs) > 0)
    pair = pairs[has_pair][:, 0] if has_pair.any() else None
    if pair is None:
        return has_pair, np.empty(0)
    energy = np.zeros(len(pair))
    momentum = np.zeros((3, len(pair)))
    for muon in (pair.one, pair.two):
        pt, eta, phi, mass = (ak.to_numpy(muon[name]).astype(np.float64) for name in ("pt", "eta", "phi", "mass"))
        p = np.stack([pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta)])
        momentum += p
        energy += np.sqrt((p**2).sum(axis=0) + mass**2)
    return has_pair, np.sqrt(np.maximum(energy**2 - (momentum**2).sum(axis=0), 0.0))


def fill(
    values: npt.NDArray[np.float64], weights: npt.NDArray[np.float64], edges: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Weighted histogram; what lies outside the axis is counted in the first or last bin, so nothing is lost."""
    inside = np.clip(values, edges[0], np.nextafter(edges[-1], 0.0))
    sums = [np.histogram(inside, bins=edges, weights=w)[0] for w in (weights, weights**2)]
    return np.stack(sums).astype(np.float64)


def add(parts: Iterable[Partial]) -> Partial:
    """Sum of partial results; the weights are +1 and -1, so the sum is exact in any order."""
    total: Partial = {}
    for part in parts:
        for key, new in part.items():
            old = total.get(key)
            total[key] = new if old is None else _sum(old, new)
    return total


def _sum(a: Histograms, b: Histograms) -> Histograms:
    return Histograms(
        entries=a["entries"] + b["entries"],
        pairs=a["pairs"] + b["pairs"],
        simulated=a["simulated"],
        mass=a["mass"] + b["mass"],
        met=a["met"] + b["met"],
    )


def merge_files(names: Sequence[str]) -> Partial:
    """What a merging task does: add the partial results in the files of its sandbox."""
    parts = []
    for name in names:
        with open(name, "rb") as file:
            parts.append(pickle.load(file))
    return add(parts)


def equal(one: Partial, other: Partial) -> bool:
    """Whether two results are identical in every bin."""
    return one.keys() == other.keys() and all(
        a["entries"] == b["entries"]
        and a["pairs"] == b["pairs"]
        and np.array_equal(a["mass"], b["mass"])
        and np.array_equal(a["met"], b["met"])
        for a, b in ((one[key], other[key]) for key in one)
    )
