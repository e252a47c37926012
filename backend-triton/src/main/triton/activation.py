"""The activations of io.moe4j.api.config.Activation, in f32. Codes are the ordinals of Activation.Kind."""
import triton
import triton.language as tl

SILU = tl.constexpr(0)
GELU = tl.constexpr(1)
GELU_TANH = tl.constexpr(2)
SWIGLUOAI = tl.constexpr(3)
SWIGLU_STEP = tl.constexpr(4)
SILU_NO_MUL = tl.constexpr(5)
GELU_NO_MUL = tl.constexpr(6)
GELU_TANH_NO_MUL = tl.constexpr(7)
RELU2_NO_MUL = tl.constexpr(8)


@triton.jit
def sigmoid(v):
    return 1.0 / (1.0 + tl.exp(-v))


@triton.jit
def gelu_erf(v):
    return 0.5 * v * (1.0 + tl.erf(v * 0.7071067811865476))


@triton.jit
def gelu_tanh(v):
    # 0.5 * (1 + tanh(z)) = sigmoid(2 z)
    return v * sigmoid(1.5957691216057308 * (v + 0.044715 * v * v * v))


@triton.jit
def at_most(v, limit):
    return tl.where(v > limit, limit, v)  # keeps NaN


@triton.jit
def clip(v, limit):
    return at_most(tl.where(v < -limit, -limit, v), limit)


@triton.jit
def activate_gated(g, u, act, alpha, beta, limit, ACT: tl.constexpr):
    """ACT: SILU = without clamp, known at compile time; -1 = act says which at run time (one branch a tile)."""
    if ACT == 0:
        r = g * sigmoid(g) * u
    else:
        if act == 0:
            c = at_most(g, limit)
            r = c * sigmoid(c) * clip(u, limit)
        elif act == 1:
            r = gelu_erf(g) * u
        elif act == 2:
            r = gelu_tanh(g) * u
        elif act == 3:
            c = at_most(g, limit)
            r = c * sigmoid(alpha * c) * (clip(u, limit) + beta)
        else:
            r = at_most(g * sigmoid(g), limit) * clip(u, limit)
    return r


@triton.jit
def activate_single(u, act):
    if act == 5:
        r = u * sigmoid(u)
    elif act == 6:
        r = gelu_erf(u)
    elif act == 7:
        r = gelu_tanh(u)
    else:
        c = tl.where(u < 0, 0.0, u)
        r = c * c
    return r
