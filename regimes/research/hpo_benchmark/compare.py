"""Compare the same search methods on any recording of full networks."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from regimes.research.hpo_benchmark import figures
from regimes.research.hpo_benchmark.bench import ranked, searches, setup_of, tested_errors
from regimes.research.hpo_benchmark.comparisons import contrasts, contrasts_table
from regimes.research.hpo_benchmark.conclusions import conclusions
from regimes.research.hpo_benchmark.methods import OWN, compared, compared_contrasts
from regimes.research.hpo_benchmark.ranking_tables import ranking_table
from regimes.research.hpo_benchmark.recordings import Recording
from regimes.research.hpo_benchmark.scores import Scores
from regimes.research.hpo_benchmark.table import open_table
from regimes.research.hpo_benchmark.tables import methods_table, targets_table
from regimes.research.hpo_benchmark.timing import seconds_of_asking
from regimes.research.page import Page, Say

OTHER_SAMPLER = "gp"  # whose drawing of a setting is not recorded, and takes longer than TPE's


def compare(recording: Recording, path: Path, count: int, say: Say) -> Page:
    """Replay the compared methods on a recorded table; return the page.

    Args:
        recording: the recording.
        path: its table of full networks.
        count: searches of each method, paired by seed.
        say: reports progress.
    """
    table, methods = open_table(path), compared(recording.proxies)
    setup = setup_of(table, path.parent, with_map=False)
    asking = seconds_of_asking(setup.spec, OTHER_SAMPLER)
    setup = dataclasses.replace(setup, asking={OTHER_SAMPLER: asking})
    found, tested = searches(path, setup, methods, count, say), tested_errors(table, count)
    scores = Scores.of(found, tested, table.seed_noise())
    asked, ranks = contrasts(scores, compared_contrasts(recording.proxies)), ranked(table, say)
    tables = [methods_table(scores, setup, methods), contrasts_table(asked), targets_table(scores)]
    drawn = {
        "compare-best-so-far": figures.curves(
            found, tested, scores.target, dict(zip(found, figures.STYLES, strict=False))
        ),
        "compare-fidelity": figures.ranking_figure(ranks),
    }
    told = (
        f"Searches replayed on `{path.name}` ([README.md](README.md)); drawing a setting with a Gaussian process takes "
        f"{asking:.2f} s, measured now, with TPE {table.facts['asking']:.3f} s."
    )
    paragraphs = [told, *conclusions(scores, asked, OWN)]
    title = f"Searches compared on {recording.title}"
    return Page("compare", title, paragraphs, [*tables, ranking_table(ranks)], drawn, kind="bench")
