"""PTX text -> Kernel: parameters, registers, shared variables, labels and instructions, with nothing left as text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from ptx.errors import PtxError
from ptx.operands import Negated, Operand, Register, parse_operand, split_operands
from ptx.scalars import TYPES


@dataclass(frozen=True)
class Parameter:
    name: str
    offset_bytes: int
    size_bytes: int


@dataclass(frozen=True)
class Instruction:
    opcode: str  # add
    modifiers: tuple[str, ...]  # rn, f32
    operands: tuple[Operand, ...]
    guard: Register | Negated | None  # @%p or @!%p
    text: str
    line: int


@dataclass
class Kernel:
    name: str
    parameters: list[Parameter]
    parameter_bytes: int
    registers: list[Register] = field(default_factory=list)
    shared: dict[str, int] = field(default_factory=dict)  # name -> offset in bytes
    shared_bytes: int = 0  # without the dynamic part
    local: dict[str, int] = field(default_factory=dict)
    local_bytes: int = 0  # a lane
    labels: dict[str, int] = field(default_factory=dict)  # name -> index of an instruction
    instructions: list[Instruction] = field(default_factory=list)


_ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*(?:\((.*?)\))?([^{;]*)\{", re.S)
_PARAMETER = re.compile(
    r"\.param\s+(?:\.align\s+(\d+)\s+)?\.([a-z]+\d+)\s*(?:\.ptr\b[\s.\w]*?)?\s([\w$]+)\s*(?:\[(\d+)\])?", re.S
)
_VARIABLE = re.compile(
    r"(\.extern\s+)?\.(?:shared|local)\s+(?:\.align\s+(\d+)\s+)?\.([a-z]+\d+)\s+([\w$]+)\s*(?:\[(\d*)\])?$"
)
_REGISTERS = re.compile(r"\.reg\s+\.([a-z0-9]+)\s+(.*)$", re.S)
_LABEL = re.compile(r"\s*([\w$]+)\s*:(?!:)")
# Directives without a meaning at run time: source lines, hints to the optimiser.
_IGNORED = re.compile(r"^[ \t]*(\.loc|\.file)\b[^\n]*", re.M)
_GUARD = re.compile(r"@(!?)\s*([%\w$]+)\s+(.*)", re.S)


def parse(ptx: str, name: str | None = None) -> Kernel:
    """The entry called `name`, or the only entry."""
    ptx = _IGNORED.sub("", _without_comments(ptx))
    entries = [match for match in _ENTRY.finditer(ptx) if name in (None, match[1])]
    if len(entries) != 1:
        known = [match[1] for match in _ENTRY.finditer(ptx)]
        raise PtxError(f"expected one entry{f' called {name}' if name else ''}, the PTX has {known}")
    entry = entries[0]
    parameters, parameter_bytes = _parse_parameters(entry[2] or "")
    parser = _BodyParser(ptx, Kernel(entry[1], parameters, parameter_bytes))
    for match in re.finditer(r"((?:\.extern\s+)?\.shared\b[^;]*);", _outside_braces(ptx[: entry.start()])):
        parser.declare_shared(match[1])
    parser.parse_body(entry.end())
    return parser.finish()


def _without_comments(ptx: str) -> str:
    """Comments become blanks; line numbers stay."""
    return re.sub(r"//[^\n]*|/\*.*?\*/", lambda match: re.sub(r"[^\n]", " ", match[0]), ptx, flags=re.S)


def _outside_braces(text: str) -> str:
    """What is declared for the whole module, not inside another entry."""
    parts, depth, start = [], 0, 0
    for match in re.finditer(r"[{}]", text):
        if match[0] == "{":
            if depth == 0:
                parts.append(text[start : match.start()])
            depth += 1
        else:
            depth -= 1
            start = match.end()
    return " ".join([*parts, text[start:]])


def _parse_parameters(text: str) -> tuple[list[Parameter], int]:
    parameters, offset_bytes = [], 0
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = _PARAMETER.fullmatch(part)
        if match is None or match[2] not in TYPES:
            raise PtxError(f"unknown parameter form {part!r}")
        element_bytes = TYPES[match[2]].bytes
        align_bytes = int(match[1] or element_bytes)
        size_bytes = element_bytes * int(match[4] or 1)
        offset_bytes = -(-offset_bytes // align_bytes) * align_bytes
        parameters.append(Parameter(match[3], offset_bytes, size_bytes))
        offset_bytes += size_bytes
    return parameters, offset_bytes


class _BodyParser:
    def __init__(self, ptx: str, kernel: Kernel) -> None:
        self.ptx = ptx
        self.kernel = kernel
        self.scopes: list[dict[str, Register]] = [{}]
        self.dynamic: list[tuple[str, int]] = []  # name, alignment in bytes

    def parse_body(self, start: int) -> None:
        for position, statement in self._statements(start):
            line = self.ptx.count("\n", 0, position) + 1
            try:
                self._parse_statement(statement, line)
            except PtxError as error:
                raise PtxError(f"{error}\n  line {line}: {statement}") from None

    def _statements(self, position: int) -> Iterator[tuple[int, str]]:
        """Statements without their semicolons; opens and closes scopes and notes labels on the way."""
        ptx = self.ptx
        while True:
            while match := _LABEL.match(ptx, position):
                self.kernel.labels[match[1]] = len(self.kernel.instructions)
                position = match.end()
            while position < len(ptx) and ptx[position].isspace():
                position += 1
            if position >= len(ptx):
                raise PtxError("the body of the entry does not end")
            if ptx[position] == "{":
                self.scopes.append({})
                position += 1
            elif ptx[position] == "}":
                self.scopes.pop()
                position += 1
                if not self.scopes:
                    return
            elif _LABEL.match(ptx, position) is None:
                end = ptx.find(";", position)
                if end < 0:
                    raise PtxError("the body of the entry does not end")
                if statement := " ".join(ptx[position:end].split()):
                    yield position, statement
                position = end + 1

    def _parse_statement(self, statement: str, line: int) -> None:
        if statement.startswith(".reg"):
            self._declare_registers(statement)
        elif re.match(r"(\.extern\s+)?\.shared\b", statement):
            self.declare_shared(statement)
        elif statement.startswith(".local"):
            self.kernel.local_bytes = self._declare(statement, self.kernel.local, self.kernel.local_bytes)
        elif statement.startswith(".pragma"):
            return  # hints to the optimiser
        elif statement.startswith("."):
            raise PtxError("unknown directive")
        else:
            self.kernel.instructions.append(self._parse_instruction(statement, line))

    def _declare_registers(self, statement: str) -> None:
        match = _REGISTERS.match(statement)
        if match is None or match[1] not in TYPES:
            raise PtxError("unknown register declaration")
        for part in match[2].split(","):
            name = part.strip()
            if many := re.fullmatch(r"([%\w$]+)<(\d+)>", name):
                names = [f"{many[1]}{number}" for number in range(int(many[2]))]
            else:
                names = [name]
            for each in names:
                register = Register(each, len(self.kernel.registers), TYPES[match[1]])
                self.kernel.registers.append(register)
                self.scopes[-1][each] = register

    def declare_shared(self, statement: str) -> None:
        self.kernel.shared_bytes = self._declare(statement, self.kernel.shared, self.kernel.shared_bytes)

    def _declare(self, statement: str, variables: dict[str, int], used_bytes: int) -> int:
        """Places a variable behind the others; gives where it ends. One of dynamic size is placed by `finish`."""
        match = _VARIABLE.match(" ".join(statement.split()))
        if match is None or match[3] not in TYPES:
            raise PtxError(f"unknown declaration of a variable {statement!r}")
        align_bytes = int(match[2] or TYPES[match[3]].bytes)
        if match[1] and not match[5]:
            self.dynamic.append((match[4], align_bytes))
            return used_bytes
        offset_bytes = -(-used_bytes // align_bytes) * align_bytes
        variables[match[4]] = offset_bytes
        return offset_bytes + TYPES[match[3]].bytes * int(match[5] or 1)

    def _parse_instruction(self, statement: str, line: int) -> Instruction:
        guard: Register | Negated | None = None
        rest = statement
        if match := _GUARD.match(statement):
            predicate = self._find_register(match[2])
            if predicate is None:
                raise PtxError(f"unknown predicate {match[2]}")
            guard = Negated(predicate) if match[1] else predicate
            rest = match[3]
        opcode, *tail = rest.split(None, 1)
        operands = tuple(parse_operand(part, self._find_register) for part in split_operands("".join(tail)))
        name, *modifiers = opcode.split(".")
        return Instruction(name, tuple(modifiers), operands, guard, statement, line)

    def _find_register(self, name: str) -> Register | None:
        return next((scope[name] for scope in reversed(self.scopes) if name in scope), None)

    def finish(self) -> Kernel:
        """Dynamic shared memory begins where the static variables end."""
        align_bytes = max((align for _, align in self.dynamic), default=1)
        start = -(-self.kernel.shared_bytes // align_bytes) * align_bytes
        for name, _ in self.dynamic:
            self.kernel.shared[name] = start
        self.kernel.shared_bytes = start
        return self.kernel
