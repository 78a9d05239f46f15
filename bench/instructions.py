"""Warp instructions that the CUDA stream kernel issues for 32 pixels, counted without a GPU.

    python bench/instructions.py [--csrc DIR] [--architecture 90]

nvcc compiles csrc/cuda/pixel_gradients_stream_*.cu, the planner (built for the host) gives the kernel's arguments, and
the machine code that nvdisasm prints is walked for the four warps of one block: integers, predicates and constants are
computed, whatever depends on memory or floating point is unknown, and a branch on it is taken by nobody. Of two chunks,
one twice as long, the difference counts: what a chunk costs at its beginning and end drops out. Lanes that part are
counted apart, as the machine issues them. nvdisasm comes with CUDA, and with triton.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
PARAMETERS = {80: 0x160, 90: 0x210, 100: 0x380, 120: 0x380}  # where a kernel's arguments begin in constant bank 0
OUTPUTS = {
    "image": "image",
    "image, semantic": "image semantic",
    "every score": "image semantic class_pixels entropy margin confidence",
}
CASES = [  # type, weight's type, layout, d, K, outputs
    *[("bfloat16", "bfloat16", "planar", 16, 13, outputs) for outputs in OUTPUTS],
    *[("float32", "float32", "planar", 16, 13, outputs) for outputs in OUTPUTS],
    ("bfloat16", "bfloat16", "channels-last", 16, 13, "image, semantic"),
    ("float32", "float32", "channels-last", 16, 13, "image, semantic"),
    ("bfloat16", "bfloat16", "planar", 64, 13, "image, semantic"),
    ("float32", "float32", "planar", 64, 13, "image, semantic"),
    ("bfloat16", "bfloat16", "planar", 256, 19, "image, semantic"),
    ("bfloat16", "float32", "planar", 256, 19, "image, semantic"),
    ("float32", "float32", "planar", 256, 19, "image, semantic"),
]
TILES = 8, 16  # of the two chunks
# Prints a plan's numbers and the bytes of a kernel's arguments, by the planner itself.
PLANNER = """
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include "cuda/pixel_gradients_pass.cuh"
using namespace alges::cuda_pixel_gradients;
using alges::Type;
int main(int, char** a) {
  const bool is_float = !std::strcmp(a[1], "float32"), last = !std::strcmp(a[3], "channels-last");
  const int d = std::atoi(a[4]), tiles = std::atoi(a[7]);
  const auto asked = [&](const char* name) {
    return std::strstr((std::string(" ") + a[6] + " ").c_str(), (std::string(" ") + name + " ").c_str()) != nullptr;
  };
  Pass pass{};
  Call& call = pass.call;
  StreamPlan plan{};
  call.features.data = reinterpret_cast<void*>(uintptr_t{1} << 30);
  call.features.type = is_float ? Type::float32 : Type::bfloat16;
  call.weight = call.bias = reinterpret_cast<float*>(uintptr_t{1} << 31);
  float* const there = reinterpret_cast<float*>(uintptr_t{3} << 30);
  call.weight_is_bfloat16 = !std::strcmp(a[2], "bfloat16");
  if (asked("image")) call.image = there;
  if (asked("semantic")) call.semantic = there;
  if (asked("class_pixels")) call.class_pixels = reinterpret_cast<int64_t*>(there);
  if (asked("entropy")) call.entropy = call.margin = call.confidence = there;
  for (int64_t side = 1 << 14;;) {  // once for the tile, once for so many of them
    call.shape = {1, d, std::atoi(a[5]), {1, 1, static_cast<int>(side)}, {1, 1, 1}};
    const int64_t pixel = last ? d : 1;
    const int64_t stride[] = {d * side, last ? 1 : side, side * pixel, side * pixel, pixel};
    std::memcpy(call.features.stride, stride, sizeof(stride));
    const std::string why = plan_stream(call, 232448, plan);
    if (!why.empty()) return std::puts(why.c_str()), 1;
    if (side == int64_t{tiles} * plan.pixels) break;
    side = int64_t{tiles} * plan.pixels;
  }
  pass.scratch = there;
  pass.outer = pass.scores = pass.needs_prediction = true;
  pass.needs_norm = call.semantic != nullptr;
  pass.by_prediction = call.semantic || call.class_pixels;
  pass.confidences = call.entropy != nullptr;
  std::printf("%d %d %d %d ", plan.pixels, plan.class_tiles, plan.tiles_a_warp, plan.shared_bytes);
  const auto bytes = [](const void* at, size_t n) {
    for (size_t i = 0; i < n; ++i) std::printf("%02x", static_cast<const unsigned char*>(at)[i]);
  };
  bytes(&pass, sizeof(pass));
  bytes(&plan, sizeof(plan));
}
"""

Value = np.ndarray | None  # 32 lanes, or unknown
ZERO = np.zeros(32, np.int64)
MASK = 0xFFFFFFFF


@dataclass(frozen=True)
class Instruction:
    guard: str
    opcode: tuple[str, ...]
    operands: tuple[str, ...]


Kernel = tuple[list[Instruction], dict[str, int]]  # and where the labels are


def parse(listing: str) -> dict[str, Kernel]:
    """The kernels by name."""
    kernels: dict[str, Kernel] = {}
    for part in re.split(r"^\.text\.", listing, flags=re.M)[1:]:
        name, _, body = part.partition(":")
        code: list[Instruction] = []
        labels: dict[str, int] = {}
        for line in body.splitlines():
            if found := re.match(r"^\s*([.$\w]+):\s*$", line):
                labels[found[1]] = len(code)
            elif found := re.match(r"^\s*/\*[0-9a-f]+\*/\s+(?:@(!?U?P\w+)\s+)?([\w.]+)\s*(.*?)\s*;", line):
                operands = tuple(one.strip() for one in found[3].split(",")) if found[3] else ()
                code.append(Instruction(found[1] or "PT", tuple(found[2].split(".")), operands))
        kernels[name] = code, labels
    return kernels


class Warp:
    """One warp on its way through a kernel."""

    def __init__(self, code: list[Instruction], labels: dict[str, int], constants: bytes, number: int) -> None:
        self.code, self.labels, self.constants = code, labels, constants
        self.lanes = np.arange(32, dtype=np.int64) + 32 * number
        self.registers: dict[str, Value] = {}
        self.predicates: dict[str, Value] = {}
        self.return_to = np.zeros(32, np.int64)
        self.issued: Counter[str] = Counter()

    def run(self) -> None:
        at = np.zeros(32, np.int64)
        alive = np.ones(32, bool)
        while alive.any():
            here = int(at[alive].min())  # those behind go first, so that lanes meet again
            active = alive & (at == here)
            instruction = self.code[here]
            self.issued[".".join(instruction.opcode[:2])] += 1
            guard = self.predicate(instruction.guard)
            doing = active & (np.zeros(32, bool) if guard is None else guard)
            at[active] += 1
            kind = instruction.opcode[0]
            if kind == "EXIT":
                alive &= ~doing
            elif kind in ("BRA", "CALL", "RET"):
                self.jump(instruction, doing, at)
            else:
                self.execute(instruction, active, guard)

    def jump(self, instruction: Instruction, doing: np.ndarray, at: np.ndarray) -> None:
        kind, *modifiers = instruction.opcode
        if "DIV" in modifiers or "CONV" in modifiers:
            return
        operands = list(instruction.operands)
        while operands and re.fullmatch(r"!?U?P[0-9T]+", operands[0]):
            condition = self.predicate(operands.pop(0))
            doing = doing & (np.zeros(32, bool) if condition is None else condition)
        if kind == "RET":
            at[doing] = self.return_to[doing]
        else:
            if kind == "CALL":  # what is called calls nothing
                self.return_to[doing] = at[doing]
            found = re.search(r"`\((.+)\)", operands[-1])
            assert found, instruction
            at[doing] = self.labels[found[1]]

    def predicate(self, name: str) -> Value:
        negated, name = name.startswith("!"), name.lstrip("!")
        if name in ("PT", "UPT"):
            value: Value = np.ones(32, bool)
        else:
            value = self.predicates.get(name)
        return value if value is None or not negated else ~value

    def value(self, text: str, bits: int = 32) -> Value:
        """An operand, not negative; of 64 bits a pair of registers."""
        text = re.sub(r"\.(reuse|64|H0_H0|H1_H1|U32)", "", text)
        if text.startswith("-") and not text.startswith("-0x"):
            inner = self.value(text[1:], bits)
            return None if inner is None else -inner & (1 << bits) - 1
        if text.startswith("~"):
            inner = self.value(text[1:], bits)
            return None if inner is None else ~inner & (1 << bits) - 1
        if text.startswith("|"):
            inner = self.value(text.strip("|"))
            return None if inner is None else np.abs(signed(inner))
        if found := re.fullmatch(r"c\[0x0\]\[(0x[0-9a-f]+)\]", text):
            return ZERO + int.from_bytes(self.constants[int(found[1], 16) :][: bits // 8], "little")
        if re.fullmatch(r"-?0x[0-9a-f]+|-?\d+", text):
            return ZERO + (int(text, 0) & (1 << bits) - 1)
        if text in ("RZ", "URZ", "SRZ"):
            return ZERO
        if not re.fullmatch(r"U?R\d+", text):
            return None
        low = self.registers.get(text)
        if bits == 32 or low is None:
            return low
        high = self.registers.get(following(text))
        return None if high is None else low | high << 32

    def set(self, name: str, value: Value, active: np.ndarray, guard: Value, bits: int = 32) -> None:
        if bits == 64:
            self.set(following(name), None if value is None else value >> 32 & MASK, active, guard)
        if name in ("RZ", "URZ"):
            return
        if value is None or guard is None:
            self.registers[name] = None
            return
        doing = active & guard
        if name.startswith("UR"):  # one for all lanes
            if doing.any():
                self.registers[name] = ZERO + (int(value[np.argmax(doing)]) & MASK)
            return
        before = self.registers.get(name)
        if before is None and not doing.all():
            before = ZERO  # lanes that are elsewhere, or did nothing: never read unless they wrote
        self.registers[name] = value & MASK if before is None else np.where(doing, value & MASK, before)

    def set_predicate(self, name: str, value: Value, active: np.ndarray, guard: Value) -> None:
        if name in ("PT", "UPT"):
            return
        if value is None or guard is None:
            self.predicates[name] = None
            return
        doing = active & guard
        if name.startswith("U"):
            if doing.any():
                self.predicates[name] = np.full(32, bool(value[np.argmax(doing)]))
            return
        before = self.predicates.get(name)
        self.predicates[name] = np.where(doing, value, np.zeros(32, bool) if before is None else before)

    def execute(self, instruction: Instruction, active: np.ndarray, guard: Value) -> None:
        kind, *modifiers = instruction.opcode
        operands = list(instruction.operands)
        if kind.startswith("U") and kind[1:] in KNOWN:
            kind = kind[1:]
        if kind in ("ISETP", "FSETP", "PLOP3", "HSETP2"):
            first, second, *rest = operands
            found: Value = None
            if kind == "ISETP":
                found = self.compare(modifiers, rest)
            elif kind == "PLOP3":
                inputs = [self.predicate(one) for one in rest[:3]]
                table = int(rest[3], 0)
                found = None if any(one is None for one in inputs) else lookup(table, inputs)
            self.set_predicate(first, found, active, guard)
            self.set_predicate(second, None if found is None else ~found, active, guard)
            return
        if not operands or not re.fullmatch(r"U?R(\d+|Z)", operands[0]):
            return  # stores, barriers
        to, *rest = operands
        carries = []
        while rest and re.fullmatch(r"U?P[0-9T]+", rest[0]) and kind in ("IADD3", "IMAD", "LEA", "LOP3", "SHFL"):
            carries.append(rest.pop(0))
        bits = 64 if "64" in modifiers or "WIDE" in modifiers else 32
        if kind == "CS2R":
            bits = 32 if "32" in modifiers else 64
        result: Value = None
        carry: Value = None
        if kind in KNOWN:
            result, carry = KNOWN[kind](self, modifiers, rest)
        words = 4 if "128" in modifiers else 2 if bits == 64 else 1
        if kind in ("LDS", "LDG", "LDSM", "HMMA", "LDL"):
            words = 4 if kind in ("LDSM", "HMMA") else words
            for _ in range(words):
                self.set(to, None, active, guard)
                to = following(to)
            return
        self.set(to, result, active, guard, bits)
        for name in carries:
            self.set_predicate(name, carry, active, guard)

    def compare(self, modifiers: list[str], rest: list[str]) -> Value:
        a, b, other = self.value(rest[0]), self.value(rest[1]), self.predicate(rest[2])
        if a is None or b is None or other is None:
            return None
        if "U32" not in modifiers:
            a, b = signed(a), signed(b)
        compared = {"LT": a < b, "LE": a <= b, "GT": a > b, "GE": a >= b, "EQ": a == b, "NE": a != b}
        found = compared[modifiers[0]]
        if "EX" in modifiers:  # the upper half; the lower one's result comes along
            low = self.predicate(rest[3])
            if low is None:
                return None
            if modifiers[0] == "EQ":
                found = found & low
            elif modifiers[0] == "NE":
                found = found | low
            else:
                found = np.where(a == b, low, found)
        return found & other if "AND" in modifiers else found | other if "OR" in modifiers else found ^ other

    def several(self, texts: list[str], bits: int = 32) -> list[np.ndarray] | None:
        values = [self.value(text, bits) for text in texts]
        return None if any(value is None for value in values) else values  # type: ignore[return-value]


def following(name: str) -> str:
    return re.sub(r"\d+", lambda digits: str(int(digits[0]) + 1), name)


def signed(value: np.ndarray) -> np.ndarray:
    return (value & MASK ^ 1 << 31) - (1 << 31)


def lookup(table: int, inputs: list[Value], bits: int = 1) -> np.ndarray:
    """The function of three inputs whose value for (1,1,1) is bit 7 of `table`."""
    if bits == 1:
        index = sum(np.asarray(one, np.int64) << 2 - place for place, one in enumerate(inputs))
        return (table >> index & 1).astype(bool)
    result = np.zeros(32, np.int64)
    for row in range(8):
        if table >> row & 1:
            term = np.full(32, MASK, np.int64)
            for place, one in enumerate(inputs):
                assert one is not None
                term &= one if row >> 2 - place & 1 else ~one & MASK
            result |= term
    return result


Result = tuple[Value, Value]
NOTHING: Result = (None, None)


def _move(warp: Warp, modifiers: list[str], rest: list[str]) -> Result:
    value = warp.value(rest[0], 64 if "64" in modifiers else 32)
    return (value & 0xFF if value is not None and "U8" in modifiers else value), None


def _special(warp: Warp, modifiers: list[str], rest: list[str]) -> Result:
    known = {"SR_TID.X": warp.lanes, "SR_LANEID": warp.lanes % 32}
    return known.get(rest[0], ZERO), None


def _multiply(warp: Warp, modifiers: list[str], rest: list[str]) -> Result:
    wide = "WIDE" in modifiers or "HI" in modifiers
    carry_in = warp.predicate(rest[3]) if "X" in modifiers and len(rest) > 3 else np.zeros(32, bool)
    values, c = warp.several(rest[:2]), warp.value(rest[2], 64 if wide else 32)
    if values is None or c is None or carry_in is None:
        return NOTHING
    a, b = values
    if "U32" not in modifiers:
        a, b = signed(a), signed(b)
    total = [int(x) * int(y) + int(z) + int(w) for x, y, z, w in zip(a, b, c, carry_in, strict=True)]
    if "HI" in modifiers:
        return np.array([one >> 32 & MASK for one in total]), None
    if wide:
        low = np.array([(one & (1 << 64) - 1) - (1 << 64 if one & 1 << 63 else 0) for one in total])
        return low, np.array([one >> 64 != 0 for one in total])
    return np.array([one & MASK for one in total]), None


def _add(warp: Warp, modifiers: list[str], rest: list[str]) -> Result:
    total: np.ndarray = np.zeros(32, np.int64)
    for text in rest[:3]:
        if re.fullmatch(r"!?U?P[0-9T]+", text):
            continue
        negated = text.startswith("-") and not text.startswith("-0x")
        value = warp.value(text[1:] if negated else text)
        if value is None:
            return NOTHING
        total = total + ((~value & MASK) + 1 if negated else value)
    if "X" in modifiers:
        for text in rest[3:]:
            carry = warp.predicate(text)
            if carry is None:
                return NOTHING
            total = total + carry
    return total & MASK, total > MASK


def _shift_add(warp: Warp, modifiers: list[str], rest: list[str]) -> Result:
    places = [text for text in rest if not re.fullmatch(r"!?U?P[0-9T]+", text)]
    carries = [warp.predicate(text) for text in rest if re.fullmatch(r"!?U?P[0-9T]+", text)]
    values = warp.several(places)
    if values is None or any(one is None for one in carries):
        return NOTHING
    carry = sum((one for one in carries if one is not None), start=ZERO) if "X" in modifiers else ZERO
    if "HI" in modifiers:
        a, b, *c, shift = values
        upper = np.where(signed(a) < 0, MASK, 0) if "SX32" in modifiers else c[0] if c else ZERO
        total = (a >> 32 - int(shift[0]) | upper << int(shift[0]) & MASK) + b + carry
    else:
        a, b, shift = values
        total = (a << int(shift[0]) & MASK) + b + carry
    return total & MASK, total > MASK


def _logic(warp: Warp, modifiers: list[str], rest: list[str]) -> Result:
    values = warp.several(rest[:3])
    if values is None:
        return NOTHING
    found = lookup(int(rest[3], 0), list(values), 32)
    return found, found != 0


def _shift(warp: Warp, modifiers: list[str], rest: list[str]) -> Result:
    values = warp.several(rest[:3])
    if values is None:
        return NOTHING
    a, by, upper = values
    by = by & 63 if "U64" in modifiers or "S64" in modifiers else np.minimum(by, 32)
    if "S32" in modifiers or "S64" in modifiers:
        upper = signed(upper)
    both = upper * (1 << 32) + a if "R" in modifiers else None
    result = []
    for x, y, z, n in zip(a, upper, both if both is not None else ZERO, by, strict=True):
        if "L" in modifiers:
            whole = (int(y) << 32 | int(x)) << int(n)
            result.append(whole >> 32 & MASK if "HI" in modifiers else whole & MASK)
        elif "HI" in modifiers:
            result.append((int(y) >> int(n)) & MASK)
        else:
            result.append((int(z) >> int(n)) & MASK)
    return np.array(result), None


def _select(warp: Warp, modifiers: list[str], rest: list[str]) -> Result:
    values, chosen = warp.several(rest[:2]), warp.predicate(rest[2])
    return NOTHING if values is None or chosen is None else (np.where(chosen, values[0], values[1]), None)


def _least(warp: Warp, modifiers: list[str], rest: list[str]) -> Result:
    values, least = warp.several(rest[:-1]), warp.predicate(rest[-1])
    if values is None or least is None:
        return NOTHING
    if len(values) == 3:
        values = [values[0] + values[1] & MASK, values[2]]
    if "U32" not in modifiers:
        values = [signed(value) for value in values]
    return np.where(least, np.minimum(*values), np.maximum(*values)) & MASK, None


def _to_float(warp: Warp, modifiers: list[str], rest: list[str]) -> Result:
    value = warp.value(rest[0])
    if value is None:
        return NOTHING
    number = (value if "U32" in modifiers else signed(value)).astype(np.float32)
    return number.view(np.int32).astype(np.int64) & MASK, None


def _function(warp: Warp, modifiers: list[str], rest: list[str]) -> Result:
    value = warp.value(rest[0])
    if value is None or modifiers != ["RCP"]:
        return NOTHING
    with np.errstate(all="ignore"):
        number = np.float32(1) / value.astype(np.uint32).view(np.float32)
    return number.view(np.int32).astype(np.int64) & MASK, None


def _to_integer(warp: Warp, modifiers: list[str], rest: list[str]) -> Result:
    value = warp.value(rest[0])
    if value is None:
        return NOTHING
    number = np.nan_to_num(value.astype(np.uint32).view(np.float32).astype(np.float64))
    return np.clip(number, 0, MASK).astype(np.int64), None


def _absolute(warp: Warp, modifiers: list[str], rest: list[str]) -> Result:
    value = warp.value(rest[0])
    return (None if value is None else np.abs(signed(value)), None)


KNOWN: dict[str, Callable[[Warp, list[str], list[str]], Result]] = {
    **dict.fromkeys(("MOV", "LDC", "R2UR"), _move),
    **dict.fromkeys(("S2R", "S2UR", "CS2R"), _special),
    "IMAD": _multiply,
    **dict.fromkeys(("IADD3", "VIADD", "IADD"), _add),
    "LEA": _shift_add,
    "LOP3": _logic,
    "SHF": _shift,
    "SEL": _select,
    **dict.fromkeys(("VIMNMX", "IMNMX", "VIADDMNMX"), _least),
    "I2F": _to_float,
    "I2FP": _to_float,
    "MUFU": _function,
    "F2I": _to_integer,
    "IABS": _absolute,
}


def nvdisasm() -> str:
    if found := shutil.which("nvdisasm"):
        return found
    import triton

    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm")


def compiled(csrc: Path, architecture: int, folder: Path, types: Sequence[str]) -> dict[str, dict[str, Kernel]]:
    """The kernels by type."""
    running = {}
    for name in types:
        source = csrc / "cuda" / f"pixel_gradients_stream_{name}.cu"
        made = str(folder / f"{name}.cubin")
        target = f"-gencode=arch=compute_{architecture},code=sm_{architecture}"
        command = ["nvcc", "-std=c++17", "-O3", target, f"-I{csrc}", "-cubin", "-o", made, str(source)]
        running[name] = made, subprocess.Popen(command)
    if any(process.wait() for _, process in running.values()):
        sys.exit("nvcc failed")
    printed = {
        name: subprocess.run([nvdisasm(), "-c", made], check=True, capture_output=True, text=True).stdout
        for name, (made, _) in running.items()
    }
    return {name: parse(listing) for name, listing in printed.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csrc", type=Path, default=ROOT / "csrc")
    parser.add_argument("--architecture", type=int, default=90, choices=sorted(PARAMETERS))
    parser.add_argument(
        "--types", nargs="+", default=["float32", "bfloat16"], help="of features; each compiles for minutes"
    )
    parser.add_argument("--opcodes", action="store_true", help="what the instructions are")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder)
        (at / "planner.cpp").write_text(PLANNER)
        include = [f"-I{ROOT / 'tests' / 'ops' / 'emulation'}", f"-I{given.csrc}"]
        sources = [str(at / "planner.cpp"), str(given.csrc / "cuda" / "pixel_gradients_plan.cpp")]
        subprocess.run(["g++", "-std=c++17", *include, *sources, "-o", str(at / "planner")], check=True)
        kernels = compiled(given.csrc, given.architecture, at, given.types)
        print(f"sm_{given.architecture}: warp instructions for 32 pixels")
        for dtype, weight, layout, channels, classes, outputs in CASES:
            if dtype not in given.types:
                continue
            issued = []
            for tiles in TILES:
                arguments = [dtype, weight, layout, str(channels), str(classes), OUTPUTS[outputs], str(tiles)]
                printed = subprocess.run([str(at / "planner"), *arguments], check=True, capture_output=True, text=True)
                *numbers, data = printed.stdout.split()
                pixels, class_tiles, a_warp, shared = map(int, numbers)
                most = 2 if a_warp <= 2 else 4 if a_warp <= 4 else 8
                if not any(f"ELi{most}ELb0EE" in name for name in kernels[dtype]):
                    most = 8  # of sources without an instance of 4
                of = "f" if dtype == "float32" else "NS_8Bfloat16E"
                wanted = f"stream_kernelI{of}Lb{int(layout != 'planar')}ELi{class_tiles}ELi{most}ELb0EE"
                code, labels = next(found for name, found in kernels[dtype].items() if wanted in name)
                constants = bytes(PARAMETERS[given.architecture]) + bytes.fromhex(data)
                warps = [Warp(code, labels, constants, number) for number in range(4)]
                for warp in warps:
                    warp.run()
                issued.append(sum((warp.issued for warp in warps), Counter()))
            parts = (TILES[1] - TILES[0]) * pixels / 32
            spent = {name: (count - issued[0][name]) / parts for name, count in issued[1].most_common()}
            case = f"{dtype}, weight {weight}, {layout}, d {channels}, K {classes}: {outputs}"
            print(f"{sum(spent.values()):8.0f}  {case} ({shared} bytes of shared memory)", flush=True)
            if given.opcodes:
                print("         ", ", ".join(f"{name} {count:.0f}" for name, count in spent.items() if count >= 1))


if __name__ == "__main__":
    main()
