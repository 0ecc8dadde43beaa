"""From what is asked to a ladder that stands: the map, the rungs it trusts, what they cost."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regimes.config.hpo import WHOLE, Dimension, Hpo
from regimes.config.keys import digest
from regimes.config.recipe import Recipe
from regimes.errors import UserError
from regimes.experiment.atomic_files import DamagedFile, read_checked, write_checked
from regimes.experiment.context import ContextSpec, RunContext, numerics_of
from regimes.hpo.build_fidelities import (
    ProxyBuilder,
    facts_of,
    fidelity_from_facts,
    full_fidelity,
    proxy_fidelity,
    proxy_with_step_time,
)
from regimes.hpo.cost_filter import SLOW, drop_slow, max_cost_share_for
from regimes.hpo.fidelities import Fidelity, Ladder, Segment, ladder_of
from regimes.hpo.map_guidance import MapGuidance, open_guide
from regimes.hpo.search_space import recipe_with

MAP, PLAN = "map", "plan.json"  # a map that is made for a search; what was planned
Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """A search, ready to begin.

    Attributes:
        spec: what is asked.
        space: with what the map narrows.
        ladder: that trials climb.
        guide: the map's answers; None without one.
        priors: values to try first.
        notes: what was decided, in words.
        device: on which its rungs were timed.
    """

    spec: Hpo
    space: dict[str, Dimension]
    ladder: Ladder
    guide: MapGuidance | None
    priors: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]
    device: str = "cpu"


def context_of(spec: Hpo, device: str, folder: Path) -> RunContext:
    """Data, model and device; checks that the model fits the data."""
    context = RunContext(ContextSpec(spec.data, spec.model, device, numerics_of(device, "eager", "eager"), str(folder)))
    context.check_model()
    check_batches(spec, context)
    return context


def check_batches(spec: Hpo, context: RunContext) -> None:
    """Refuse batches that the training split cannot fill."""
    images = len(context.loaded.train.targets)
    largest = spec.space["batch_size"].ends[1] if "batch_size" in spec.space else spec.recipe.batch_size
    if largest > images:
        raise UserError(
            f"space.batch_size: {largest:g} is larger than the training set of {images} images; take a smaller one"
        )


def guide_of(spec: Hpo, given: Path | None, folder: Path, workers: int, device: str, say: Say) -> MapGuidance | None:
    """The map to ask: the one given, else one made now (or in an earlier command), else none."""
    if given is not None:
        return open_guide(given, spec.data, spec.model)
    if not spec.map.make or spec.ladder.by_hand:
        return None
    from regimes.config.sweep_file import resolve
    from regimes.regime_map.run_adaptive import run_adaptive

    say("making a map first: it decides on which proxies to trust")
    sweep = resolve(map_sweep(spec), "[map]")
    done = run_adaptive(sweep, folder / MAP, budget=spec.map.budget or None, workers=workers, device=device)
    seconds = _paid(folder / MAP)
    say(f"map: {done.cells[0]} of {done.cells[1]} cells, {seconds:.0f} s")
    return open_guide(folder / MAP, spec.data, spec.model, seconds)


def _paid(folder: Path) -> float:
    """Seconds that all stages of a run took, whenever and by whomever they were done."""
    records = (read_checked(path) for path in (folder / "records").glob("*/*.json"))
    return float(sum(record["seconds"] for record in records if record is not None))


def map_sweep(spec: Hpo) -> dict[str, Any]:
    """The sweep file of a map for a search, as a plain dict."""
    epochs = max(2, round(spec.map.epochs * spec.recipe.epochs))
    recipe = {name: each for name, each in spec.recipe.model_dump().items() if name != "stop"}
    recipe |= {"epochs": epochs, "last": min(spec.recipe.last, epochs), "milestones": list(spec.recipe.milestones)}
    recipe = {name: each for name, each in recipe.items() if each is not None}
    return {
        "name": f"{spec.name}-map",
        "dense_seeds": spec.map.dense_seeds,
        "retrain_seeds": 2,
        "data": spec.data.model_dump(),
        "model": spec.model.model_dump(),
        "recipe": recipe,
        "temperature": dict(spec.map.temperature) or _temperature(spec),
        "load": {"density": list(spec.map.density)},
        "measure": {"metrics": ["error", "lmc", "cka"]},
    }


def _temperature(spec: Hpo) -> dict[str, list[float]]:
    """Five values of the learning rate over the range that is searched (or about the recipe's)."""
    dimension = spec.space.get("learning_rate")
    low, high = dimension.ends if dimension else (spec.recipe.learning_rate / 10, spec.recipe.learning_rate * 4)
    between = [float(f"{low * (high / low) ** (each / 4):.3g}") for each in (1, 2, 3)]
    return {"learning_rate": sorted({low, *between, high})}


def plan(
    spec: Hpo, context: RunContext, guide: MapGuidance | None, workers: int = 1, say: Say = lambda text: None
) -> Plan:
    """Choose the rungs, build and time them, and let the map narrow the space.

    Raises:
        UserError: a density that this model cannot have.
    """
    started = time.perf_counter()
    middle = recipe_with(spec.recipe, {})
    batch = max(1, spec.batch // workers)
    asked = spec.ladder
    make = ProxyBuilder(
        context, middle, asked.proxy, asked.epochs, batch, spec.seed, workers, extremes(spec), dict(asked.shift.items())
    )
    full = full_fidelity(make)
    notes: list[str] = []
    rungs = [*_proxies(spec, make, guide, full, notes), full]
    rungs = drop_slow(rungs, notes, SLOW if guide is None or asked.by_hand else max_cost_share_for(spec))
    ladder = ladder_of(rungs, asked.reports, time.perf_counter() - started, asked.proxy_reports)
    space, priors = dict(spec.space), []
    if guide is not None and "sam_rho" in space:
        sparse = rungs[0].density if len(rungs) > 1 else min(guide.chart.axes[-1].values)
        told = guide.rho(sparse, space["sam_rho"], middle)
        if told is not None:
            space["sam_rho"], best, why = told
            priors.append({"sam_rho": best})
            notes.append(why)
    for each in notes:
        say(each)
    return Plan(spec, space, ladder, guide, tuple(priors), tuple(notes), context.spec.device)


def extremes(spec: Hpo) -> tuple[Recipe, ...]:
    """What is hardest on an engine and on the memory: the largest batch, with SAM and smoothed labels where they are
    searched. Whether networks stack is tried on it too."""
    ends = {name: each.ends[1] for name, each in spec.space.items() if name in ("batch_size", "sam_rho")}
    whole = {name: int(value) if name in WHOLE else value for name, value in ends.items()}
    return (recipe_with(spec.recipe, whole),) if whole else ()


def _proxies(
    spec: Hpo, make: ProxyBuilder, guide: MapGuidance | None, full: Fidelity, notes: list[str]
) -> list[Fidelity]:
    asked = spec.ladder
    if asked.step_time is not None:
        return [proxy_with_step_time(make, share, full) for share in sorted(asked.step_time)]
    densities = asked.densities
    if densities is None and guide is not None:
        judged = guide.judged()
        densities = tuple(each.density for each in judged if each.trusted)[: asked.most]
        for each in judged:
            verdict = "trusted" if each.trusted else "not trusted"
            notes.append(f"density {each.density:g}: {verdict}, {each.reason}")
        if not densities:
            notes.append("the map trusts no proxy: every trial is of the full network")
    if densities is None:
        densities = (0.1,)
        notes.append("no map and no densities: one proxy of density 0.1, untested")
    return [proxy_fidelity(make, density) for density in sorted(densities) if density < 1]


# -- kept in the folder: another process, or the same command later, climbs the very same ladder -----------------------


def save_plan(plan: Plan, folder: Path) -> None:
    """Write the plan down, unless another command was quicker: then that one's holds."""
    guide = {"name": plan.guide.name, "seconds": plan.guide.seconds} if plan.guide else None
    content = {
        "key": _key(plan.spec),
        "space": {name: each.model_dump() for name, each in plan.space.items()},
        "rungs": [facts_of(rung) for rung in plan.ladder.rungs],
        "stretches": [dataclasses.asdict(each) for each in plan.ladder.stretches],
        "seconds": plan.ladder.seconds,
        "guide": guide,
        "priors": list(plan.priors),
        "notes": list(plan.notes),
        "device": plan.device,
    }
    write_checked(folder / PLAN, content, first=True)


def load_plan(spec: Hpo, context: RunContext, folder: Path) -> Plan | None:
    """The plan that a folder's search was begun with; None where there is none.

    Raises:
        UserError: it was of something else.
    """
    try:
        content = read_checked(folder / PLAN)
    except DamagedFile as error:
        raise UserError(f"{error}; remove it, and the search plans anew (its trials stay)") from error
    if content is None:
        return None
    if content["key"] != _key(spec):
        raise UserError(
            f"{folder}: holds a search with another space, ladder, data, model or recipe; take another --out "
            "or name, or put the file back as it was"
        )
    guide = content["guide"]
    rungs = tuple(fidelity_from_facts(facts, context, spec.recipe) for facts in content["rungs"])
    stretches = tuple(Segment(**each) for each in content["stretches"])
    return Plan(
        spec,
        {name: Dimension.model_validate(_bare(each)) for name, each in content["space"].items()},
        Ladder(rungs, stretches, content["seconds"]),
        open_guide(guide["name"], spec.data, spec.model, guide["seconds"]) if guide else None,
        tuple(content["priors"]),
        tuple(content["notes"]),
        content["device"],
    )


def _bare(values: dict[str, Any]) -> dict[str, Any]:
    return {name: each for name, each in values.items() if each is not None}


def _key(spec: Hpo) -> str:
    """What a search's values rest on; how many trials there are, and who chooses them, may change."""
    return digest(spec.model_dump(mode="json", exclude={"trials", "final_seeds", "study", "name", "batch"}))
