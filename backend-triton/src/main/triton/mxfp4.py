"""The loops over the contraction of MXFP4 weights (OCP Microscaling Formats v1.0): two 4-bit floats a byte, the low half first, and an
exponent for every 32 columns of a row. The weights stay so in memory and are widened, exactly, in registers.

Not by dot_scaled: on Hopper Triton 3.6 hands it registers that the tensor cores still read while the next step writes them, see the head
of gemm.py. Widened here a tile meets wgmma in shared memory.
"""
import triton
import triton.language as tl

# Four bytes, two 4-bit floats each, to pairs of bf16: a product brings sign and the three bits below it to where bf16 has its sign, two
# exponent bits and one of the mantissa (1 = 0.5 becomes a subnormal), another with 2^126 gives the exponents their right bias.
UNPACK = """
mov.b32 f, 0x7E807E80; mov.b32 z, 0x80008000;
prmt.b32 t, IN, 0, 0x4140;
prmt.b32 u, IN, 0, 0x4342;
and.b32 a, t, 0x000F000F; mul.lo.u32 a, a, 0x1040; and.b32 a, a, 0x81C081C0; fma.rn.bf16x2 a, a, f, z;
and.b32 b, u, 0x000F000F; mul.lo.u32 b, b, 0x1040; and.b32 b, b, 0x81C081C0; fma.rn.bf16x2 b, b, f, z;
and.b32 c, t, 0x00F000F0; mul.lo.u32 c, c, 0x104; and.b32 c, c, 0x81C081C0; fma.rn.bf16x2 c, c, f, z;
and.b32 d, u, 0x00F000F0; mul.lo.u32 d, d, 0x104; and.b32 d, d, 0x81C081C0; fma.rn.bf16x2 d, d, f, z;
"""
TO_BF16 = tl.constexpr("{.reg .b32 t, u, a, b, c, d, f, z;" + UNPACK.replace("IN", "$4")
                       + "mov.b32 $0, a; mov.b32 $1, b; mov.b32 $2, c; mov.b32 $3, d;}")
TO_F32 = tl.constexpr("{.reg .b32 t, u, a, b, c, d, f, z;" + UNPACK.replace("IN", "$8") + "".join(
    f"shl.b32 ${2 * i}, {r}, 16; and.b32 ${2 * i + 1}, {r}, 0xFFFF0000;" for i, r in enumerate("abcd")) + "}")


@triton.jit
def widen_mxfp4(w, s, BN: tl.constexpr, BK: tl.constexpr):
    """A tile [BN, BK] of MXFP4 as bf16, exact: w [BN, BK / 2] bytes of two columns, s [BN, BK / 32] exponents."""
    s = s.to(tl.uint16)
    scale = tl.where(s == 0, 0x40, tl.where(s == 255, 0x7FFF, s << 7)).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    low, high = tl.inline_asm_elementwise(TO_BF16, "=r,=r,=r,=r,r", [w], dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=4)
    return (tl.join(low, high).reshape(BN, BK // 32, 32) * scale[:, :, None]).reshape(BN, BK)


@triton.jit
def dot_mxfp4(w, s, x, BN: tl.constexpr, BK: tl.constexpr):
    """Products [BN, BK / 32] of w's groups with x [1, BK / 32, 32] in f32: a group is one thread's, nothing is exchanged."""
    s = s.to(tl.uint32)
    scale = tl.where(s == 0, 0x400000, tl.where(s == 255, 0x7FFFFFFF, s << 23)).to(tl.uint32).to(tl.float32, bitcast=True)
    low, high = tl.inline_asm_elementwise(TO_F32, "=r,=r,=r,=r,=r,=r,=r,=r,r", [w], dtype=(tl.float32, tl.float32), is_pure=True, pack=4)
    return tl.sum(tl.join(low, high).reshape(BN, BK // 32, 32) * x, 2) * scale


@triton.jit
def exponents_ahead(sp, up, kg, groups, PAIR: tl.constexpr):
    """A step's exponents: too short to be copied by the pipeline, so they are read a step ahead by hand."""
    s = tl.load(sp, mask=kg < groups, other=0)
    s2 = s
    if PAIR:
        s2 = tl.load(sp + up, mask=kg < groups, other=0)
    return s, s2


@triton.jit
def one_row_mxfp4(x, w, ws, row, N, KD, kend, PAIR: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, XS: tl.constexpr):
    """A tile of one row, without the tensor cores: less work a weight, and no row of zeros is multiplied."""
    STEP: tl.constexpr = BK // 32
    groups = KD // 32
    kb = tl.arange(0, BK // 2)[None, :]
    kg = tl.arange(0, STEP)[None, :]
    wp = w + row[:, None] * (groups * 16) + kb  # says that rows are whole vectors of 16 bytes: a thread holds whole groups
    sp = ws + row[:, None] * groups + kg
    up = N.to(tl.int64) * groups
    xm = tl.arange(0, STEP)[:, None]
    xp = x + xm * 32 + tl.arange(0, 32)[None, :]
    d = tl.zeros((BN, STEP), tl.float32)
    d2 = d
    s, s2 = exponents_ahead(sp, up, kg, groups, PAIR)
    xv = tl.load(xp, mask=xm < groups, other=0.0)
    for k in tl.range(0, kend, BK, num_stages=XS):
        g = k // 32
        sn, sn2 = exponents_ahead(sp + g + STEP, up, kg, groups - g - STEP, PAIR)
        xn = tl.load(xp + k + BK, mask=xm < groups - g - STEP, other=0.0)
        x32 = xv.to(tl.float32)[None, :, :]
        d += dot_mxfp4(tl.load(wp + g * 16, mask=kb < (groups - g) * 16, other=0), s, x32, BN, BK)
        if PAIR:
            d2 += dot_mxfp4(tl.load(wp + (up + g) * 16, mask=kb < (groups - g) * 16, other=0), s2, x32, BN, BK)
        s, s2, xv = sn, sn2, xn
    top = tl.arange(0, BM)[:, None] == 0
    return tl.where(top, tl.sum(d, 1)[None, :], 0.0), tl.where(top, tl.sum(d2, 1)[None, :], 0.0)


@triton.jit
def rows_mxfp4(acc, acc2, xp, rm, w, ws, row, N, KD, kend, PAIR: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """The loop over the contraction.

    How much is known of the distance of rows decides how many bytes a thread widens at a time. 4 for mma: they become the very registers
    of its operand, with nothing exchanged. 16 for wgmma, whose operand goes through shared memory.
    """
    STEP: tl.constexpr = BK // 32
    groups = KD // 32
    kb = tl.arange(0, BK // 2)[None, :]
    kg = tl.arange(0, STEP)[None, :]
    wp = w + row[:, None] * (KD // 8 * 4 if BM < 64 else groups * 16) + kb
    sp = ws + row[:, None] * groups + kg
    up = N.to(tl.int64) * groups
    xk = tl.arange(0, BK)[None, :]
    s, s2 = exponents_ahead(sp, up, kg, groups, PAIR)
    for k in range(0, kend, BK):
        g = k // 32
        sn, sn2 = exponents_ahead(sp + g + STEP, up, kg, groups - g - STEP, PAIR)
        km = xk < (groups - g) * 32
        xv = tl.load(xp + k, mask=rm[:, None] & km if BM <= 32 else km, other=0.0)
        acc = tl.dot(xv, widen_mxfp4(tl.load(wp + g * 16, mask=kb < (groups - g) * 16, other=0), s, BN, BK).T, acc)
        if PAIR:
            acc2 = tl.dot(xv, widen_mxfp4(tl.load(wp + (up + g) * 16, mask=kb < (groups - g) * 16, other=0), s2, BN, BK).T, acc2)
        s, s2 = sn, sn2
    return acc, acc2
