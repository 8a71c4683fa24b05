"""The parser of PTX: a kernel's instructions as the machine takes them, with the names of PTX less what the operands say too (`.v4`). Special
registers, registers and constants are slots, numbered in this order. What it does not know it refuses, with the line that has it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

SPECIAL = ("%tid.x", "%ctaid.x", "%ctaid.y", "%ctaid.z", "%nctaid.x", "%nctaid.y", "%nctaid.z")  # the first slots, as machine.cpp fills them
SHARED_BEGIN = 0x1000  # the address of shared memory: not zero, which is what a forgotten address is
WITHOUT_DESTINATION = ("bra", "ret", "bar", "st", "cp")
_NUMBER = re.compile(r"0[fd][0-9a-fA-F]+|-?0x[0-9a-fA-F]+U?|-?\d+U?")
_FILE = re.compile(r'\.file\s+(\d+)\s+"([^"]*)"(?:\s+"([^"]*)")?')


class Unsupported(Exception):
    """The PTX has something that the machine does not know."""


@dataclass
class Instruction:
    name: str
    line: int
    predicate: int = -1  # a slot
    negated: bool = False
    target: str | None = None  # a label
    forgets: bool = False  # a load without `other`: where its mask is off, its destinations hold nothing
    destinations: list[int] = field(default_factory=list)
    sources: list[int] = field(default_factory=list)  # -1 - n: constant n
    offsets: list[int] = field(default_factory=list)  # of the addresses among the sources


def _operands(text: str) -> list[str]:
    """Split at the commas outside of braces and brackets."""
    return [operand.strip() for operand in re.findall(r"(?:\{[^}]*\}|\[[^\]]*\]|[^,{\[])+", text)]


class Program:
    """A kernel's PTX, parsed.

    Args:
        text: the PTX of one kernel, as Triton makes it.

    Raises:
        Unsupported: an operand or a statement that this parser does not know, with its line.
    """

    def __init__(self, text: str) -> None:
        self.lines = text.split("\n")
        self.parameters = re.findall(r"\.param \.(\w+) .*_param_\d+", text)
        threads = re.search(r"\.reqntid (\d+)", text)
        if threads is None:
            raise Unsupported("PTX without .reqntid, which says how many threads run it")
        self.threads = int(threads[1])
        self.instructions: list[Instruction] = []
        self.labels: dict[str, int] = {}
        self.constants: dict[int, int] = {}
        self._slots = {name: slot for slot, name in enumerate(SPECIAL)}
        self._files = {int(number): "/".join(filter(None, name)) for number, *name in re.findall(_FILE, text)}
        self._places: dict[int, str] = {}  # by line of the PTX: where in the kernel's source
        self._parse()
        self.registers = len(self._slots) - len(SPECIAL)

    def where(self, line: int) -> str:
        """The statement of a line, and the line of the kernel's source that it comes from."""
        return f"{' '.join(self.lines[line - 1].split())} <- {self._places.get(line, 'unknown')}"

    def _parse(self) -> None:
        begin = self.lines.index("{")
        place, without_other, in_assembly = "unknown", set(), False
        for number, line in enumerate(self.lines[begin + 1 : self.lines.index("}", begin)], begin + 2):
            if "begin inline asm" in line or "end inline asm" in line:
                without_other, in_assembly = set(), "begin" in line
            line = line.split("//")[0].strip()
            if source := re.match(r"\.loc\s+(\d+) (\d+)", line):
                place = f"{self._files.get(int(source[1]), '?')}:{source[2]}"
            if label := re.match(r"([\w$]+):", line):
                self.labels[label[1]] = len(self.instructions)
                line = line[label.end() :].strip()
            if line.startswith("."):  # a directive
                continue
            self._places[number] = place
            for statement in filter(None, map(str.strip, line.split(";"))):
                try:
                    instruction = self._statement(statement, number)
                except (AttributeError, IndexError, ValueError) as error:
                    raise Unsupported(f"{statement} (line {number} of the PTX): {error}") from error
                # Triton's load writes `other`, a register, to the destinations before it loads; without an `other` that is a literal zero,
                # which nobody asked for and nobody may rely on.
                if in_assembly and re.fullmatch(r"mov\.\w+ %\w+, 0x0", statement):
                    without_other.add(instruction.destinations[0])
                instruction.forgets = instruction.predicate >= 0 and not without_other.isdisjoint(instruction.destinations)
                self.instructions.append(instruction)
        self.instructions.append(Instruction("ret", len(self.lines)))

    def _statement(self, text: str, line: int) -> Instruction:
        # @!%p1 ld.global.v2.b32 { %r1, %r2 }, [ %rd1 + 8 ]
        guard, negation, predicate, name, rest = re.fullmatch(r"(@(!?)(%\w+)\s+)?([\w.:]+)\s*(.*)", text).groups()
        instruction = Instruction(re.sub(r"\.v\d|::cta|\.uni$", "", name), line, negated=bool(negation))
        if guard:
            instruction.predicate = self._register(predicate)
        operands = _operands(rest)
        if instruction.name == "bra":
            instruction.target = operands[0]
            return instruction
        if instruction.name.startswith("mov") and "{" in rest:
            instruction.name = instruction.name.replace("mov", "unpack" if operands[0].startswith("{") else "pack")
        if instruction.name == "bar.sync" and operands != ["0"]:
            raise ValueError("only barrier 0, of all threads, is known")
        if not instruction.name.startswith(WITHOUT_DESTINATION):
            instruction.destinations = [-1 if name == "_" else self._register(name) for name in self._parts(operands.pop(0))]
        for operand in operands:
            if operand.startswith("["):
                base, offset = re.fullmatch(r"\[\s*([%\w]+)\s*(?:\+\s*(-?\w+))?\s*\]", operand).groups("0")
                instruction.sources.append(self._source(base))
                instruction.offsets.append(int(offset, 0))
            else:
                instruction.sources += map(self._source, self._parts(operand))
        return instruction

    @staticmethod
    def _parts(operand: str) -> list[str]:
        return [part.strip() for part in operand.strip("{} ").split(",")]

    def _register(self, name: str) -> int:
        if not re.fullmatch(r"%[a-z]+\d+", name):
            raise ValueError(f"{name} is no register")
        return self._slots.setdefault(name, len(self._slots))

    def _source(self, text: str) -> int:
        if text in self._slots:
            return self._slots[text]
        if text.startswith("%"):
            return self._register(text)
        if text == "global_smem":
            value = SHARED_BEGIN
        elif parameter := re.fullmatch(r"\w+_param_(\d+)", text):
            value = int(parameter[1])  # its address, in a memory of its own
        elif _NUMBER.fullmatch(text):
            value = int(text[2:], 16) if text[:2] in ("0f", "0d") else int(text.rstrip("U"), 0)
        else:
            raise ValueError(f"{text} is no operand that is known")
        return -1 - self.constants.setdefault(value % 2**64, len(self.constants))
