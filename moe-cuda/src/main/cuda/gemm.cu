// Dense products around the experts: y[t, n] = x[t, :] . w[n, :] + bias[n], f32 accumulation, f32 result.
// x [T, K], w [N, K], y [T, N], all row-major and dense. Three ways:
//   moe_gemv   a warp per column, up to 8 tokens at once: few tokens, bound by reading w
//   moe_gemm   64 x 64 tiles on the f32 units: any mix of types, any size
//   moe_mma    tensor cores: x and w of one 16-bit type, K a multiple of 8, rows on 16-byte boundaries
#include "common.cuh"

namespace moe {

// ------------------------------------------------------------------------------------------------ few tokens
constexpr int TOKENS = 8;

template <class A, class W>
__device__ void gemv(const A* x, const W* w, const float* bias, float* y, int T, int N, int K, int wide) {
  const int lane = threadIdx.x % 32;
  const int n = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  const int t0 = blockIdx.y * TOKENS;
  const int nt = min(TOKENS, T - t0);
  wait_for_predecessor();
  if (n >= N) {
    return;
  }
  float acc[TOKENS] = {};
  const W* wn = w + (size_t)n * K;
  const A* xt = x + (size_t)t0 * K;
  if (wide) {
    for (int k = lane * 8; k < K; k += 256) {
      Pack<W, 8> wv = *reinterpret_cast<const Pack<W, 8>*>(wn + k);
#pragma unroll
      for (int t = 0; t < TOKENS; t++) {
        if (t < nt) {
          Pack<A, 8> xv = *reinterpret_cast<const Pack<A, 8>*>(xt + (size_t)t * K + k);
#pragma unroll
          for (int i = 0; i < 8; i++) {
            acc[t] += to_float(xv.v[i]) * to_float(wv.v[i]);
          }
        }
      }
    }
  } else {
    for (int k = lane; k < K; k += 32) {
      float wv = to_float(wn[k]);
#pragma unroll
      for (int t = 0; t < TOKENS; t++) {
        if (t < nt) {
          acc[t] += to_float(xt[(size_t)t * K + k]) * wv;
        }
      }
    }
  }
  const float b = bias == nullptr ? 0.0f : bias[n];
#pragma unroll
  for (int t = 0; t < TOKENS; t++) {
    if (t < nt) {
      for (int d = 16; d > 0; d >>= 1) {
        acc[t] += __shfl_xor_sync(0xffffffffu, acc[t], d);
      }
      if (lane == 0) {
        y[(size_t)(t0 + t) * N + n] = acc[t] + b;
      }
    }
  }
}

// ------------------------------------------------------------------------------------------------ any types
constexpr int SIMT_TILE = 64;
constexpr int SIMT_K = 16;

template <class A, class W>
__device__ void gemm(const A* x, const W* w, const float* bias, float* y, int T, int N, int K) {
  __shared__ float xs[SIMT_K][SIMT_TILE + 4];
  __shared__ float ws[SIMT_K][SIMT_TILE + 4];
  const int m0 = blockIdx.y * SIMT_TILE;
  const int n0 = blockIdx.x * SIMT_TILE;
  const int r = threadIdx.x / 4;
  const int c = threadIdx.x % 4 * 4;
  const int tm = threadIdx.x / 16 * 4;
  const int tn = threadIdx.x % 16 * 4;
  wait_for_predecessor();
  float acc[4][4] = {};
  for (int k0 = 0; k0 < K; k0 += SIMT_K) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      int k = k0 + c + i;
      xs[c + i][r] = m0 + r < T && k < K ? to_float(x[(size_t)(m0 + r) * K + k]) : 0.0f;
      ws[c + i][r] = n0 + r < N && k < K ? to_float(w[(size_t)(n0 + r) * K + k]) : 0.0f;
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < SIMT_K; k++) {
      float a[4], b[4];
#pragma unroll
      for (int i = 0; i < 4; i++) {
        a[i] = xs[k][tm + i];
        b[i] = ws[k][tn + i];
      }
#pragma unroll
      for (int i = 0; i < 4; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
          acc[i][j] += a[i] * b[j];
        }
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < 4; i++) {
#pragma unroll
    for (int j = 0; j < 4; j++) {
      int m = m0 + tm + i;
      int n = n0 + tn + j;
      if (m < T && n < N) {
        y[(size_t)m * N + n] = acc[i][j] + (bias == nullptr ? 0.0f : bias[n]);
      }
    }
  }
}

// ------------------------------------------------------------------------------------------------ tensor cores
constexpr int BK = 64;  // 128 bytes a row: eight 16-byte chunks, spread over the banks by chunk ^ (row % 8)
constexpr int STAGES = 3;

__device__ __forceinline__ unsigned shared_address(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }

__device__ __forceinline__ void copy16(unsigned to, const void* from, bool valid) {
  int bytes = valid ? 16 : 0;  // the rest is filled with zeros
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes));
}

__device__ __forceinline__ void load_matrices(unsigned (&r)[4], unsigned address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address));
}

template <class T>
__device__ __forceinline__ void mma(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1);

template <>
__device__ __forceinline__ void mma<bf16>(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <>
__device__ __forceinline__ void mma<f16>(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// BM x BN tile, warps of 32 x WN in a grid of (BM / 32) x (BN / WN).
template <class T, int BM, int BN, int WN>
__device__ void mma_tile(const T* x, const T* w, const float* bias, float* y, int M, int N, int K) {
  constexpr int NTHREADS = BM / 32 * (BN / WN) * 32;
  constexpr int STAGE_BYTES = (BM + BN) * BK * 2;
  extern __shared__ __align__(128) unsigned char smem[];
  const unsigned base = shared_address(smem);
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const int wm = warp / (BN / WN) * 32;
  const int wn = warp % (BN / WN) * WN;
  const int m0 = blockIdx.y * BM;
  const int n0 = blockIdx.x * BN;
  const int steps = (K + BK - 1) / BK;
  wait_for_predecessor();

  auto load = [&](int step) {
    unsigned stage = base + step % STAGES * STAGE_BYTES;
    for (int i = threadIdx.x; i < (BM + BN) * 8; i += NTHREADS) {
      int row = i / 8;
      int chunk = i % 8;
      int k = step * BK + chunk * 8;
      bool is_x = row < BM;
      int src = is_x ? m0 + row : n0 + row - BM;
      bool valid = k < K && src < (is_x ? M : N);
      const T* from = (is_x ? x : w) + (valid ? (size_t)src * K + k : 0);
      copy16(stage + row * (BK * 2) + ((chunk ^ (row % 8)) * 16), from, valid);
    }
  };

  for (int s = 0; s < STAGES - 1; s++) {
    if (s < steps) {
      load(s);
    }
    asm volatile("cp.async.commit_group;");
  }
  float acc[2][WN / 8][4] = {};
  for (int step = 0; step < steps; step++) {
    asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2));
    __syncthreads();  // this stage has landed, and everybody is done with the one that is loaded next
    if (step + STAGES - 1 < steps) {
      load(step + STAGES - 1);
    }
    asm volatile("cp.async.commit_group;");
    const unsigned xs = base + step % STAGES * STAGE_BYTES;
    const unsigned ws = xs + BM * BK * 2;
#pragma unroll
    for (int k = 0; k < BK / 16; k++) {
      unsigned a[2][4];
#pragma unroll
      for (int i = 0; i < 2; i++) {
        int row = wm + i * 16 + lane % 16;
        load_matrices(a[i], xs + row * (BK * 2) + (((k * 2 + lane / 16) ^ (row % 8)) * 16));
      }
#pragma unroll
      for (int j = 0; j < WN / 16; j++) {
        unsigned b[4];
        int row = wn + j * 16 + lane % 8 + lane / 16 * 8;
        load_matrices(b, ws + row * (BK * 2) + (((k * 2 + lane / 8 % 2) ^ (row % 8)) * 16));
#pragma unroll
        for (int i = 0; i < 2; i++) {
          mma<T>(acc[i][2 * j], a[i], b[0], b[1]);
          mma<T>(acc[i][2 * j + 1], a[i], b[2], b[3]);
        }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 2; i++) {
#pragma unroll
    for (int j = 0; j < WN / 8; j++) {
#pragma unroll
      for (int q = 0; q < 4; q++) {
        int m = m0 + wm + i * 16 + lane / 4 + q / 2 * 8;
        int n = n0 + wn + j * 8 + lane % 4 * 2 + q % 2;
        if (m < M && n < N) {
          y[(size_t)m * N + n] = acc[i][j][q] + (bias == nullptr ? 0.0f : bias[n]);
        }
      }
    }
  }
}

}  // namespace moe

using namespace moe;

#define DENSE(A, W)                                                                                                   \
  extern "C" __global__ void __launch_bounds__(128)                                                                   \
      moe_gemv_##A##_##W(const A* x, const W* w, const float* bias, float* y, int T, int N, int K, int wide) {        \
    gemv<A, W>(x, w, bias, y, T, N, K, wide);                                                                         \
  }                                                                                                                   \
  extern "C" __global__ void __launch_bounds__(256)                                                                   \
      moe_gemm_##A##_##W(const A* x, const W* w, const float* bias, float* y, int T, int N, int K) {                  \
    gemm<A, W>(x, w, bias, y, T, N, K);                                                                               \
  }

using f32 = float;
DENSE(f32, f32)
DENSE(f32, bf16)
DENSE(f32, f16)
DENSE(bf16, f32)
DENSE(bf16, bf16)
DENSE(bf16, f16)
DENSE(f16, f32)
DENSE(f16, bf16)
DENSE(f16, f16)

#define TENSOR(A)                                                                                                     \
  extern "C" __global__ void __launch_bounds__(128)                                                                   \
      moe_mma64_##A(const A* x, const A* w, const float* bias, float* y, int T, int N, int K) {                       \
    mma_tile<A, 64, 64, 32>(x, w, bias, y, T, N, K);                                                                  \
  }                                                                                                                   \
  extern "C" __global__ void __launch_bounds__(256)                                                                   \
      moe_mma128_##A(const A* x, const A* w, const float* bias, float* y, int T, int N, int K) {                      \
    mma_tile<A, 128, 128, 64>(x, w, bias, y, T, N, K);                                                                \
  }

TENSOR(bf16)
TENSOR(f16)
