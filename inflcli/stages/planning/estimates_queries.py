"""The cost of the stages that have to do with queries: `precondition`, `scan`, `attribute`."""

from __future__ import annotations

from collections.abc import Mapping

from inflcli.model.tracked import group_names
from inflcli.stages.compression import FIRST_RANK, queries_a_chunk
from inflcli.stages.planning import flops
from inflcli.stages.planning.estimates import FILE_BYTES, Estimate, bases_bytes, factor_bytes
from inflcli.stages.planning.rates import LOGITS_HELD, Rates, most_columns
from inflcli.stages.planning.refining import refine_bytes, refine_flops
from inflcli.stages.planning.routes import Routed
from inflcli.stages.planning.task import Reading, Task
from inflcli.stages.precondition import LARGEST_CHUNK

_COMPRESSED = 0.94
"""Bytes on disk of zarr's chunks of scores, against the numbers' own."""
_TOP = 6.2
"""Bytes on disk of one of the top sequences: its number, which compresses well, and its score."""
_QUERY_JSON, _QUERY_JSON_MODULE = 700, 100
"""Bytes of what queries.json says of a query, and of a module of it."""


def precondition(task: Task, rates: Rates) -> Estimate:
    """`precondition`: the factors are held, and as many queries at a time as fit beside them."""
    modules, config = task.outline.modules, task.config.precondition
    tokens = [len(query.tokens) for query in task.encoded]
    work = flops.query_flops(task, modules, tokens) * task.queries / len(tokens)
    whole = config.rank is None and config.keep is None
    numbers = sum(
        m.parameters if whole else rates.columns[m.name] * (m.inputs + m.outputs) for m in modules
    )
    json_bytes = _QUERY_JSON + _QUERY_JSON_MODULE * len(modules)
    owners = 0.0 if whole else 8 * sum(rates.columns.values())
    disk = task.queries * (numbers * task.product + owners + json_bytes)
    disk += (FILE_BYTES + 300) * len(modules)
    parts = {
        "start": rates.start,
        "factors": (factor_bytes(task) if config.curvature != "identity" else 0.0) / rates.read,
        "queries": work / rates.speed["queries"],
        "disk": disk / rates.digest,
    }
    memory = rates.base + inverses_bytes(task) + chunk_bytes(task, rates.columns)
    memory += rates.working["queries"]
    if config.refine:
        more = refine_flops(task, modules)
        parts["refine"], work = more / rates.speed["refine"], work + more
        # The bases are float32 here, however fast the other products are.
        bases = inverses_bytes(task) * task.element // task.product
        memory = max(memory, rates.base + bases + refine_bytes(task) + LOGITS_HELD)
    return Estimate("precondition", work, parts, memory, disk, rates.bounded)


def inverses_bytes(task: Task) -> int:
    """The bases, and Λ + λ, of all modules."""
    if task.config.fit.curvature == "identity":
        return 0
    modules = task.outline.modules
    return bases_bytes(task, modules) + task.element * sum(m.parameters for m in modules)


def chunk_bytes(task: Task, columns: Mapping[str, float]) -> float:
    """Of the queries that are worked on together: their rows, and the components found."""
    config, modules = task.config.precondition, task.outline.modules
    longest = max(len(query.tokens) for query in task.encoded)
    memory = min(LARGEST_CHUNK, task.memory)
    fitting = queries_a_chunk(modules, longest, config, task.element, memory)
    sizes = [module.inputs + module.outputs for module in modules]
    found: list[float]
    if config.keep is not None:
        # As many as are first looked for, and twice as many where these are not enough.
        limits = [most_columns(module, task) for module in modules]
        enough = [2 if columns[m.name] > 0.75 * FIRST_RANK else 1 for m in modules]
        ranks = zip(limits, enough, sizes, strict=True)
        found = [min(limit, times * FIRST_RANK) * size for limit, times, size in ranks]
    elif config.rank is not None:
        found = [max(most_columns(m, task) * (m.inputs + m.outputs) for m in modules)]
    else:
        found = [max(float(module.parameters) for module in modules)]
    each = longest * sum(sizes) * task.product + sum(found) * task.element
    return min(fitting, task.queries) * each


def scan(task: Task, rates: Rates, routed: Routed) -> Estimate:
    """`scan`; with shards, one of them."""
    reading, shards = task.scan_reading(task.config.scan.chunk_size), task.config.shards
    work = flops.scan_flops(task, routed, reading)
    groups = len(group_names(routed.modules))
    pairs = task.queries * task.text.count
    disk = _COMPRESSED * 4 * pairs * (1 + groups)
    if task.config.scan.token_scores:
        disk += _COMPRESSED * 4 * task.queries * reading.predicted
    disk += 2 * task.queries * min(task.config.scan.top_k, task.text.count) * _TOP
    chunks = task.text.count / task.config.scan.chunk_size
    disk += 5000 + 60 * len(routed.modules) + 2 * 140 * chunks
    parts = {
        "start": rates.start,
        "queries": routed.loaded / rates.read,
        "scan": work / rates.speed["scan"] / shards,
        "disk": disk / rates.digest,
    }
    memory = rates.base + scan_bytes(task, routed) + rates.working["scan"]
    return Estimate("scan", work, parts, memory, disk, rates.bounded)


def scan_bytes(task: Task, routed: Routed) -> float:
    """Bytes of the queries, at their peak, and of a chunk's scores and their copies."""
    groups = len(group_names(routed.modules))
    chunk = min(task.config.scan.chunk_size, task.text.count)
    scores = chunk * task.queries * groups
    if task.config.scan.token_scores:
        scores += chunk * task.queries * task.text.width
    # Adding up, as float32 on the host, spread and transposed.
    return max(routed.loaded, routed.held) + 4 * scores * task.element


def exact_bytes(task: Task, routed: Routed) -> float:
    """Bytes of the queries for `attribute`, which holds them in the statistics' type."""
    return routed.loaded / task.product * task.element


def attribute(task: Task, rates: Rates, routed: Routed) -> Estimate:
    """`attribute`; with shards, one of them."""
    found = min(2 * task.config.attribute.top_k, 2 * task.text.count)
    length = task.ranked_length
    pairs = task.queries * found
    reading = Reading(pairs, pairs * length, pairs * (length - 1))
    work = flops.attribute_flops(task, routed, reading)
    numbers = pairs * (len(routed.modules) + (2 if task.config.attribute.counterfactual else 0))
    disk = _COMPRESSED * 4 * numbers * length + 4000 + 200 * len(routed.modules)
    parts = {
        "start": rates.start,
        "queries": routed.loaded / rates.read,
        "attribute": work / rates.speed["attribute"] / task.config.shards,
        "disk": disk / rates.digest,
    }
    table = 4 * found * len(routed.modules) * task.text.width
    memory = rates.base + exact_bytes(task, routed) * (1 + 1 / task.queries)
    # Of the table, what zarr compresses.
    memory += rates.working["attribute"] + 2 * table
    return Estimate("attribute", work, parts, memory, disk, rates.bounded)
