"""Which step is the best so far, and when to stop waiting for a better one."""

from dataclasses import asdict, dataclass
from typing import Any

LOWER_IS_BETTER = frozenset(("log_loss",))


@dataclass
class Selection:
    """Best value of one metric so far."""

    metric: str
    patience: int
    """Evaluations without improvement after which training is over."""
    best_step: int = 0
    best_value: float | None = None
    num_waited: int = 0
    """Evaluations since the best one."""

    def is_better(self, step: int, value: float) -> bool:
        """Take the value of an evaluation and return whether it is the best so far."""
        sign = -1.0 if self.metric in LOWER_IS_BETTER else 1.0
        # Of equal values the earlier step stays the best.
        if self.best_value is not None and sign * value <= sign * self.best_value:
            self.num_waited += 1
            return False
        self.best_step, self.best_value, self.num_waited = step, value, 0
        return True

    def take(self, step: int) -> None:
        """Take a step as the best, whatever it is worth."""
        self.best_step = step

    def restart(self) -> None:
        """Forget what came before: the next evaluation is the best so far."""
        self.best_value, self.num_waited = None, 0

    @property
    def is_over(self) -> bool:
        """Whether patience is at its end."""
        return self.num_waited >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint; metric and patience stay those of the config."""
        self.best_step, self.best_value = state["best_step"], state["best_value"]
        self.num_waited = state["num_waited"]
