"""Structure discovery: units and residual blocks leave a network while it trains (complexity-aware training).

The way of one training: `tracing` finds units and blocks (`anatomy`, `blocks`), `proving` tries them, `gates` switches
them at random, `estimators` say what each is worth, `complexity` and `course` how hard each is pressed, `search` moves
gates and weights, `conditions` and `living` decide who may leave, `removal` takes them out of a network and `shrinking`
of its training, `network` writes what is left.
"""
