"""Typed errors, worded `<where>: <what is wrong> (got X, expected Y). <Remedy>` throughout."""

from typing import Self


class SemidError(Exception):
    """Anything trec_semid refuses on purpose; `exit_code` is what the command line returns."""

    exit_code: int = 1


class ConfigError(SemidError):
    """A configuration that cannot be used; lists every fault at once."""

    exit_code: int = 2


class DataError(SemidError):
    """Input data that cannot be used; names file, row, field, value and remedy.

    Rows are counted from 1 wherever they stand; a header line is not counted.
    """

    exit_code: int = 2

    def __init__(
        self,
        problem: str,
        *,
        file: str | None = None,
        row: int | None = None,
        field: str | None = None,
        value: object = None,
        remedy: str | None = None,
    ) -> None:
        self.problem, self.file, self.row, self.field = problem, file, row, field
        self.value, self.remedy = value, remedy
        where = [file] if file else []
        where += [f"row {row}"] if row is not None else []
        where += [f"field '{field}'"] if field else []
        text = f"{', '.join(where)}: {problem}" if where else problem
        text += f" (got {value!r})" if value is not None else ""
        super().__init__(f"{text}. {remedy}" if remedy else text)


class LockError(SemidError):
    """A folder that another process works in; names it."""

    exit_code: int = 2


class ShapeError(SemidError):
    """A tensor of another shape than the callee states."""


class PlanError(SemidError):
    """Tables that cannot be placed on the given hardware."""


class CheckpointError(SemidError):
    """A checkpoint that cannot be saved or does not fit what loads it."""

    exit_code: int = 2


class PeerError(SemidError):
    """Another rank failed, was stopped or is gone; the exit code is that of its error."""

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(text)
        self.exit_code = exit_code

    def __reduce__(self) -> tuple[type[Self], tuple[str, int]]:
        """Say how it is made again: ranks send each other their errors."""
        return type(self), (str(self), self.exit_code)


class StackError(SemidError):
    """Installed packages that do not fit each other."""


class TrainingError(SemidError):
    """Training that cannot go on, such as a loss that is not finite."""
