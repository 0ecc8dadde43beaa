"""Hyperparameters searched on small proxies: a ladder of densities that the map trusts, any Optuna study climbs it."""

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
}

STOPPERS = {
    "none": "regimes.hpo.stoppers:none",
    "median": "regimes.hpo.stoppers:median",
    "percentile": "regimes.hpo.stoppers:percentile",
    "halving": "regimes.hpo.stoppers:halving",
    "hyperband": "regimes.hpo.stoppers:hyperband",
}
