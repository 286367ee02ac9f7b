"""The demo's influential sequences mean something: they state the fact that is asked for.

For every demo query one of the top five of an unfiltered EK-FAC scan states the fact: the queries
were picked so, and this keeps it so. The same
figure for the gradient dot product and for TF-IDF alone shows what EK-FAC adds.
"""

from __future__ import annotations

import os

import pytest
import torch
from demo_facts import METHODS, FactRanks, measure


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> FactRanks:
    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)  # a real model, for once
    try:
        return measure(tmp_path_factory.mktemp("demo"))
    finally:
        torch.set_num_threads(threads)


def test_every_demo_query_has_its_fact_in_the_top_five(facts):
    ranks = {query: facts.ranks["ekfac"][query] for query in facts.demo}
    assert {query: rank for query, rank in ranks.items() if rank > 5} == {}


def test_ekfac_finds_more_than_the_gradient_dot_product(facts):
    for title, queries in (("demo", facts.demo), ("all", list(facts.stated))):
        found = {method: facts.found(method, queries) for method in METHODS}
        print(f"{title}: queries with their fact in the top five, of {len(queries)}: {found}")
        assert found["ekfac"] > found["identity"]
        assert found["tfidf"] > 0


def test_a_hit_is_no_accident(facts):
    """Few of thousands of sequences state a fact, so that five drawn at random seldom do."""
    assert max(facts.stated.values()) <= 8
    assert min(facts.stated.values()) >= 1
