"""Searches whose proxies are the same model with another value of an option."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from searches import spec
from torch import nn

from regimes import UserError
from regimes.config.hpo_file import resolve_hpo
from regimes.hpo.build_fidelities import facts_of, fidelity_from_facts
from regimes.hpo.plan import _key, context_of, plan
from regimes.hpo.search import search
from regimes.hpo.search_options import SearchOptions

TOKENS: dict[str, Any] = {
    "name": "tokens",
    "data": {"name": "own_tokens:data"},
    "model": {"name": "own_tokens:net", "width": 16},
    "recipe": {"epochs": 4, "batch_size": 16, "augment": "none"},
    "space": {"learning_rate": {"low": 0.01, "high": 0.3, "log": True}},
    "ladder": {"option": "width", "values": [4], "reports": [], "proxy_reports": []},
    "study": {"sampler": "random", "stopper": "none", "pattern": "ladder"},
    "trials": 3,
    "batch": 3,
    "final_seeds": 1,
}


def slow_if_large(context: Any, *_: object) -> float:
    return float(sum(each.numel() for each in context.new_model(0).parameters()))


def test_tokens_by_name_are_searched_on_narrower_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regimes.hpo.build_fidelities.seconds_per_image", slow_if_large)
    found = search(resolve_hpo(TOKENS), SearchOptions(tmp_path))
    proxy, full = found["ladder"]
    assert proxy["size"] == {"width": 4}
    assert proxy["density"] == pytest.approx(parameters(4) / parameters(16))
    assert full["density"] == 1.0
    assert [rung["trials"] for rung in found["savings"]["rungs"]] == [3, 3]
    assert found["failed"] == []
    assert 0 <= found["winner"]["test_error"] <= 1
    again = search(resolve_hpo(TOKENS), SearchOptions(tmp_path))  # resumed: nothing is left to do
    assert again["winner"] == found["winner"]


def parameters(width: int) -> int:
    """Of the token classifier by hand: embedding, attention, feed-forward, two norms, head."""
    attention = 4 * width * width + 4 * width
    return (
        8 * width
        + attention
        + (2 * width * width + 2 * width)
        + (2 * width * width + width)
        + 4 * width
        + (2 * width + 2)
    )


def test_its_rungs_are_the_same_in_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regimes.hpo.build_fidelities.seconds_per_image", slow_if_large)
    asked = resolve_hpo({**TOKENS, "ladder": {"option": "width", "values": [8, 4]}})
    context = context_of(asked, "cpu", tmp_path)
    rungs = plan(asked, context, None).ladder.rungs
    assert [rung.size for rung in rungs] == [{"width": 4}, {"width": 8}, {}]
    for rung in rungs:
        again = fidelity_from_facts(facts_of(rung), context, asked.recipe)
        assert facts_of(again) == facts_of(rung)
        assert again.context.identity == rung.context.identity
        head = again.context.new_model(0).get_submodule("head")
        assert isinstance(head, nn.Linear)
        assert head.in_features == rung.size.get("width", 16)


def test_keys_of_other_searches_do_not_know_of_it() -> None:
    assert _key(spec()) != _key(spec(ladder={"densities": None, "option": "widths", "values": [[8, 8]]}))


@pytest.mark.parametrize(
    ("ladder", "line"),
    [
        ({"option": "width"}, "ladder: option and values go together"),
        ({"values": [4]}, "ladder: option and values go together"),
        ({"option": "width", "values": []}, "ladder: option and values go together"),
        ({"option": "width", "values": [4], "densities": [0.1]}, "ladder.densities: cannot be combined with option"),
        ({"option": "width", "values": [4], "proxy": "narrowed"}, "ladder.proxy: cannot be combined with option"),
        ({"option": "width", "values": [4, 4]}, "ladder.values: duplicate value"),
        ({"option": "width", "values": [4, 16]}, "ladder.values: 16 is the full network's"),
        ({"option": "wdth", "values": [4]}, "ladder.option: model 'own_tokens:net' has no option 'wdth'.*width"),
    ],
)
def test_what_is_no_option_is_refused(ladder: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line):
        resolve_hpo({**TOKENS, "ladder": ladder})


@pytest.mark.parametrize(
    ("values", "line"),
    [([32], "width = 32 makes a network of"), ([5], r"\[model\] name = 'own_tokens:net' raised AssertionError")],
)
def test_values_that_make_no_smaller_network_are_refused(tmp_path: Path, values: list[int], line: str) -> None:
    asked = resolve_hpo({**TOKENS, "ladder": {"option": "width", "values": values}})
    with pytest.raises(UserError, match=line):
        plan(asked, context_of(asked, "cpu", tmp_path), None)
