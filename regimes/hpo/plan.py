"""Search plan: choose fidelities (optionally from a regime map), build and time them, narrow the space."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regimes.config.hpo import INTEGERS, Dimension, Hpo
from regimes.config.keys import digest
from regimes.config.recipe import Recipe
from regimes.errors import UserError
from regimes.experiment.atomic_files import DamagedFile, read_checked, write_checked
from regimes.experiment.context import ContextSpec, RunContext
from regimes.experiment.preflight import check_recipe
from regimes.hpo.build_fidelities import (
    ProxyBuilder,
    ProxyContext,
    facts_of,
    fidelity_from_facts,
    full_fidelity,
    option_fidelity,
    own_fidelity,
    partial_fidelity,
    proxy_fidelity,
    proxy_with_step_time,
)
from regimes.hpo.cost_filter import MAX_COST_SHARE, drop_slow, max_cost_share_for
from regimes.hpo.fidelities import Fidelity, Ladder, Segment, ladder_of
from regimes.hpo.map_guidance import MapGuidance, open_guidance
from regimes.hpo.search_space import recipe_with

MAP, PLAN = "map", "plan.json"  # subfolder of a map made for the search; file of the plan
DEFAULT_IMAGES = 0.5  # fraction of the images that the full network is trained on where no fidelity is given
EVIDENCE = (
    "replayed on digits, this takes a third of the time of TPE on full trainings and ends no worse; untested elsewhere"
)
Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """A search that is ready to run.

    Attributes:
        spec: the search's settings.
        space: the search space, narrowed by the map.
        ladder: the fidelities of a trial.
        map_guidance: the regime map's decisions; None without a map.
        priors: values to try first.
        notes: the decisions made, in words.
        device: device on which the fidelities were timed.
    """

    spec: Hpo
    space: dict[str, Dimension]
    ladder: Ladder
    map_guidance: MapGuidance | None
    priors: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]
    device: str = "cpu"


def context_of(spec: Hpo, device: str, folder: Path) -> RunContext:
    """Build data, model and device of a search, and check that they and the recipe fit together."""
    context = RunContext(ContextSpec.eager(spec.data, spec.model, device, folder))
    check_search(spec, context)
    return context


def check_search(spec: Hpo, context: RunContext) -> None:
    """Check before any work that the model, the batch sizes and the recipe of a search fit the data."""
    context.check_model()
    check_batches(spec, context)
    largest = extremes(spec)  # with batch sizes of the space: the recipe's own is not used then
    check_recipe(largest[0] if largest else spec.recipe, context)


def check_batches(spec: Hpo, context: RunContext) -> None:
    """Refuse a batch size that is larger than the training split.

    Raises:
        UserError: the largest batch size of the space or recipe exceeds the number of training images.
    """
    images = len(context.loaded.train.targets)
    largest = spec.space["batch_size"].ends[1] if "batch_size" in spec.space else spec.recipe.batch_size
    if largest > images:
        raise UserError(
            f"space.batch_size: {largest:g} is larger than the training set of {images} images; use a smaller one"
        )


def guidance_of(spec: Hpo, given: Path | None, folder: Path, workers: int, device: str, say: Say) -> MapGuidance | None:
    """Open the map of a search, or make one if the settings ask for it; None if the search uses no map.

    Args:
        spec: the search's settings.
        given: path of a run or grid; None: a map is made if the file has a table ``[map]``, unless it gives fidelities.
        folder: folder of the search; a map that is made is stored there and resumed.
        workers: number of processes that make the map.
        device: device, or devices of the processes, on which it is made.
        say: called with progress messages.
    """
    if given is not None:
        return open_guidance(given, spec.data, spec.model)
    if not spec.map.is_wanted or spec.ladder.is_explicit:
        return None
    from regimes.config.sweep_file import resolve_sweep
    from regimes.regime_map.run_adaptive import run_adaptive

    say("making a map first, to choose the densities of the proxies")
    sweep = resolve_sweep(map_sweep(spec), "[map]")
    done = run_adaptive(sweep, folder / MAP, budget=spec.map.budget or None, workers=workers, device=device)
    seconds = _total_seconds(folder / MAP)
    say(f"map: {done.cells[0]} of {done.cells[1]} cells, {seconds:.0f} s")
    return open_guidance(folder / MAP, spec.data, spec.model, seconds)


def _total_seconds(folder: Path) -> float:
    """Total seconds of all stages of a run, of earlier commands too."""
    records = (read_checked(path) for path in (folder / "records").glob("*/*.json"))
    return float(sum(record["seconds"] for record in records if record is not None))


def map_sweep(spec: Hpo) -> dict[str, Any]:
    """Return the sweep file of the map for a search, as a dict."""
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
    """Five learning rates over the range of the space (or around the recipe's)."""
    dimension = spec.space.get("learning_rate")
    low, high = dimension.ends if dimension else (spec.recipe.learning_rate / 10, spec.recipe.learning_rate * 4)
    between = [float(f"{low * (high / low) ** (each / 4):.3g}") for each in (1, 2, 3)]
    return {"learning_rate": sorted({low, *between, high})}


def plan(
    spec: Hpo,
    context: RunContext,
    map_guidance: MapGuidance | None,
    workers: int = 1,
    say: Say = lambda text: None,
    devices: int = 1,
    proxies: Sequence[RunContext] = (),
) -> Plan:
    """Choose the fidelities, build and time them, and narrow the space by the map.

    Args:
        spec: the search's settings.
        context: the full network's data, model and device.
        map_guidance: the regime map; None without one.
        workers: number of processes of the search.
        say: called with each decision, in words.
        devices: number of devices of the processes.
        proxies: contexts of smaller networks of the user's own, in place of proxies.

    Raises:
        UserError: the model cannot be reduced to a density, or a part of the images is smaller than a batch.
    """
    started, notes = time.perf_counter(), list[str]()
    asked, batch, sharing = spec.ladder, max(1, spec.batch // workers), math.ceil(workers / devices)
    recipe = recipe_with(spec.recipe, {})
    make = ProxyBuilder(context, recipe, asked.proxy, asked.epochs, batch, spec.seed, sharing, extremes(spec))
    full = full_fidelity(make)
    rungs = [*_fidelities(spec, make, map_guidance, proxies, full, notes), full]
    by_hand = map_guidance is None or asked.is_explicit
    rungs = drop_slow(rungs, notes, MAX_COST_SHARE if by_hand else max_cost_share_for(spec))
    ladder = ladder_of(rungs, asked.reports, time.perf_counter() - started, asked.proxy_reports)
    space, priors = _narrowed_space(spec, map_guidance, rungs[0], notes)
    for each in notes:
        say(each)
    return Plan(spec, space, ladder, map_guidance, priors, tuple(notes), context.spec.device)


def _narrowed_space(
    spec: Hpo, map_guidance: MapGuidance | None, cheapest: Fidelity, notes: list[str]
) -> tuple[dict[str, Dimension], tuple[dict[str, Any], ...]]:
    """The search space with the range of SAM rho that the map selects, and the first values to try."""
    if map_guidance is None or "sam_rho" not in spec.space:
        return dict(spec.space), ()
    is_proxy = isinstance(cheapest.context, ProxyContext)
    density = cheapest.density if is_proxy else min(map_guidance.chart.densities)
    narrowed = map_guidance.rho(density, spec.space["sam_rho"], recipe_with(spec.recipe, {}))
    if narrowed is None:
        return dict(spec.space), ()
    dimension, best, why = narrowed
    notes.append(why)
    return {**spec.space, "sam_rho": dimension}, ({"sam_rho": best},)


def extremes(spec: Hpo) -> tuple[Recipe, ...]:
    """Return the recipe that needs most memory, if the space varies batch size or rho: the largest of both.

    Engines are also tested on it.
    """
    ends = {name: each.ends[1] for name, each in spec.space.items() if name in ("batch_size", "sam_rho")}
    whole = {name: int(value) if name in INTEGERS else value for name, value in ends.items()}
    return (recipe_with(spec.recipe, whole),) if whole else ()


def _fidelities(
    spec: Hpo,
    make: ProxyBuilder,
    map_guidance: MapGuidance | None,
    proxies: Sequence[RunContext],
    full: Fidelity,
    notes: list[str],
) -> list[Fidelity]:
    """The fidelities below the full training: every network on every fraction of the images, cheapest first."""
    asked = spec.ladder
    fractions = asked.images or (1.0,)
    if not (asked.is_explicit or proxies or map_guidance or asked.epochs < 1):
        fractions = _default_images(make, notes)
    found = [
        rung
        for fraction in sorted(fractions)
        for rung in _networks(spec, make.on_images(fraction), map_guidance, proxies, full, notes)
    ]
    return sorted(found, key=lambda rung: rung.training_seconds) if asked.images else found


def _default_images(make: ProxyBuilder, notes: list[str]) -> tuple[float, ...]:
    share = f"{100 * DEFAULT_IMAGES:g} % of the images"
    try:
        make.on_images(DEFAULT_IMAGES)
    except UserError:
        notes.append(f"no fidelity given, and {share} are less than a batch: every trial is a full training")
        return (1.0,)
    notes.append(f"no fidelity given: trials are the full network on {share}, the best are trained in full; {EVIDENCE}")
    return (DEFAULT_IMAGES,)


def _networks(
    spec: Hpo,
    make: ProxyBuilder,
    map_guidance: MapGuidance | None,
    proxies: Sequence[RunContext],
    full: Fidelity,
    notes: list[str],
) -> list[Fidelity]:
    """The networks on the images of a builder: proxies, or the full network on fewer images or epochs."""
    asked = spec.ladder
    if proxies:
        rungs = [own_fidelity(make, own, number) for number, own in enumerate(proxies)]
        return _by_time(rungs, "proxies: two functions")
    if asked.option is not None:
        return _option_rungs(asked.option, asked.values or (), make, notes)
    if asked.step_time is not None:
        return [proxy_with_step_time(make, share, full) for share in sorted(asked.step_time)]
    densities = asked.densities
    if densities is None:
        densities = _trusted(map_guidance, asked.most, notes) if map_guidance and not asked.is_explicit else (1.0,)
    rungs = [proxy_fidelity(make, density) for density in sorted(densities) if density < 1]
    if 1 in densities and (make.images < 1 or make.epochs < full.epochs):
        rungs.append(partial_fidelity(make, full))
    return rungs


def _trusted(map_guidance: MapGuidance, most: int, notes: list[str]) -> tuple[float, ...]:
    """The smallest densities that the map trusts, at most so many."""
    measured = map_guidance.densities()
    for trust in measured:
        notes.append(f"density {trust.density:g}: {'trusted' if trust.trusted else 'not trusted'}, {trust.reason}")
    densities = tuple(trust.density for trust in measured if trust.trusted)[:most]
    if not densities:
        notes.append("the map trusts no density: all trials use the full network")
    return densities


def _by_time(rungs: Sequence[Fidelity], what: str) -> list[Fidelity]:
    """Networks given by hand, the fastest first; refused if two have the same size."""
    if len({rung.name for rung in rungs}) < len(rungs):
        raise UserError(f"{what} make networks of one size; remove one of them")
    return sorted(rungs, key=lambda rung: rung.seconds)


def _option_rungs(option: str, values: Sequence[Any], make: ProxyBuilder, notes: list[str]) -> list[Fidelity]:
    found = [option_fidelity(make, option, value) for value in values]
    rungs = _by_time(found, f"ladder.values: two values of {option}")
    for rung in rungs:
        notes.append(f"{option} = {rung.size[option]}: {rung.density:.3g} of the full network's parameters")
    return rungs


# -- storage in the folder, for other processes and later commands -----------------------------------------------------


def save_plan(plan: Plan, folder: Path) -> None:
    """Write the plan into a folder, unless another process already did; then that plan applies."""
    guidance = plan.map_guidance
    guide = {"name": guidance.name, "seconds": guidance.seconds} if guidance else None
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
    write_checked(folder / PLAN, content, keep_existing=True)


def load_plan(spec: Hpo, context: RunContext, folder: Path) -> Plan | None:
    """Read the plan of a folder's search; None if there is none.

    Raises:
        UserError: the file is damaged, or its search differs in space, ladder, data, model or recipe.
    """
    try:
        content = read_checked(folder / PLAN)
    except DamagedFile as error:
        raise UserError(f"{error}; remove it to plan again (trials are kept)") from error
    if content is None:
        return None
    if content["key"] != _key(spec):
        raise UserError(
            f"{folder}: holds a search with another space, ladder, data, model or recipe; use another --out "
            "or name, or undo the change"
        )
    guide = content["guide"]
    rungs = tuple(fidelity_from_facts(facts, context, spec.recipe, spec.seed) for facts in content["rungs"])
    stretches = tuple(Segment(**each) for each in content["stretches"])
    return Plan(
        spec,
        {name: Dimension.model_validate(_without_none(each)) for name, each in content["space"].items()},
        Ladder(rungs, stretches, content["seconds"]),
        open_guidance(guide["name"], spec.data, spec.model, guide["seconds"]) if guide else None,
        tuple(content["priors"]),
        tuple(content["notes"]),
        content["device"],
    )


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {name: each for name, each in values.items() if each is not None}


def _key(spec: Hpo) -> str:
    """Hash of the settings on which values depend; number of trials, batch, sampler and stopper may change."""
    content = spec.model_dump(mode="json", exclude={"trials", "final_seeds", "study", "name", "batch"})
    if spec.objective == "full":
        del content["objective"], content["pruned"]  # younger than the first searches
    for name in ("option", "values", "images"):
        if content["ladder"][name] is None:
            del content["ladder"][name]  # so that the keys of other searches stay
    content["ladder"]["shift"] = {}  # a former option, kept so that old searches can be resumed
    return digest(content)
