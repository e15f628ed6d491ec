"""Every knob of a run on one page: frozen dataclasses that explain and check themselves.

Only the standard library is imported, so a submission can carry this file. Reading TOML and type
errors with suggestions live in `settings`, inheritance and `--set` in `recipes.load`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from speedrun.errors import ConfigError


def _require(section: str, claims: dict[str, bool], values: object) -> None:
    """Raise a ConfigError that names the first key in `claims` whose claim is false."""
    for claim, holds in claims.items():
        if not holds:
            key = claim.split()[0]
            found = getattr(values, key)
            raise ConfigError(f"{section}.{key} = {found!r} is impossible: {section}.{claim}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The shape of the network. Read by `model`; formulas are in each layer's own file."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    vocab_size: int = 1024
    """Size of the alphabet; must equal the tokenizer's."""
    num_layers: int = 9
    """Physical blocks. The first half are encoder blocks of the U-Net, the rest decoder blocks."""
    width: int = 512
    """Channels of the residual stream."""
    num_heads: int = 8
    """Query heads; each has width / num_heads channels."""
    num_kv_heads: int = 4
    """Key and value heads; num_heads / num_kv_heads consecutive query heads share one."""
    mlp_hidden: int = 1024
    """Channels inside the MLP."""
    mlp_activation: Literal["relu2", "leaky_relu2"] = "relu2"
    """Squared ReLU, or squared leaky ReLU with slope 0.5."""
    tied_embeddings: bool = True
    """Use the token embedding as the output matrix."""
    embedding_std: float = 0.005
    """Standard deviation of the token embedding at the start."""
    logit_softcap: float = 30.0
    """Logits become c * tanh(logits / c)."""
    q_gain: float = 1.5
    """Gain of the normalised queries at the start; learned per head."""
    rope_dims: int = 0
    """Channels of each head that rotate; 0 rotates all of them."""
    rope_base: float = 10_000.0
    """Base of the rotary frequencies before NTK scaling."""
    rope_train_length: int = 0
    """Longer inputs stretch the base (NTK-aware) by input / this; 0 never stretches. Answers then
    hang on the length of the window, so a judge's prefix replay and proof fail: for inputs of one
    length set `rope_base` to base * stretch^(R / (R - 2)) instead."""
    xsa_layers: int = 0
    """The last so many blocks use exclusive self attention."""
    ln_scale: bool = False
    """Multiply block inputs by 1 / sqrt(layer + 1) after their norm."""
    bigram_buckets: int = 0
    """Rows of the hashed bigram embedding; 0 leaves it out."""
    bigram_width: int = 128
    """Channels of the bigram embedding before its projection to `width`."""
    smear: bool = False
    """Mix each embedding with its predecessor's through a learned gate."""
    ortho_init: bool = False
    """Orthogonal start for matrices with both sides of 64 or more."""
    block_length: int = 0
    """Attention sees blocks of so many tokens (at evaluation, of overlapping blocks the later
    halves count); 0 lets it see whole windows."""
    ngram_order: int = 0
    """Longest counted n-gram whose table is added to the logits; 0 counts none. See `count`."""
    match_order: int = 0
    """Longest suffix of the context that is looked up in the context itself; 0 looks up none."""

    def __post_init__(self) -> None:
        heads = max(self.num_heads, 1)
        _require(
            "model",
            {
                "vocab_size must be 2 to 65,536 (shards hold uint16)": 2
                <= self.vocab_size
                <= 65_536,
                "num_layers must be at least 1": self.num_layers >= 1,
                "width must be a positive multiple of model.num_heads": self.width > 0
                and self.width % heads == 0,
                "num_heads must be at least 1": self.num_heads >= 1,
                "num_kv_heads must divide model.num_heads": self.num_kv_heads >= 1
                and heads % max(self.num_kv_heads, 1) == 0,
                "mlp_hidden must be at least 1": self.mlp_hidden >= 1,
                "embedding_std must be above zero": self.embedding_std > 0,
                "logit_softcap must be above zero": self.logit_softcap > 0,
                "rope_dims must be even and at most width / num_heads": self.rope_dims >= 0
                and self.rope_dims % 2 == 0
                and self.rope_dims <= self.width // heads,
                "rope_base must be above 1": self.rope_base > 1,
                "rope_train_length must not be negative": self.rope_train_length >= 0,
                "xsa_layers must be between 0 and model.num_layers": 0
                <= self.xsa_layers
                <= self.num_layers,
                "bigram_buckets must be 0, or 2 or more": self.bigram_buckets == 0
                or self.bigram_buckets >= 2,
                "bigram_width must be at least 1": self.bigram_width >= 1,
                "block_length must be 0, or even": self.block_length >= 0
                and self.block_length % 2 == 0,
                # The table is unfolded into a matrix of vocab_size ** 2.
                "ngram_order must be 0, or 2 to 8 with vocab_size at most 8,192 and "
                "vocab_size ** order below 2 ** 63": (
                    self.ngram_order == 0
                    or (
                        2 <= self.ngram_order <= 8
                        and self.vocab_size <= 2**13
                        and self.vocab_size**self.ngram_order < 2**63
                    )
                ),
                "match_order must be 0 to 32": 0 <= self.match_order <= 32,
            },
            self,
        )
        if self.rope_dims == 0 and (self.width // heads) % 2:
            raise ConfigError(
                f"model.width / model.num_heads = {self.width // heads} is odd; "
                "rotary positions need an even number"
            )

    @property
    def head_width(self) -> int:
        """Channels of one head."""
        return self.width // self.num_heads


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimConfig:
    """Who is updated by what, and how fast. Read by `optim`."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    matrix_lr: float = 0.04
    """Muon, for matrices inside blocks."""
    embedding_lr: float = 0.05
    """AdamW, for token and hashed embeddings."""
    head_lr: float = 0.008
    """AdamW, for an untied output matrix."""
    scalar_lr: float = 0.04
    """AdamW, for gains, scales, mixes and gates."""
    muon_momentum: float = 0.95
    """Momentum after its warm-up."""
    muon_momentum_start: float = 0.85
    """Momentum at progress 0."""
    muon_momentum_warmup_frac: float = 0.04
    """Progress at which momentum arrives at its final value."""
    newton_schulz: Literal["classic", "polar_express"] = "classic"
    """Coefficients of the orthogonalisation: the same in each step, or the best for each."""
    newton_schulz_steps: int = 5
    """Iterations of the orthogonalisation."""
    normalize_rows: bool = False
    """Divide each row of a matrix's update by its length before the orthogonalisation."""
    muon_weight_decay: float = 0.0
    """Decoupled decay of matrices, times their scheduled learning rate."""
    adam_weight_decay: float = 0.0
    """Decoupled decay of everything else."""
    adam_beta1: float = 0.9
    """First moment's decay."""
    adam_beta2: float = 0.95
    """Second moment's decay."""
    adam_eps: float = 1e-8
    """Added to the root of the second moment."""
    grad_clip: float = 0.0
    """Largest global gradient norm; 0 does not clip."""

    def __post_init__(self) -> None:
        rates = ("matrix_lr", "embedding_lr", "head_lr", "scalar_lr")
        decays = ("muon_weight_decay", "adam_weight_decay", "grad_clip")
        fractions = ("muon_momentum", "muon_momentum_start", "adam_beta1", "adam_beta2")
        _require(
            "optim",
            {f"{key} must be above zero": getattr(self, key) > 0 for key in rates}
            | {f"{key} must not be negative": getattr(self, key) >= 0 for key in decays}
            | {f"{key} must be in [0, 1)": 0 <= getattr(self, key) < 1 for key in fractions}
            | {
                "muon_momentum_warmup_frac must be in [0, 1]": 0
                <= self.muon_momentum_warmup_frac
                <= 1,
                "newton_schulz_steps must be 1 to 20": 1 <= self.newton_schulz_steps <= 20,
                "adam_eps must be above zero": self.adam_eps > 0,
            },
            self,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleConfig:
    """Learning rates as a function of progress: 0 at the start, 1 when the budget is spent."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    warmdown_frac: float = 0.4
    """Last part of the budget in which rates fall linearly."""
    final_lr_frac: float = 0.0
    """What is left of the rates at progress 1."""

    def __post_init__(self) -> None:
        _require(
            "schedule",
            {
                "warmdown_frac must be in [0, 1]": 0 <= self.warmdown_frac <= 1,
                "final_lr_frac must be in [0, 1]": 0 <= self.final_lr_frac <= 1,
            },
            self,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AverageConfig:
    """Which weights are packed: the last ones, or an average of the trained ones."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    ema_decay: float = 0.0
    """Decay per step of an exponential moving average; 0: none."""
    swa_every_steps: int = 0
    """Average the weights after every so many steps instead, all alike; 0: do not."""
    swa_window: int = 0
    """Of these only the last so many; 0: all."""
    start_frac: float = 0.0
    """Progress at which averaging starts."""
    choose: Literal["average", "best"] = "average"
    """Pack the average; or whichever has fewer nats, the average or the last weights, on the
    training batches that would come next, read on the clock in time that is kept for it."""
    choose_batches: int = 4
    """Batches that `best` reads with each of the two."""

    def __post_init__(self) -> None:
        _require(
            "average",
            {
                "ema_decay must be in [0, 1)": 0 <= self.ema_decay < 1,
                "ema_decay must be 0 where average.swa_every_steps is not": not (
                    self.ema_decay and self.swa_every_steps
                ),
                "swa_every_steps must not be negative": self.swa_every_steps >= 0,
                "swa_window must be 0 to 64, and 0 without average.swa_every_steps": 0
                <= self.swa_window
                <= 64 * bool(self.swa_every_steps),
                "start_frac must be in [0, 1]": 0 <= self.start_frac <= 1,
                "choose must be average where there is none (ema_decay, swa_every_steps)": bool(
                    self.choose == "average" or self.ema_decay or self.swa_every_steps
                ),
                "choose_batches must be at least 1": self.choose_batches >= 1,
            },
            self,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CountConfig:
    """How n-grams are counted and pruned, at the start of the budget. Read by `model.counting`."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    entries: tuple[int, ...] = ()
    """N-grams to keep of each length from 2 to model.ngram_order; their prefixes come on top."""
    min_count: int = 4
    """Rarer n-grams are not considered."""
    discount: float = 0.75
    """Taken off every count and given to the shorter context."""
    budget_frac: float = 0.35
    """Share of the budget that counting may take: a slow machine counts less text."""
    held_out_tokens: int = 1_500_000
    """The last training tokens, which are not counted: the network learns on these alone, since
    n-grams counted on the same text look better than they are."""

    def __post_init__(self) -> None:
        # JSON knows no tuples, and a frozen setting must be hashable.
        object.__setattr__(self, "entries", tuple(self.entries))
        _require(
            "count",
            {
                "entries must be positive numbers": all(number > 0 for number in self.entries),
                "min_count must be at least 1": self.min_count >= 1,
                "discount must be in (0, 1)": 0 < self.discount < 1,
                "budget_frac must be in (0, 1)": 0 < self.budget_frac < 1,
                "held_out_tokens must be positive": self.held_out_tokens > 0,
            },
            self,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """What a step reads. Read by `data.batches` and `train`."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    sequence_length: int = 1024
    """Tokens of one training sequence."""
    tokens_per_step: int = 524_288
    """Global batch: tokens of one optimiser step over all ranks and micro-batches."""
    micro_batch_tokens: int = 65_536
    """Largest number of tokens in one forward pass of one rank."""
    order: Literal["shuffled", "sequential", "documents"] = "sequential"
    """Windows in the order of a seeded permutation, or as they lie in the shards; `documents` are
    permuted, too, and begin where a document does."""
    bos_id: int = 1
    """Id that begins a document, for order = "documents"."""

    def __post_init__(self) -> None:
        length = max(self.sequence_length, 1)
        sizes = ("tokens_per_step", "micro_batch_tokens")
        _require(
            "data",
            {"sequence_length must be 2 or more": self.sequence_length >= 2}
            | {
                f"{key} must be a positive multiple of data.sequence_length": value > 0
                and value % length == 0
                for key in sizes
                for value in [getattr(self, key)]
            },
            self,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """How the step runs. None of it changes what is learnt, beyond float rounding."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    budget_s: float = 0.0
    """Seconds of training; 0 takes the track's limit, which is filled in when a run starts."""
    max_steps: int = 1_000_000
    """Steps at most. The clock normally ends a run first; a smaller number ends it by count, and
    progress is then the larger of the two shares, so that a run can be repeated exactly."""
    warmup_steps: int = 20
    """Steps on synthetic tokens before the clock starts; all state is restored after them."""
    compile: Literal["auto", "yes", "no"] = "auto"
    """torch.compile the step; `auto` does so where a compiler is found."""
    recompute: bool = False
    """Keep only what enters each block and compute the rest again in the backward pass: less
    memory, a third more work."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Autocast of the forward pass; `auto` takes bfloat16 on CUDA and on CPUs with bf16 matmuls."""
    kernels: Literal["auto", "on", "off"] = "off"
    """Fused kernels and the way to compute attention: `auto` measures both on the GPU before the
    clock starts, and takes what is at least 5 % faster than torch.compile's own; `on` takes every
    kernel that agrees with its plain twin; `off` ships none of them, 6 kB of code. On a CPU there
    are none."""
    fp8_head: bool = False
    """Multiply by the output matrix in 8-bit floats while training, on GPUs that can."""
    validate_every_s: float = 0.0
    """Training seconds between looks at a part of the validation split, off the clock; 0: none."""
    log_every_steps: int = 50
    """Steps between log lines; the first ten are always logged."""
    checkpoint_every_s: float = 300.0
    """Training seconds between checkpoints, off the clock; 0 writes one only when interrupted."""

    def __post_init__(self) -> None:
        _require(
            "train",
            {
                "max_steps must be at least 1": self.max_steps >= 1,
                "log_every_steps must be at least 1": self.log_every_steps >= 1,
                "fp8_head must be false where train.kernels is off": not self.fp8_head
                or self.kernels != "off",
                "warmup_steps must be 1 or more (it measures the first step)": self.warmup_steps
                >= 1,
                "validate_every_s must not be negative": self.validate_every_s >= 0,
                "checkpoint_every_s must not be negative": self.checkpoint_every_s >= 0,
            },
            self,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantConfig:
    """How weights become codes and bytes. Read by `quant` and `pack`."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    matrix_bits: int = 6
    """Bits of the codes of matrices inside blocks."""
    embedding_bits: int = 8
    """Bits of the codes of token and hashed embeddings and of an untied head."""
    small_tensor_limit: int = 8_192
    """Tensors of at most so many elements, and all vectors, stay float16."""
    clip_candidates: tuple[float, ...] = (0.999, 0.9995, 0.9999, 0.99999, 1.0)
    """Quantiles of a row's magnitudes to try as the largest kept; least squared error wins."""
    clip_deviations: float = 0.0
    """Keep so many standard deviations of each row instead; 0 searches."""
    qat_start_frac: float = 1.0
    """Progress from which training sees weights as they will be rounded; 1: it never does."""
    method: Literal["nearest", "gptq", "fit"] = "nearest"
    """Round to the nearest code; or so that a layer's outputs change least; or choose every step so
    that the least is lost in the bytes that there are. The last two look at calibration batches."""
    calibration_s: float = 0.0
    """Seconds of the training budget kept for calibration."""
    calibration_batches: int = 64
    """Batches to look at, if the seconds last."""
    calibration: Literal["training", "generated"] = "training"
    """Batches of the training text, or text that the network writes itself."""
    margin_bytes: int = 0
    """Bytes that `fit` leaves free, for seeds whose weights are harder to pack."""
    correction_rank: int = 0
    """Rank of the correction that `fit` may add to a tensor where it pays; 0 adds none."""
    codec: Literal["zstd", "lzma", "brotli", "ans", "best"] = "zstd"
    """Compressor of the sections; `best` takes the smallest for each."""

    def __post_init__(self) -> None:
        # JSON knows no tuples, and a frozen setting must be hashable.
        object.__setattr__(self, "clip_candidates", tuple(self.clip_candidates))
        _require(
            "quant",
            {
                # Bits of a GPTQ grid, which needs a zero.
                "method must not be gptq with codes of one bit": self.method != "gptq"
                or min(self.matrix_bits, self.embedding_bits) > 1,
                "matrix_bits must be 1 to 8": 1 <= self.matrix_bits <= 8,
                "embedding_bits must be 1 to 8": 1 <= self.embedding_bits <= 8,
                "small_tensor_limit must not be negative": self.small_tensor_limit >= 0,
                "clip_candidates must be quantiles in (0, 1]": bool(self.clip_candidates)
                and all(0 < quantile <= 1 for quantile in self.clip_candidates),
                "clip_deviations must not be negative": self.clip_deviations >= 0,
                "qat_start_frac must be in [0, 1], and 1 with codes of one or two bits": (
                    0 <= self.qat_start_frac <= 1
                    and (self.qat_start_frac == 1 or min(self.matrix_bits, self.embedding_bits) > 2)
                ),
                "calibration_s must not be negative": self.calibration_s >= 0,
                "calibration_batches must be at least 1": self.calibration_batches >= 1,
                "margin_bytes must not be negative": self.margin_bytes >= 0,
                "correction_rank must be 0 to 64": 0 <= self.correction_rank <= 64,
            },
            self,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalConfig:
    """How the predictor is asked for the official score. Read by `bpb`."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    context: int = 1024
    """Tokens of one window."""
    stride: int = 64
    """Tokens scored per window after the first; equal to `context`, windows do not overlap."""
    batch_windows: int = 32
    """Windows per call."""

    def __post_init__(self) -> None:
        _require(
            "evaluation",
            {
                "context must be 2 or more": self.context >= 2,
                "stride must be 1 to evaluation.context": 1 <= self.stride <= self.context,
                "batch_windows must be at least 1": self.batch_windows >= 1,
            },
            self,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """One complete run: a resolved recipe."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    name: str
    """Recipe name, `family/variant`."""
    summary: str = ""
    """One line for lists."""
    seed: int = 42
    """Decides initial weights and the order of the data."""
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    average: AverageConfig = field(default_factory=AverageConfig)
    count: CountConfig = field(default_factory=CountConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    quant: QuantConfig = field(default_factory=QuantConfig)
    evaluation: EvalConfig = field(default_factory=EvalConfig)

    def __post_init__(self) -> None:
        block = self.model.block_length
        if block and self.data.sequence_length % block:
            raise ConfigError(
                f"data.sequence_length = {self.data.sequence_length} is not a multiple of "
                f"model.block_length = {block}"
            )
        if len(self.count.entries) != max(self.model.ngram_order - 1, 0):
            raise ConfigError(
                f"count.entries has {len(self.count.entries)} numbers, model.ngram_order = "
                f"{self.model.ngram_order} needs {max(self.model.ngram_order - 1, 0)}: "
                "one for each length from 2"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dict: what `recipe.toml` and the bundle store."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RunConfig:
        """Rebuild from `to_dict`'s output. For resolved values only: types are not converted."""
        sections: dict[str, type] = {
            "model": ModelConfig,
            "optim": OptimConfig,
            "schedule": ScheduleConfig,
            "average": AverageConfig,
            "count": CountConfig,
            "data": DataConfig,
            "train": TrainConfig,
            "quant": QuantConfig,
            "evaluation": EvalConfig,
        }
        resolved = {
            key: sections[key](**value) if key in sections else value
            for key, value in values.items()
        }
        return cls(**resolved)
