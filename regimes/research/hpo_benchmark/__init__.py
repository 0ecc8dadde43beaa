"""Tabular benchmark of hyperparameter searches with and without proxies.

Settings are trained once and recorded as a table; every search method is then replayed on the table and scored.

``fidelities`` (what is trained) -> ``record`` -> ``table`` -> ``replay_trainer``, ``pool_sampler``, ``methods`` ->
``scores``, ``ranking_quality``, ``fidelity_by_regime`` -> ``tables``, ``figures``; ``live_check`` trains some of the
searches for comparison.
"""

HPO_STUDIES = {
    "stoppers": "regimes.research.hpo_benchmark.stoppers_study:study",
    "recording": "regimes.research.hpo_benchmark.record_study:study",
}
