"""Tabular benchmark of hyperparameter searches with and without proxies.

Settings are trained once and recorded as tables; every search method is then replayed on a table and scored. A
recording (``recordings``) has a table for each objective: full networks at several fidelities, and networks that are
pruned and retrained.

Full: ``fidelities`` (what is trained) -> ``record`` -> ``table`` -> ``replay_trainer``, ``pool_sampler``, ``methods``
-> ``scores``, ``ranking_quality``, ``fidelity_by_regime`` -> ``tables``, ``figures``; ``live_check`` trains some of the
searches for comparison. Pruned: ``record_pruned`` -> ``pruned_table`` -> ``pruned_page``.
"""

RECORDINGS = {
    "digits": "regimes.research.hpo_benchmark.recordings:DIGITS",
    "cifar10": "regimes.research.hpo_benchmark.recordings:CIFAR10",
    "text": "regimes.research.hpo_benchmark.recordings:TEXT",
}

HPO_STUDIES = {
    "stoppers": "regimes.research.hpo_benchmark.stoppers_study:study",
    "recording": "regimes.research.hpo_benchmark.record_study:study",
}
