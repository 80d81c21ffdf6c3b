"""Turns rules about system calls into a program that the kernel runs before each (classic BPF).

A program finds its rule by halving the range of numbers, in eight comparisons or so. That is
quick at run time, and also when it is installed: the kernel then works out for every number
whether it is allowed whatever its arguments, so that such calls later cost next to nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

__all__ = ["ALLOW", "INSTRUCTION", "Check", "Rule", "assemble", "errno_rule"]

# struct sock_filter: what to do, how many instructions to skip if true and if false, a number.
INSTRUCTION = struct.Struct("=HBBI")

_LOAD, _AND, _RETURN = 0x20, 0x54, 0x06  # of the word at offset k; with k; k
_GOTO, _IF_EQUAL, _IF_AT_LEAST = 0x05, 0x15, 0x35
_FAR = 255  # how many instructions a condition can skip

# Where things are in struct seccomp_data.
_NUMBER, _MACHINE, _ARGUMENTS = 0, 4, 16

# A rule is what becomes of a call (SECCOMP_RET_*), or a question about one of its arguments.
ALLOW = 0x7FFF0000
_ERRNO = 0x00050000
_KILL_PROCESS = 0x80000000


class Check(NamedTuple):
    """A question about an argument: is it, or are those of its bits in *mask*, one of *values*?

    Only the lower 32 bits are looked at: the kernel looks at no more where an argument is an int,
    or is about flags that are all there. *upper*: only the upper ones are.
    """

    argument: int
    values: tuple[int, ...]
    then: Rule = ALLOW
    otherwise: Rule = ALLOW
    mask: int = 0xFFFFFFFF
    upper: bool = False


Rule: TypeAlias = int | Check


def errno_rule(number: int) -> int:
    """Return the rule to fail with the error *number*."""
    return _ERRNO | number


def assemble(rules: Mapping[int, Rule], unknown: Rule, architecture: int) -> bytes:
    """Put a program together.

    Args:
        rules: What becomes of each call, by its number.
        unknown: What becomes of all other numbers. (Those of x32, another interface of x86-64, are
            among them: they are higher than all.)
        architecture: The machine that the numbers are of. Calls by the interface of another, as
            32-bit code can make them, end the process.
    """
    ranges: list[tuple[int, Rule]] = []
    for number in range(max(rules) + 2):
        rule = rules.get(number, unknown)
        if not ranges or ranges[-1][1] != rule:
            ranges.append((number, rule))
    program = _Program()
    start = program.search(ranges)
    program.load(_NUMBER, start)
    native = program.size
    program.jump(_IF_EQUAL, architecture, native, program.end_with(_KILL_PROCESS))
    program.emit(_LOAD, _MACHINE)
    return program.bytes()


class _Program:
    """A program that is written from its end to its start, so that all jumps lead to known places.

    A place is the number of instructions from there to the end.
    """

    def __init__(self) -> None:
        self._reversed: list[bytes] = []
        self._ends: dict[int, int] = {}
        self._tests: dict[tuple[tuple[int, ...], Rule, Rule], int] = {}
        self._checks: dict[Check, int] = {}

    @property
    def size(self) -> int:
        """The number of instructions, and the place of the one that was written last."""
        return len(self._reversed)

    def bytes(self) -> bytes:
        return b"".join(reversed(self._reversed))

    def emit(self, code: int, k: int, skip: int = 0, skip_else: int = 0) -> int:
        self._reversed.append(INSTRUCTION.pack(code, skip, skip_else, k))
        return self.size

    def load(self, offset: int, following: int) -> int:
        """Load a word and go on at *following*."""
        if following != self.size:
            self.emit(_GOTO, self.size - following)
        return self.emit(_LOAD, offset)

    def jump(self, code: int, k: int, then: int, otherwise: int) -> int:
        """Go on at one of two places; through another jump if it is too far away."""
        size = self.size
        far_then, far_else = size - then > _FAR - 1, size - otherwise > _FAR - 1
        if far_then:
            then = self.emit(_GOTO, self.size - then)
        if far_else:
            otherwise = self.emit(_GOTO, self.size - otherwise)
        return self.emit(code, k, self.size - then, self.size - otherwise)

    def end_with(self, result: int) -> int:
        """Give the place of an instruction that ends the program, not far from here."""
        place = self._ends.get(result)
        if place is None or self.size - place > _FAR // 2:
            place = self._ends[result] = self.emit(_RETURN, result)
        return place

    def rule(self, rule: Rule) -> int:
        """Give the place of what does as *rule* says."""
        if isinstance(rule, int):
            return self.end_with(rule)
        place = self._checks.get(rule)
        if place is None:
            place = self._checks[rule] = self._check(rule)
        return place

    def _check(self, check: Check) -> int:
        key = check.values, check.then, check.otherwise
        test = self._tests.get(key)
        if test is None:
            then, otherwise = self.rule(check.then), self.rule(check.otherwise)
            test = otherwise
            for value in reversed(check.values):
                test = self.jump(_IF_EQUAL, value, then, test)
            self._tests[key] = test
        if check.mask != 0xFFFFFFFF:
            if test != self.size:
                self.emit(_GOTO, self.size - test)
            test = self.emit(_AND, check.mask)
        return self.load(_ARGUMENTS + 8 * check.argument + 4 * check.upper, test)

    def search(self, ranges: list[tuple[int, Rule]]) -> int:
        """Find the range that a number is in, and do as its rule says."""
        if len(ranges) == 1:
            return self.rule(ranges[0][1])
        middle = len(ranges) // 2
        upper = self.search(ranges[middle:])
        lower = self.search(ranges[:middle])
        return self.jump(_IF_AT_LEAST, ranges[middle][0], upper, lower)
