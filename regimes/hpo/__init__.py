"""Hyperparameter search with cheaper trainings as low fidelities of an Optuna study.

A trial is trained on small proxies (`proxies`) or on a part of the images first, the best in full; fidelities are given
by hand or chosen by a regime map (`map_guidance`). `plan` builds and times them, `trial_runner` trains trials and
reports them to the study, `promotion` trains the best in full as the search goes, `search` does a whole search as
``regimes hpo`` does. `objective` and `custom_loop` serve Optuna studies of your own.
"""

PROXIES = {
    "narrowed": "regimes.hpo.proxies:narrowed",
    "channels-magnitude": "regimes.hpo.proxies:magnitude",
    "channels-saliency": "regimes.hpo.proxies:saliency",
    "channels-random": "regimes.hpo.proxies:random_channels",
    "discovered": "regimes.hpo.proxies:discovered",
}

SAMPLERS = {
    "tpe": "regimes.hpo.samplers:tpe",
    "cma-es": "regimes.hpo.samplers:cma_es",
    "gp": "regimes.hpo.samplers:gp",
    "random": "regimes.hpo.samplers:random",
    "map": "regimes.hpo.pruned.map_sampler:MapSampler",
}

STOPPERS = {
    "none": "regimes.hpo.stoppers:none",
    "median": "regimes.hpo.stoppers:median",
    "percentile": "regimes.hpo.stoppers:percentile",
    "halving": "regimes.hpo.stoppers:halving",
    "hyperband": "regimes.hpo.stoppers:hyperband",
}
