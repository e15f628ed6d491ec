"""One exception per thing that a user, a file or a machine can get wrong.

Each message says what went wrong, what was found, what was expected and what to do. The command
line prints it as one line and leaves with `exit_code`. What only
we can get wrong stays an `assert`.
"""


class SpeedrunError(Exception):
    """Anything that the person at the keyboard can mend. Caught once, in `cli.main`."""

    exit_code = 2
    """0 passed, 1 a rule is broken, 2 could not be done or decided."""


class ConfigError(SpeedrunError):
    """A recipe, track or `--set` holds an unknown key or an impossible value."""


class DataError(SpeedrunError):
    """A shard, manifest or validation text is missing, damaged or does not fit the others."""


class TokenizerError(DataError):
    """A tokenizer is missing, foreign to the shards, or counts bytes wrongly."""


class BudgetError(SpeedrunError):
    """The time budget is too short for the work that must fit into it."""


class TrainError(SpeedrunError):
    """Training went wrong: the loss is not a number any more."""


class ReplicaError(TrainError):
    """Ranks that should hold the same weights do not."""


class RankLostError(TrainError):
    """A process of the run died, or did not come."""


class CheckpointError(SpeedrunError):
    """A checkpoint is damaged or belongs to another run."""


class QuantError(SpeedrunError):
    """A tensor cannot be rounded: wrong rank, not finite, or an unknown number of bits."""


class FormatError(SpeedrunError):
    """Bytes that claim to be a `model.srz` (or another of our formats) break its rules."""


class PackError(SpeedrunError):
    """Weights do not fit: over the limit, or a tensor that has no place in the container."""


class OutputError(SpeedrunError):
    """A folder or file cannot be written: permissions, a full disk, or something in the way."""


class SubmissionError(SpeedrunError):
    """A submission folder is incomplete, altered or does not run."""


class PredictorError(SubmissionError):
    """A predictor process died, timed out or answered something that is not a prediction."""


class PredictorLostError(PredictorError):
    """A predictor process ended, or used up its time, before it answered."""


class DistributionError(PredictorError):
    """Logits that are no distribution: one of them is NaN or infinite."""


class CoverageError(PredictorError):
    """Logits for fewer or other positions than were asked for, or of another alphabet."""


class RecordError(SpeedrunError):
    """A record or a row of the runs table cannot be read or must not be added."""
