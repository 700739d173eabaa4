"""The machine code of the runtime: sparse sums of vectors, written for LLVM and compiled at load.

States are slots of n numbers, the batch innermost, in one array X. A row of a sparse layer is

    X[out + t] = φ(bias + Σ_p value_p · X[offset_p + t]),   t in a segment,

for a dense layer as for a convolution, whose segments are rows of an image. A tile of T numbers
stays in registers while the non-zeros of a row pass by: one broadcast and a fused multiply-add of
memory each. Features are taken in panels, so that what a tile reads stays in the first-level cache.

Every function takes a description (words of 64 bits, see `program`), X, and the call: pointers to
inputs and outputs, the number of samples, and a place for a sum that is NaN if an input is.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir

TILE = 256
"""Bytes of the largest tile: four registers of 512 bits, or eight of 256."""

CHAINS = 2
"""Sums of a row side by side, for every tile, so that numbers do not depend on it: one alone waits
for itself."""

TOGETHER = 4
"""Rows that share what they read: a tile of it is loaded once for all of them."""

LANES = 16
"""Products at a time where a row is one number: a sum of gathered ones."""

WORD, INDEX, POINTER = ir.IntType(64), ir.IntType(32), ir.PointerType()

PHI = ("identity", "relu", "leaky_relu", "relu6")
"""Activations that are applied to a tile in registers, by their number in a description."""


@dataclass(frozen=True)
class Kernels:
    """Compiled functions for one dtype.

    Args:
        address: Of each function by name.
        run: Runs a list of functions and their descriptions.
        widths: Widths T of tiles, widest first.
        engine: Owner of the code.
    """

    address: dict[str, int]
    run: Any
    widths: tuple[int, ...]
    engine: Any

    def width(self, length: int) -> int:
        """Choose the tile of a segment.

        Args:
            length: Numbers in the shortest segment.

        Returns:
            T.
        """
        return next(T for T in self.widths if T <= length)


@cache
def kernels(bits: int) -> Kernels:
    """Compile the functions for this machine.

    Args:
        bits: 32 or 64, of a number.

    Returns:
        The functions.
    """
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    features = llvm.get_host_cpu_features()
    real = ir.FloatType() if bits == 32 else ir.DoubleType()
    size = bits // 8
    tile = TILE if "avx512f" in features and features["avx512f"] else TILE // 2
    widths = tuple(T for T in (64, 32, 16, 8, 4, 1) if T * size <= tile)
    writer = _Writer(real, size)
    for T in widths:
        writer.sums(T)
        if T > 1:
            writer.blocks(T)
        writer.maxima(T)
    writer.dots()
    writer.moves()
    for N in sorted({1, 8, 64 // size}):
        writer.pack(N)
    writer.unpack()
    writer.run()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=features.flatten(), opt=2
    )
    module = llvm.parse_assembly(str(writer.module))
    module.verify()
    # all that the code needs, in a fifth of the time of LLVM's usual passes
    passes = llvm.create_new_function_pass_manager()
    passes.add_sroa_pass()
    passes.add_simplify_cfg_pass()
    passes.add_instruction_combine_pass()
    passes.add_loop_rotate_pass()
    passes.add_simplify_cfg_pass()
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options())
    for function in module.functions:
        if not function.is_declaration:
            passes.run(function, builder)
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    address = {name: engine.get_function_address(name) for name in writer.names}
    kind = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 4)
    return Kernels(address, kind(address["run"]), widths, engine)


class _Writer:
    def __init__(self, real: ir.Type, size: int) -> None:
        self.module, self.real, self.size = ir.Module("simplicit"), real, size
        self.names: list[str] = []
        self.kind = ir.FunctionType(ir.VoidType(), [POINTER] * 3)

    def _start(self, name: str, kind: ir.FunctionType | None = None) -> Any:
        function = ir.Function(self.module, kind or self.kind, name)
        # without it LLVM takes half of a register of 512 bits
        for attribute in ("min-legal-vector-width", "prefer-vector-width"):
            function.attributes._known |= {f'"{attribute}"="512"'}
            function.attributes.add(f'"{attribute}"="512"')
        self.names.append(name)
        self.b = ir.IRBuilder(function.append_basic_block())
        return function

    def _vector(self, T: int) -> ir.VectorType:
        return ir.VectorType(self.real, T)

    def _at(self, pointer: Any, index: Any, kind: ir.Type) -> Any:
        return self.b.gep(pointer, [index], source_etype=kind)

    def _get(self, pointer: Any, index: Any, kind: ir.Type, align: int | None = None) -> Any:
        return self.b.load(self._at(pointer, index, kind), typ=kind, align=align)

    def _word(self, description: Any, index: int) -> Any:
        return self._get(description, WORD(index), WORD)

    def _array(self, description: Any, index: int) -> Any:
        return self._get(description, WORD(index), POINTER)

    def _numbers(self, pointer: Any, index: Any, T: int) -> Any:
        at = self._at(pointer, index, self.real)
        return self.b.load(at, typ=self._vector(T), align=self.size)

    def _put(self, value: Any, pointer: Any, index: Any) -> None:
        self.b.store(value, self._at(pointer, index, self.real), align=self.size)

    def _splat(self, number: Any, T: int) -> Any:
        one = self.b.insert_element(ir.Constant(self._vector(T), ir.Undefined), number, INDEX(0))
        zeros = ir.Constant(ir.VectorType(INDEX, T), [0] * T)
        return self.b.shuffle_vector(one, one, zeros)

    def _filled(self, number: float, T: int) -> ir.Constant:
        return ir.Constant(self._vector(T), [ir.Constant(self.real, number)] * T)

    def _wide(self, index: Any) -> Any:
        return self.b.sext(index, WORD)

    def _kept(self, value: Any) -> Any:  # a variable; LLVM holds it in a register
        with self.b.goto_entry_block():
            place = self.b.alloca(value.type)
        self.b.store(value, place)
        return place

    @contextmanager
    def _loop(self, start: Any, stop: Any, step: int = 1) -> Iterator[Any]:
        b = self.b
        counter = self._kept(start)
        head, body, end = (b.append_basic_block() for _ in range(3))
        b.branch(head)
        b.position_at_end(head)
        index = b.load(counter, typ=WORD)
        b.cbranch(b.icmp_signed("<", index, stop), body, end)
        b.position_at_end(body)
        yield index
        b.store(b.add(index, WORD(step)), counter)
        b.branch(head)
        b.position_at_end(end)

    # Segments, and tiles of them; the last begins early, and computes some places again
    @contextmanager
    def _tiles(self, d: Any, X: Any, T: int) -> Iterator[tuple[Any, Any]]:
        b, segments = self.b, self._array(d, 7)
        with self._loop(WORD(0), self._word(d, 6)) as s:
            source, out, length = (
                self._get(segments, b.add(b.mul(s, WORD(3)), WORD(k)), WORD) for k in range(3)
            )
            last = b.sub(length, WORD(T))
            with self._loop(WORD(0), length, T) as t:
                at = b.select(b.icmp_signed(">", t, last), last, t)
                yield (
                    self._at(X, b.add(source, at), self.real),
                    self._at(X, b.add(out, at), self.real),
                )

    def _row(self, starts: Any, i: Any) -> tuple[Any, Any]:
        first = self._wide(self._get(starts, i, INDEX))
        return first, self._wide(self._get(starts, self.b.add(i, WORD(1)), INDEX))

    def _multiplied(self, total: Any, value: Any, x: Any) -> Any:
        b: Any = self.b  # whose stubs do not know of flags
        return b.fadd(total, b.fmul(value, x, flags=["contract"]), flags=["contract"])

    # φ of a tile; comparisons are such that NaN stays NaN
    def _activated(self, d: Any, z: Any, T: int) -> Any:
        b, zero = self.b, self._filled(0.0, T)
        result = self._kept(z)
        blocks = {name: b.append_basic_block(name) for name in PHI}
        choice = b.switch(self._word(d, 9), blocks["identity"])
        for number, name in enumerate(PHI[1:], 1):
            choice.add_case(WORD(number), blocks[name])
        for name, block in blocks.items():
            b.position_at_end(block)
            if name != "identity":
                below = zero
                if name == "leaky_relu":
                    slope = self.b.load(self._array(d, 10), typ=self.real)
                    below = b.fmul(z, self._splat(slope, T))
                x = b.select(b.fcmp_ordered("<", z, zero), below, z)
                if name == "relu6":
                    six = self._filled(6.0, T)
                    x = b.select(b.fcmp_ordered(">", x, six), six, x)
                b.store(x, result)
            if name != PHI[0]:
                b.branch(blocks[PHI[0]])
        b.position_at_end(blocks[PHI[0]])
        return b.load(result, typ=z.type)

    def sums(self, T: int) -> None:
        """Sparse sums by tiles of T."""
        function = self._start(f"sums{T}")
        d, X, _ = function.args
        b, rows = self.b, self._word(d, 0)
        every, offsets, values, bias, outs = (self._array(d, k) for k in range(1, 6))
        panels = self._word(d, 8)
        totals = [self._kept(self._filled(0.0, T)) for _ in range(CHAINS)]

        def add(p: Any, chain: int) -> None:
            value = self._splat(self._get(values, p, self.real), T)
            x = self._numbers(source, self._wide(self._get(offsets, p, INDEX)), T)
            total = b.load(totals[chain], typ=self._vector(T))
            b.store(self._multiplied(total, value, x), totals[chain])

        new = b.icmp_signed("!=", self._word(d, 11), WORD(0))
        with self._tiles(d, X, T) as (source, out), self._loop(WORD(0), panels) as panel:
            first = b.and_(new, b.icmp_signed("==", panel, WORD(0)))
            final = b.icmp_signed("==", panel, b.sub(panels, WORD(1)))
            starts = self._at(every, b.mul(panel, rows), INDEX)
            with self._loop(WORD(0), rows) as i:
                begin, end = self._row(starts, i)
                place = self._get(outs, i, WORD)
                with b.if_else(first) as (fresh, again):
                    with fresh:
                        b.store(self._splat(self._get(bias, i, self.real), T), totals[0])
                    with again:
                        b.store(self._numbers(out, place, T), totals[0])
                b.store(self._filled(0.0, T), totals[1])
                pairs = b.add(begin, b.and_(b.sub(end, begin), WORD(-CHAINS)))
                with self._loop(begin, pairs, CHAINS) as p:
                    for k in range(CHAINS):
                        add(b.add(p, WORD(k)), k)
                with self._loop(pairs, end) as p:
                    add(p, 0)
                one, other = (b.load(total, typ=self._vector(T)) for total in totals)
                z = b.fadd(one, other)
                with b.if_else(final) as (last, partial):
                    with last:
                        self._put(self._activated(d, z, T), out, place)
                    with partial:
                        self._put(z, out, place)
        b.ret_void()

    def blocks(self, T: int) -> None:
        """Sparse sums by tiles of T of rows that read the same: `TOGETHER` weights an entry."""
        function = self._start(f"blocks{T}")
        d, X, _ = function.args
        b, count = self.b, self._word(d, 0)
        every, offsets, values, bias, outs = (self._array(d, k) for k in range(1, 6))
        panels, V = self._word(d, 8), self._vector(T)
        totals = [self._kept(self._filled(0.0, T)) for _ in range(TOGETHER)]
        new = b.icmp_signed("!=", self._word(d, 11), WORD(0))
        with self._tiles(d, X, T) as (source, out), self._loop(WORD(0), panels) as panel:
            first = b.and_(new, b.icmp_signed("==", panel, WORD(0)))
            final = b.icmp_signed("==", panel, b.sub(panels, WORD(1)))
            starts = self._at(every, b.mul(panel, count), INDEX)
            with self._loop(WORD(0), count) as i:
                begin, end = self._row(starts, i)
                rows = [b.add(b.mul(i, WORD(TOGETHER)), WORD(k)) for k in range(TOGETHER)]
                places = [self._get(outs, row, WORD) for row in rows]
                with b.if_else(first) as (fresh, again):
                    with fresh:
                        for total, row in zip(totals, rows, strict=True):
                            b.store(self._splat(self._get(bias, row, self.real), T), total)
                    with again:
                        for total, place in zip(totals, places, strict=True):
                            b.store(self._numbers(out, place, T), total)
                with self._loop(begin, end) as p:
                    x = self._numbers(source, self._wide(self._get(offsets, p, INDEX)), T)
                    own = b.mul(p, WORD(TOGETHER))
                    for k, total in enumerate(totals):
                        value = self._get(values, b.add(own, WORD(k)), self.real)
                        z = self._multiplied(b.load(total, typ=V), self._splat(value, T), x)
                        b.store(z, total)
                with b.if_else(final) as (last, partial):
                    with last:
                        for total, place in zip(totals, places, strict=True):
                            self._put(self._activated(d, b.load(total, typ=V), T), out, place)
                    with partial:
                        for total, place in zip(totals, places, strict=True):
                            self._put(b.load(total, typ=V), out, place)
        b.ret_void()

    def dots(self) -> None:
        """Sparse sums of single numbers: products of gathered entries."""
        function = self._start("dots")
        d, X, _ = function.args
        b, V = self.b, self._vector(LANES)
        starts, offsets, values, bias, outs = (self._array(d, k) for k in range(1, 6))
        places = ir.VectorType(INDEX, LANES)
        mask, pointers = ir.VectorType(ir.IntType(1), LANES), ir.VectorType(POINTER, LANES)
        suffix = f"v{LANES}f{8 * self.size}"
        gather = ir.Function(
            self.module,
            ir.FunctionType(V, [pointers, INDEX, mask, V]),
            f"llvm.masked.gather.{suffix}.v{LANES}p0",
        )
        added = ir.FunctionType(self.real, [self.real, V])
        reduce = ir.Function(self.module, added, f"llvm.vector.reduce.fadd.{suffix}")
        total, yes = self._kept(self._filled(0.0, LANES)), ir.Constant(mask, [1] * LANES)
        rest = self._kept(ir.Constant(self.real, 0.0))
        new = b.icmp_signed("!=", self._word(d, 11), WORD(0))
        with self._tiles(d, X, 1) as (source, out), self._loop(WORD(0), self._word(d, 0)) as i:
            begin, end = self._row(starts, i)
            place = self._get(outs, i, WORD)
            b.store(self._filled(0.0, LANES), total)
            with b.if_else(new) as (fresh, again):
                with fresh:
                    b.store(self._get(bias, i, self.real), rest)
                with again:
                    b.store(self._get(out, place, self.real), rest)
            main = b.add(begin, b.and_(b.sub(end, begin), WORD(-LANES)))
            with self._loop(begin, main, LANES) as p:
                read = b.load(self._at(offsets, p, INDEX), typ=places, align=4)
                wide = b.sext(read, ir.VectorType(WORD, LANES))
                at = b.gep(source, [wide], source_etype=self.real)
                at.type = pointers
                x = b.call(gather, [at, INDEX(self.size), yes, self._filled(0.0, LANES)])
                value = self._numbers(values, p, LANES)
                b.store(self._multiplied(b.load(total, typ=V), value, x), total)
            with self._loop(main, end) as p:
                x = self._get(source, self._wide(self._get(offsets, p, INDEX)), self.real)
                value = self._get(values, p, self.real)
                b.store(self._multiplied(b.load(rest, typ=self.real), value, x), rest)
            sum_ = b.call(
                reduce, [b.load(rest, typ=self.real), b.load(total, typ=V)], fastmath=["reassoc"]
            )
            z = self._splat(sum_, 1)
            self._put(self._activated(d, z, 1), out, place)
        b.ret_void()

    def maxima(self, T: int) -> None:
        """Largest entries of windows, by tiles of T."""
        function = self._start(f"maxima{T}")
        d, X, _ = function.args
        b, V = self.b, self._vector(T)
        starts, offsets, outs = (self._array(d, k) for k in (1, 2, 5))
        largest = ir.Function(
            self.module, ir.FunctionType(V, [V, V]), f"llvm.maximum.v{T}f{8 * self.size}"
        )  # NaN stays NaN
        total = self._kept(self._filled(0.0, T))
        with self._tiles(d, X, T) as (source, out), self._loop(WORD(0), self._word(d, 0)) as i:
            begin, end = self._row(starts, i)
            b.store(self._filled(float("-inf"), T), total)
            with self._loop(begin, end) as p:
                x = self._numbers(source, self._wide(self._get(offsets, p, INDEX)), T)
                b.store(b.call(largest, [b.load(total, typ=V), x]), total)
            self._put(b.load(total, typ=V), out, self._get(outs, i, WORD))
        b.ret_void()

    # Runs (from, to, length)
    @contextmanager
    def _runs(self, d: Any) -> Iterator[tuple[Any, Any, Any]]:
        b, runs = self.b, self._array(d, 1)
        with self._loop(WORD(0), self._word(d, 0)) as r:
            base = b.mul(r, WORD(3))
            yield tuple(self._get(runs, b.add(base, WORD(k)), WORD) for k in range(3))

    def moves(self) -> None:
        """Copies of numbers; from below 0 come zeros."""
        function = self._start("moves")
        d, X, _ = function.args
        b, T = self.b, 64 // self.size
        with self._runs(d) as (source, out, length):
            zero = b.icmp_signed("<", source, WORD(0))
            main = b.and_(length, WORD(-T))
            for width, begin, end in ((T, WORD(0), main), (1, main, length)):
                with self._loop(begin, end, width) as t:
                    with b.if_else(zero) as (empty, full):
                        with empty:
                            self._put(self._filled(0.0, width), X, b.add(out, t))
                        with full:
                            self._put(self._numbers(X, b.add(source, t), width), X, b.add(out, t))
        b.ret_void()

    def pack(self, N: int) -> None:
        """Inputs, sample by sample, into slots: squares of N samples and N entries are transposed.

        Places of samples that the batch does not have hold its last one.
        """
        function = self._start(f"pack{N}")
        d, X, call = function.args
        b, V = self.b, self._vector(N)
        u, m = self._array(call, 0), self._word(call, 2)
        p, n, last = self._word(d, 2), self._word(d, 3), b.sub(m, WORD(1))
        total = self._kept(self._filled(0.0, N))
        with self._runs(d) as (source, out, length), self._loop(WORD(0), n, N) as s:
            samples = [b.add(s, WORD(k)) for k in range(N)]
            clamped = [b.select(b.icmp_signed("<", k, last), k, last) for k in samples]
            starts = [b.add(b.mul(k, p), source) for k in clamped]
            to = b.add(out, s)

            def square(at: Any) -> None:
                rows = [self._numbers(u, b.add(start, at), N) for start in starts]
                seen = b.load(total, typ=V)
                for row in rows:
                    seen = self._multiplied(seen, row, self._filled(0.0, N))
                b.store(seen, total)
                for k, row in enumerate(self._transposed(rows, N)):
                    self._put(row, X, b.add(to, b.mul(b.add(at, WORD(k)), n)))

            enough = b.icmp_signed(">=", length, WORD(N))
            with b.if_else(enough) as (squares, single):
                with squares:
                    early = b.sub(length, WORD(N))
                    with self._loop(WORD(0), length, N) as e:
                        square(b.select(b.icmp_signed(">", e, early), early, e))
                with single, self._loop(WORD(0), length) as e:
                    row = self._filled(0.0, N)
                    for k, start in enumerate(starts):
                        x = self._get(u, b.add(start, e), self.real)
                        row = b.insert_element(row, x, INDEX(k))
                    seen = self._multiplied(b.load(total, typ=V), row, self._filled(0.0, N))
                    b.store(seen, total)
                    self._put(row, X, b.add(to, b.mul(e, n)))
        flag = self._at(call, WORD(3), WORD)
        seen = b.load(total, typ=V)
        sum_ = b.load(flag, typ=self.real)
        for k in range(N):
            sum_ = b.fadd(sum_, b.extract_element(seen, INDEX(k)))
        b.store(sum_, flag)
        b.ret_void()

    # Perfect shuffles: after log2 N of them rows and columns have changed places
    def _transposed(self, rows: list[Any], N: int) -> list[Any]:
        low = [k // 2 + (N if k % 2 else 0) for k in range(N)]
        masks = [
            ir.Constant(ir.VectorType(INDEX, N), [place + shift for place in low])
            for shift in (0, N // 2)
        ]
        for _ in range(N.bit_length() - 1):
            rows = [
                self.b.shuffle_vector(rows[k], rows[k + N // 2], mask)
                for k in range(N // 2)
                for mask in masks
            ]
        return rows

    def unpack(self) -> None:
        """Outputs from slots, sample by sample."""
        function = self._start("unpack")
        d, X, call = function.args
        b, y, m = self.b, self._array(call, 1), self._word(call, 2)
        q, n, flag = self._word(d, 2), self._word(d, 3), self._at(call, WORD(3), WORD)
        seen = self._kept(ir.Constant(self.real, 0.0))
        b.store(b.load(flag, typ=self.real), seen)
        with self._runs(d) as (out, source, length), self._loop(WORD(0), length) as e:
            slot, column = b.add(source, b.mul(e, n)), b.add(out, e)
            with self._loop(WORD(0), m) as s:
                x = self._get(X, b.add(slot, s), self.real)
                b.store(x, self._at(y, b.add(b.mul(s, q), column), self.real))
                nothing = ir.Constant(self.real, 0.0)
                b.store(self._multiplied(b.load(seen, typ=self.real), x, nothing), seen)
        b.store(b.load(seen, typ=self.real), flag)
        b.ret_void()

    def run(self) -> None:
        """A list of functions, each with its description."""
        kind = ir.FunctionType(ir.VoidType(), [POINTER, WORD, POINTER, POINTER])
        function = self._start("run", kind)
        jobs, count, X, call = function.args
        with self._loop(WORD(0), count) as k:
            at = self.b.mul(k, WORD(2))
            code = self._get(jobs, at, self.kind.as_pointer())
            description = self._get(jobs, self.b.add(at, WORD(1)), POINTER)
            self.b.call(code, [description, X, call])
        self.b.ret_void()
