"""Results of the conformance kit: rules, violations, the report."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

__all__ = ("ConformanceError", "ConformanceReport", "Rule", "Violation")


class Rule(Enum):
    """
    The rules that the kit checks; the name appears in the report.

    Attributes:
        row: Key of the rule's row in the engine contract.
        demand: What an engine must do.
    """

    START_FAILED = "E1", "the engine can be created and started"
    MODEL_NAME_EMPTY = "E1", "start returns a config with a non-empty model name"
    BAD_CONFIG = "E1", "numbers in the config are integers from 0, or None"
    GENERATE_FAILED = (
        "E2",
        "generate returns an async iterator or an observable, and raises only typed errors",
    )
    NO_CHUNK = "E2", "a stream has at least one chunk"
    WRONG_ITEM_TYPE = "E2", "every item is an LLMEngineOutput, or a mapping of its shape"
    BAD_TOKEN_IDS = "E2", "token_ids is a list of 32-bit unsigned integers"
    NO_TERMINAL = "E3", "each answer ends with a finish reason, or all with a typed error"
    ITEM_AFTER_TERMINAL = "E3", "nothing follows the terminal within an answer"
    UNREQUESTED_ANSWER = "E3", "an item belongs to a requested answer: its index is below n"
    CHUNK_MODIFIED = "E6", "a chunk and its lists don't change after it was yielded"
    LOOP_BLOCKED = "E1", "the event loop is not blocked for longer than 0.1 s at a time"
    INTERLEAVED_CALLS_FAILED = "E1", "concurrent streams don't affect each other"
    CANCELLATION_IGNORED = "E4", "a stream ends soon after its request was stopped"
    NO_CANCELLED_TERMINAL = "E4", "a stopped stream ends with the terminal `cancelled`"
    UNREQUESTED_CANCELLATION = "E4", "a stream that was not stopped does not end with `cancelled`"
    ABORT_FAILED = "E5", "abort returns, and the request ends soon after"
    OPTIONAL_METHOD_FAILED = (
        "E5",
        "drain, is_quiescent and health_check_payload (a request, or None) can be awaited if present",
    )
    LOST_WHILE_WORKING = "E7", "lost, if present, is async and waits while the engine works"
    CLOSE_FAILED = "S7", "a stream releases everything when it is closed"
    CLEANUP_FAILED = "E5", "cleanup succeeds"
    SECOND_CLEANUP_FAILED = "E5", "a second cleanup succeeds"
    UNSTARTED_CLEANUP_FAILED = "E5", "cleanup succeeds on an engine that never started"

    def __init__(self, row: str, demand: str) -> None:
        self.row = row
        self.demand = demand

    def __str__(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Violation:
    """
    One broken rule.

    Attributes:
        rule: The rule.
        message: What the engine did.
        exception: The exception that it raised, if any.
    """

    rule: Rule
    message: str
    exception: BaseException | None = field(default=None, compare=False)

    @property
    def detail(self) -> str:
        """The exception with its traceback; empty without one."""
        if self.exception is None:
            return ""
        return "".join(traceback.format_exception(self.exception)).rstrip()

    def __str__(self) -> str:
        return f"{self.rule} ({self.rule.row}): {self.message}"


@dataclass(frozen=True, slots=True)
class ConformanceReport:
    """
    The kit's findings about one engine.

    Attributes:
        engine: Name of the engine.
        violations: The broken rules, each once, in the order of ``Rule``.
        unchecked: Rules that could not be checked, because the engine did not start.
        hint: What may have misled the kit; empty if nothing.
    """

    engine: str
    violations: Sequence[Violation]
    unchecked: Sequence[Rule] = ()
    hint: str = ""

    @property
    def ok(self) -> bool:
        """Whether every rule holds."""
        return not self.violations

    def violation(self, rule: Rule) -> Violation | None:
        """Return the violation of *rule*, if it was broken."""
        return next((found for found in self.violations if found.rule is rule), None)

    def raise_if_failed(self) -> None:
        """
        Raise an error unless every rule holds.

        Raises:
            ConformanceError: Lists the broken rules, with tracebacks.
        """
        if not self.ok:
            raise ConformanceError(self)

    def __str__(self) -> str:
        lines = [f"conformance of {self.engine}"]
        for rule in Rule:
            broken = self.violation(rule)
            if broken is not None:
                lines += [f"  FAIL  {broken}", f"        expected: {rule.demand}"]
            elif rule in self.unchecked:
                lines.append(f"  -     {rule} ({rule.row}): not checked")
            else:
                lines.append(f"  ok    {rule} ({rule.row}): {rule.demand}")
        held = len(Rule) - len(self.violations) - len(self.unchecked)
        lines.append(f"{held} of {len(Rule)} rules hold")
        return "\n".join([*lines, f"hint: {self.hint}"] if self.hint else lines)


class ConformanceError(AssertionError):
    """
    An engine breaks rules of its contract.

    Attributes:
        report: The kit's findings.
    """

    def __init__(self, report: ConformanceReport) -> None:
        super().__init__(report)
        self.report = report

    def __str__(self) -> str:
        details = [violation.detail for violation in self.report.violations if violation.exception]
        return "\n\n".join([str(self.report), *details])
