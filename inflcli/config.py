"""The settings of every stage, as frozen dataclasses.

A stage's own settings decide its result, so they are part of its artifact's identity. `Runtime`
decides only how the work is carried out (where, how wide, how loud) and never enters an identity.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

CURVATURES = ("ekfac", "ec-shampoo", "kfac", "identity")
LABELS = ("sampled", "true")
SCORERS = ("paper", "okapi", "l", "plus")
ROUTES = ("auto", "dense", "factored", "shared")
PRECISIONS = ("auto", "exact", "single", "fast")
REFINE_SOLVERS = ("cg", "neumann")
PLACEMENTS = ("device", "auto", "fsdp")
DTYPES = ("auto", "float32", "float64", "bfloat16", "float16")
FULL_RANK = "full"
AUTO = "auto"
# How queries are compressed unless told otherwise: one of the two is None.
DEFAULT_RANK: int | None = None
DEFAULT_KEEP: float | None = 0.995
DEFAULT_MAX_RANK = 128


def shares_inputs(curvature: str) -> bool:
    """Whether modules that read the same tensor share a basis for it. Those of ec-shampoo do not:
    their bases come of their own gradients."""
    return curvature != "ec-shampoo"


def has_corrected(curvature: str) -> bool:
    """Whether it has corrected eigenvalues Λ, which take the fit's second pass."""
    return curvature in ("ekfac", "ec-shampoo")


@dataclass(frozen=True)
class Runtime:
    """How to run: nothing here changes a result beyond rounding."""

    device: str = "auto"
    placement: str = "device"
    """Of the model: on the device, spread over the host's (auto), or sharded over ranks (fsdp)."""
    batch_size: int | None = None
    """Sequences a batch; None lets the stage choose from the sequence length."""
    chunk_size: int | None = None
    """Sequences a unit of a fit's work, which its processes share out; None takes a batch."""
    overwrite: bool = False
    command: tuple[str, ...] = ()
    """The command line, kept in the manifest as provenance."""
    checkpoint_seconds: float = 30.0
    """A long stage records its progress about this often."""
    memory_gib: float | None = None
    """Ceiling for what a stage may choose to hold (factors, queries); None takes a share of what
    is free."""


@dataclass(frozen=True)
class StageConfig:
    """Base of the per-stage settings."""

    def identity(self) -> dict[str, Any]:
        """The settings as plain JSON values, in a fixed order.

        Without `shard` where there is none, so that merged shards are the whole artifact.
        """
        whole = {key: _plain(value) for key, value in sorted(asdict(self).items())}
        return {key: value for key, value in whole.items() if (key, value) != ("shard", None)}


@dataclass(frozen=True)
class Shard:
    """One of `of` parts of a stage's work, numbered from 0, that know nothing of each other."""

    number: int
    of: int

    def folder(self, out: Path) -> Path:
        """Where the shard of the artifact `out` goes."""
        return out.with_name(f"{out.name}.shards") / f"{self.number}-of-{self.of}"

    def part(self, count: int) -> slice:
        """This shard's run of `count` pieces of work; sizes differ by one at most."""
        first, last = (count * edge // self.of for edge in (self.number, self.number + 1))
        return slice(first, last)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


@dataclass(frozen=True)
class PrepareConfig(StageConfig):
    seq_len: int = 512
    per_line: bool = False
    text_field: str = "text"
    split: str = "train"
    bos: bool = False
    include: tuple[str, ...] = ()
    skip_bad: bool = False

    def identity(self) -> dict[str, Any]:
        """Without what leaves the sequences of a given text as they are.

        The files that `include` chose are part of the text's fingerprint. `skip_bad` decides only
        whether a bad record stops the run, so a stopped run can go on with it.
        """
        whole = super().identity()
        return {key: whole[key] for key in whole if key not in ("include", "skip_bad")}


@dataclass(frozen=True)
class FitFactorsConfig(StageConfig):
    curvature: str = "ekfac"
    modules: str = "mlp"
    blocks: int = 1
    labels: str = "sampled"
    label_samples: int = 1
    max_sequences: int | None = None
    dtype: str = "auto"
    precision: str = "auto"
    seed: int = 0
    splits: int = 2
    """Parts of the sequences whose sums are kept apart; of one alone the stability is unknown."""
    shard: Shard | None = None


@dataclass(frozen=True)
class PreconditionConfig(StageConfig):
    curvature: str = "auto"
    """auto takes what the factors were fitted for."""
    rank: int | None = DEFAULT_RANK
    """The rank of every module's matrix. None, without `keep`: the full matrices."""
    keep: float | None = DEFAULT_KEEP
    """The share of a query's energy to keep, wherever in its modules that is cheapest. It goes
    with rank None."""
    max_rank: int = DEFAULT_MAX_RANK
    """With `keep`: the highest rank of a module, which bounds what a query can cost."""
    damping_factor: float | None = 0.1
    damping: float | Literal["auto"] | None = None
    """Absolute, or auto: the factors that the fit's halves chose. It replaces the factor."""
    bos: bool = False
    dtype: str = "auto"
    precision: str = "auto"
    refine: int = 0
    """Steps of a solve with the Gauss-Newton Hessian itself, from EK-FAC's answer; 0 for none."""
    refine_solver: str = "cg"
    refine_sequences: int | None = 256
    """Of its corpus, that the Hessian is taken over: the same in all steps of `cg`, fresh ones in
    each of `neumann`. None takes all."""
    refine_tolerance: float = 1e-3
    """The relative residual at which it stops."""
    seed: int = 0
    """Of the choice of sequences."""

    def __post_init__(self) -> None:
        if self.rank is not None and self.keep is not None:
            raise ValueError("rank and keep exclude each other: one of them must be None")

    def identity(self) -> dict[str, Any]:
        """Without the settings of what was not chosen."""
        whole = super().identity()
        unused = ["keep", "max_rank"] if self.keep is None else ["rank"]
        if not self.refine:
            unused += ["seed", *(key for key in whole if key.startswith("refine"))]
        return {key: whole[key] for key in whole if key not in unused}


@dataclass(frozen=True)
class TfidfConfig(StageConfig):
    top: int = 10_000
    scorer: str = "paper"


@dataclass(frozen=True)
class ScanConfig(StageConfig):
    route: str = "auto"
    start: int = 0
    stop: int | None = None
    layers: str | None = None
    top_k: int = 100
    token_scores: bool = False
    chunk_size: int = 256
    """Sequences a chunk of the arrays on disk, and the unit of work: a scan loses one at most."""
    dtype: str = "auto"
    precision: str = "auto"
    shard: Shard | None = None


@dataclass(frozen=True)
class AttributeConfig(StageConfig):
    top_k: int = 20
    counterfactual: bool = False
    dtype: str = "auto"
    shard: Shard | None = None


@dataclass(frozen=True)
class ReportConfig(StageConfig):
    formats: tuple[str, ...] = field(default=("html",))
    top_k: int = 20
    dataset_size: int | None = None
    skip_spurious: bool = False


ESTIMATORS = (
    "gradient",
    "cosine",
    "tfidf",
    "bm25",
    "kfac",
    "ekfac",
    "blocks-2",
    "blocks-4",
    "blocks-8",
    "ec-shampoo",
    "lissa",
    "cg",
    "refined",
)
GROUND_TRUTHS = ("ggn", "pbrf", "lds", "topk")


@dataclass(frozen=True)
class ValidateConfig(StageConfig):
    truths: tuple[str, ...] = ("ggn",)
    estimators: tuple[str, ...] = ESTIMATORS
    points: int | None = 500
    """Training sequences that are scored, a seeded sample; None takes all."""
    damping_factor: float | None = 0.1
    damping: float | Literal["auto"] | None = None
    """One λ for all modules, of every estimator and ground truth, or auto; replaces the factor."""
    dtype: str = "float64"
    seed: int = 0
    refine: int = 10
    """Steps of the refined estimator."""
    depth: int | None = None
    """Steps of LiSSA; None takes as many as there are sequences in the fit."""
    tolerance: float = 1e-6
    """Relative residual at which an exact solve ends, and gradient norm at which the PBRF does."""
    epsilon: float | None = None
    """Of the PBRF; None chooses it."""
    subsets: int = 50
    """Half subsets that a linear datamodelling score retrains on."""
    removals: tuple[int, ...] = (5, 20)
    """How many of the top sequences a removal leaves out."""
    epochs: int = 10
    batch_size: int = 16
    learning_rate: float = 1e-3
    initial: str | None = None
    """A model that retraining begins with; None begins with fresh weights."""


@dataclass(frozen=True)
class PlanConfig:
    """What is planned: the stages' settings, and the size of what is not there yet."""

    fit: FitFactorsConfig
    precondition: PreconditionConfig
    scan: ScanConfig
    attribute: AttributeConfig
    sequences: int | None = None
    """Without a corpus: how many sequences, of `seq_len` tokens each."""
    seq_len: int | None = None
    n_queries: int | None = None
    """Without a query file: how many queries."""
    shards: int = 1
    calibrate: bool = True

    def with_arithmetic(self, dtype: str, precision: str) -> Self:
        """The same for every stage."""
        return replace(
            self,
            fit=replace(self.fit, dtype=dtype, precision=precision),
            precondition=replace(self.precondition, dtype=dtype, precision=precision),
            scan=replace(self.scan, dtype=dtype, precision=precision),
            attribute=replace(self.attribute, dtype=dtype),
        )
