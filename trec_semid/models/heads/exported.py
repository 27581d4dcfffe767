"""Heads over codes as programs that a beam of a server asks, position by position.

Legend: B users, W beams, r position, R positions, K codes, D width.
"""

from typing import final

from torch import Tensor

from trec_semid.models.exported import StepProgram
from trec_semid.models.heads.beams import Beams
from trec_semid.models.heads.code_heads import CodeHeads


@final
class HeadStep(StepProgram):
    """What heads say at one position of a state and the codes before."""

    code_tables: Tensor

    def __init__(self, heads: CodeHeads, code_tables: Tensor, position: int) -> None:
        """Take heads and rows of codes (R, K + 1, D)."""
        super().__init__()
        self.heads, self.position = heads, position
        self.register_buffer("code_tables", code_tables)

    def forward(self, codes: Tensor, *said: Tensor) -> Tensor:
        """See `StepProgram`: (B, W, K + 1) of (B, W, r) codes and the state (B, D)."""
        (state,) = said
        nothing = codes.new_zeros(codes.shape[:2])
        beams = Beams(codes, nothing, nothing.float(), nothing)
        log_probs = self.heads.next_log_probs(state, self.code_tables)(self.position, beams)
        # Of a prefix that does not count one row is said; the first size alone may not tell from B beams.
        return log_probs.expand(-1, codes.shape[1], -1).contiguous()


def steps_of(heads: CodeHeads, code_tables: Tensor) -> tuple[HeadStep, ...]:
    """Return the programs of all R positions, of rows of codes (R, K + 1, D)."""
    return tuple(HeadStep(heads, code_tables, position) for position in range(len(code_tables)))
