"""Assemble rules about system calls into a classic BPF program, which the kernel runs before each.

The program finds the rule for a call by binary search over call numbers, in about eight
comparisons. This is fast at run time and at installation: the kernel then runs the program for
every number to find the calls that are allowed with any arguments, and later skips it for those.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

__all__ = ["ALLOW", "INSTRUCTION", "Check", "Rule", "assemble", "errno_rule"]

# struct sock_filter: code, jt and jf (instructions to skip if true and if false), k.
INSTRUCTION = struct.Struct("=HBBI")

_LOAD, _AND, _RETURN = 0x20, 0x54, 0x06  # load the word at offset k; AND with k; return k
_GOTO, _IF_EQUAL, _IF_AT_LEAST = 0x05, 0x15, 0x35
_FAR = 255  # most instructions that a conditional jump can skip

# Offsets in struct seccomp_data.
_NUMBER, _MACHINE, _ARGUMENTS = 0, 4, 16

# A rule is an action (SECCOMP_RET_*), or a check of one argument.
ALLOW = 0x7FFF0000
_ERRNO = 0x00050000
_KILL_PROCESS = 0x80000000


class Check(NamedTuple):
    """A check whether an argument, or its bits in *mask*, equals one of *values*.

    Only the lower 32 bits are compared: the kernel ignores the upper ones of an int argument, and
    flags have none there. If *upper* is true, only the upper 32 bits are compared.
    """

    argument: int
    values: tuple[int, ...]
    then: Rule = ALLOW
    otherwise: Rule = ALLOW
    mask: int = 0xFFFFFFFF
    upper: bool = False


Rule: TypeAlias = int | Check


def errno_rule(number: int) -> int:
    """Return the rule that makes a call fail with the errno *number*."""
    return _ERRNO | number


def assemble(rules: Mapping[int, Rule], unknown: Rule, architecture: int) -> bytes:
    """Assemble and return a program.

    Args:
        rules: the rule for each call, by its number.
        unknown: the rule for all other numbers. (These include the numbers of x32, a second
            interface of x86-64, which are higher than all others.)
        architecture: the AUDIT_ARCH_* value that the numbers belong to. A call by the interface of
            another architecture, which 32-bit code can make, kills the process.
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
    """A program that is written from its end to its start, so that every jump target is known.

    A target is given as the number of instructions from there to the end.
    """

    def __init__(self) -> None:
        self._reversed: list[bytes] = []
        self._ends: dict[int, int] = {}
        self._tests: dict[tuple[tuple[int, ...], Rule, Rule], int] = {}
        self._checks: dict[Check, int] = {}

    @property
    def size(self) -> int:
        """The number of instructions, which is also the target of the one written last."""
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
        """Jump to one of two targets; through another jump if the target is too far away."""
        size = self.size
        far_then, far_else = size - then > _FAR - 1, size - otherwise > _FAR - 1
        if far_then:
            then = self.emit(_GOTO, self.size - then)
        if far_else:
            otherwise = self.emit(_GOTO, self.size - otherwise)
        return self.emit(code, k, self.size - then, self.size - otherwise)

    def end_with(self, result: int) -> int:
        """Return the target of a nearby instruction that returns *result*; write it if needed."""
        place = self._ends.get(result)
        if place is None or self.size - place > _FAR // 2:
            place = self._ends[result] = self.emit(_RETURN, result)
        return place

    def rule(self, rule: Rule) -> int:
        """Return the target of the instructions for *rule*; write them if needed."""
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
        """Write the search for the range that a number is in; return its target."""
        if len(ranges) == 1:
            return self.rule(ranges[0][1])
        middle = len(ranges) // 2
        upper = self.search(ranges[middle:])
        lower = self.search(ranges[:middle])
        return self.jump(_IF_AT_LEAST, ranges[middle][0], upper, lower)
