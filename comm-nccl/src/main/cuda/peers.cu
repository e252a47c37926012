// The exchange of ranks that write into each other's memory: no library between a rank's tokens and the others' experts.
//
// Every rank has a room that all others have mapped, laid out alike: flags, then what arrives. A call of a phase pushes rows, raises a flag in
// each other rank's room and waits for theirs. Blocks are paired: block b of one rank meets block b of the others and nobody else, so the grids
// must be alike, and a block pushes before it waits, so it does not matter when which of them runs.
//
// A layer calls gather and sum (or combine) in turn. That is what makes one room enough: a rank that has come through a sum knows that all
// others have begun it, so their experts have read what was gathered; one that has come through a gather knows that the others' sums before it
// are done. Sums of tokens that every rank has follow no gather; for the same reason they begin by meeting the others in that phase.
#include "common.cuh"

namespace {

using namespace moe;

constexpr int MOST_RANKS = 8;
constexpr int MOST_BLOCKS = 512;
constexpr int THREADS = 256;
constexpr int AHEAD = 4;          // vectors a thread has under way
constexpr int CHOSEN = 8;         // rows of a token that a thread has under way
constexpr int KEPT = 1024;        // weights
constexpr int GATHER = 0;         // phases
constexpr int SUM = 1;
constexpr int LOOK = 256;         // times a flag is read before the host is asked

struct alignas(16) Vector {
  unsigned v[4];
};

// The beginning of a room; PeerRoom.java knows its size.
struct Head {
  unsigned flags[2][MOST_RANKS][MOST_BLOCKS];  // of a phase, by the rank that raises it
  unsigned turns[2][MOST_BLOCKS];              // how often a block here has met the others
  unsigned dead;                               // a wait was given up: what is still queued does nothing
};

struct Rooms {
  char* of[MOST_RANKS];

  __device__ __forceinline__ char* at(int rank) const {
    char* room = of[0];
#pragma unroll
    for (int r = 1; r < MOST_RANKS; r++) {
      room = rank == r ? of[r] : room;
    }
    return room;
  }
};

__device__ __forceinline__ void raise(unsigned* flag, unsigned turn) {
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(flag), "r"(turn) : "memory");
}

__device__ __forceinline__ unsigned look(const unsigned* flag) {
  unsigned v;
  asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(v) : "l"(flag) : "memory");
  return v;
}

// Past the first cache: what others have written.
__device__ __forceinline__ Vector load(const Vector* p) {
  Vector v;
  asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.v[0]), "=r"(v.v[1]), "=r"(v.v[2]), "=r"(v.v[3])
               : "l"(p)
               : "memory");
  return v;
}

// Which turn of a phase this block is in, from its beginning on.
__device__ __forceinline__ unsigned turn_of(const Rooms& rooms, int rank, int phase) {
  return *(volatile unsigned*)&reinterpret_cast<Head*>(rooms.at(rank))->turns[phase][blockIdx.x] + 1;
}

// All stores of this block that come before are seen by the same block of the others once they have waited: the flag is a release, also of
// what other threads have stored before the barrier.
__device__ __forceinline__ void arrive(const Rooms& rooms, int rank, int ranks, int phase, unsigned turn) {
  const int peer = threadIdx.x;
  __syncthreads();
  if (peer < ranks && peer != rank) {
    raise(&reinterpret_cast<Head*>(rooms.at(peer))->flags[phase][rank][blockIdx.x], turn);
  }
}

// For the same block of the others, after arrive.
__device__ __forceinline__ void wait(const Rooms& rooms, int rank, int ranks, int phase, unsigned turn, const unsigned* stop) {
  Head* own = reinterpret_cast<Head*>(rooms.at(rank));
  const int peer = threadIdx.x;
  if (peer < ranks && peer != rank) {
    const unsigned* flag = &own->flags[phase][peer][blockIdx.x];
    for (int i = 1; (int)(look(flag) - turn) < 0; i++) {
      if (i % LOOK == 0 && *(volatile const unsigned*)stop != 0) {
        own->dead = 1;
        break;
      }
    }
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    own->turns[phase][blockIdx.x] = turn;
  }
}

__device__ __forceinline__ bool is_dead(const Rooms& rooms, int rank) {
  return *(volatile unsigned*)&reinterpret_cast<Head*>(rooms.at(rank))->dead != 0;
}

template <class S> struct Elements;
template <> struct Elements<bf16> {
  static constexpr int COUNT = 8;
  static __device__ __forceinline__ float get(const Vector& v, int i) {
    return __uint_as_float(i % 2 == 0 ? v.v[i / 2] << 16 : v.v[i / 2] & 0xffff0000u);
  }
};
template <> struct Elements<float> {
  static constexpr int COUNT = 4;
  static __device__ __forceinline__ float get(const Vector& v, int i) { return __uint_as_float(v.v[i]); }
};

// This block's rows of out: this rank's own part [n, H] and what the others have brought, in f32 and in the order of ranks, rounded once.
template <class S, class O>
__device__ __forceinline__ void add(const Vector* own, O* out, const Rooms& rooms, long long sums, int rank, int ranks, int n, int T,
                                    int vectors) {
  constexpr int N = Elements<S>::COUNT;
  const Vector* here = reinterpret_cast<const Vector*>(rooms.at(rank) + sums);
#pragma unroll 1
  for (int row = blockIdx.x; row < T; row += gridDim.x) {
#pragma unroll 1
    for (int c = threadIdx.x; c < vectors; c += THREADS) {
      float total[N] = {};
#pragma unroll 1
      for (int r0 = 0; r0 < ranks; r0 += 2) {
        Vector v[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
          const int r = r0 + i;
          const Vector* from = r == rank ? own : here + (long long)r * n * vectors;
          v[i] = r < ranks ? load(from + (long long)row * vectors + c) : Vector{};
        }
#pragma unroll
        for (int i = 0; i < 2; i++) {
#pragma unroll
          for (int k = 0; k < N; k++) {
            total[k] += Elements<S>::get(v[i], k);
          }
        }
      }
      Pack<O, N> rounded;
#pragma unroll
      for (int i = 0; i < N; i++) {
        rounded.v[i] = from_float<O>(total[i]);
      }
      *reinterpret_cast<Pack<O, N>*>(out + ((long long)row * vectors + c) * N) = rounded;
    }
  }
}

template <class S, class O>
__device__ __forceinline__ void sum(const Vector* partial, O* out, const Rooms& rooms, const unsigned* stop, long long sums, int rank, int ranks,
                                    int n, int T, int vectors) {
  wait_for_predecessor();
  const unsigned turn = turn_of(rooms, rank, SUM);
  if (is_dead(rooms, rank)) {
    return;
  }
#pragma unroll 1
  for (int p = 1; p < ranks; p++) {
    const int peer = rank + p < ranks ? rank + p : rank + p - ranks;
    Vector* there = reinterpret_cast<Vector*>(rooms.at(peer) + sums);
#pragma unroll 1
    for (long long row = blockIdx.x; row < n; row += gridDim.x) {
      const Vector* from = partial + (peer * (long long)n + row) * vectors;
      Vector* to = there + (rank * (long long)n + row) * vectors;
#pragma unroll 1
      for (int c0 = threadIdx.x; c0 < vectors; c0 += AHEAD * THREADS) {
        Vector v[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
          if (c0 + i * THREADS < vectors) {
            v[i] = load(from + c0 + i * THREADS);
          }
        }
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
          if (c0 + i * THREADS < vectors) {
            to[c0 + i * THREADS] = v[i];
          }
        }
      }
    }
  }
  arrive(rooms, rank, ranks, SUM, turn);
  wait(rooms, rank, ranks, SUM, turn, stop);
  add<S>(partial + (long long)rank * n * vectors, out, rooms, sums, rank, ranks, n, T, vectors);
}

// Columns 8 c to 8 c + 8 of a token's part: the sum of its rows here by weight, in f32 and in the order of k. row_of [K]: -1 for those of other
// ranks; weights [K], null: they were applied before.
__device__ __forceinline__ void add_rows(const Vector* rows, const int* row_of, const float* weights, int K, int vectors, int c,
                                         float (&total)[8]) {
#pragma unroll 1
  for (int k0 = 0; k0 < K; k0 += CHOSEN) {
    int at[CHOSEN];
    float weight[CHOSEN];
#pragma unroll
    for (int k = 0; k < CHOSEN; k++) {
      at[k] = k0 + k < K ? row_of[k0 + k] : -1;
      weight[k] = k0 + k < K && weights != nullptr ? weights[k0 + k] : 1.0f;
    }
    Vector v[CHOSEN];
#pragma unroll
    for (int k = 0; k < CHOSEN; k++) {
      v[k] = at[k] >= 0 ? load(rows + (long long)at[k] * vectors + c) : Vector{};
    }
#pragma unroll
    for (int k = 0; k < CHOSEN; k++) {
      if (at[k] >= 0) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
          total[i] = fmaf(weight[k], Elements<bf16>::get(v[k], i), total[i]);
        }
      }
    }
  }
}

// This rank's own part is made last, while the others' are on their way, into its own room, where add reads it. Once a block has arrived, the
// others' next gather may come: so it keeps the weights that it still needs, or makes all parts before.
template <class S, class O>
__device__ __forceinline__ void combine(const Vector* rows, const int* row_of, const float* weights, O* out, const Rooms& rooms,
                                        const unsigned* stop, long long sums, int rank, int ranks, int n, int T, int K, int vectors) {
  __shared__ float kept[KEPT];
  wait_for_predecessor();
  const unsigned turn = turn_of(rooms, rank, SUM);
  if (is_dead(rooms, rank)) {
    return;
  }
  const int own_rows = (T - (int)blockIdx.x + (int)gridDim.x - 1) / (int)gridDim.x;
  const bool keeps = own_rows * (long long)K <= KEPT;
  if (keeps && weights != nullptr) {
    for (int i = threadIdx.x; i < own_rows * K; i += THREADS) {
      kept[i] = weights[(rank * (long long)n + blockIdx.x + i / K * gridDim.x) * K + i % K];
    }
  }
#pragma unroll 1
  for (int p = 1; p <= ranks + 1; p++) {
    if (p == (keeps ? ranks : ranks + 1)) {
      arrive(rooms, rank, ranks, SUM, turn);
    }
    if (p > ranks) {
      break;
    }
    const int peer = rank + p < ranks ? rank + p : rank + p - ranks;
    const bool is_own = p == ranks;
    Pack<S, 8>* to = reinterpret_cast<Pack<S, 8>*>(rooms.at(peer) + sums) + (long long)rank * n * vectors;
    const int until = is_own ? T : n;
#pragma unroll 1
    for (int row = blockIdx.x; row < until; row += gridDim.x) {
      const long long first = (peer * (long long)n + row) * K;
      const float* by = weights == nullptr ? nullptr : is_own && keeps ? kept + row / gridDim.x * K : weights + first;
#pragma unroll 1
      for (int c = threadIdx.x; c < vectors; c += THREADS) {
        float total[8] = {};
        add_rows(rows, row_of + first, by, K, vectors, c, total);
        Pack<S, 8> rounded;
#pragma unroll
        for (int i = 0; i < 8; i++) {
          rounded.v[i] = from_float<S>(total[i]);
        }
        to[(long long)row * vectors + c] = rounded;
      }
    }
  }
  wait(rooms, rank, ranks, SUM, turn, stop);
  const int wide = vectors * (8 / Elements<S>::COUNT);  // vectors that a row travels as
  add<S>(reinterpret_cast<const Vector*>(rooms.at(rank) + sums) + (long long)rank * n * wide, out, rooms, sums, rank, ranks, n, T, wide);
}

// Meets in the phase of a gather, so that nobody writes where a rank still reads its last sum; then as sum, but whole parts to everybody.
template <class S, class O>
__device__ __forceinline__ void reduce(const Vector* partial, O* out, const Rooms& rooms, const unsigned* stop, long long sums, int rank, int ranks,
                                       int T, int vectors) {
  wait_for_predecessor();
  const unsigned begun = turn_of(rooms, rank, GATHER);
  const unsigned turn = turn_of(rooms, rank, SUM);
  if (is_dead(rooms, rank)) {
    return;
  }
  arrive(rooms, rank, ranks, GATHER, begun);
  bool met = false;
#pragma unroll 1
  for (int row = blockIdx.x; row < T; row += gridDim.x) {
#pragma unroll 1
    for (int c0 = threadIdx.x; c0 - (int)threadIdx.x < vectors; c0 += AHEAD * THREADS) {
      Vector v[AHEAD];
#pragma unroll
      for (int i = 0; i < AHEAD; i++) {
        if (c0 + i * THREADS < vectors) {
          v[i] = load(partial + (long long)row * vectors + c0 + i * THREADS);
        }
      }
      if (!met) {  // the first are on their way
        wait(rooms, rank, ranks, GATHER, begun, stop);
        met = true;
      }
#pragma unroll 1
      for (int p = 1; p < ranks; p++) {
        const int peer = rank + p < ranks ? rank + p : rank + p - ranks;
        Vector* there = reinterpret_cast<Vector*>(rooms.at(peer) + sums) + (rank * (long long)T + row) * vectors;
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
          if (c0 + i * THREADS < vectors) {
            there[c0 + i * THREADS] = v[i];
          }
        }
      }
    }
  }
  arrive(rooms, rank, ranks, SUM, turn);
  wait(rooms, rank, ranks, SUM, turn, stop);
  add<S>(partial, out, rooms, sums, rank, ranks, T, T, vectors);
}

// The same of rows that are not added yet: a token's are, and their sum goes to all ranks, this one too.
template <class S, class O>
__device__ __forceinline__ void reduce_rows(const Vector* rows, const int* row_of, const float* weights, O* out, const Rooms& rooms,
                                            const unsigned* stop, long long sums, int rank, int ranks, int T, int K, int vectors) {
  wait_for_predecessor();
  const unsigned begun = turn_of(rooms, rank, GATHER);
  const unsigned turn = turn_of(rooms, rank, SUM);
  if (is_dead(rooms, rank)) {
    return;
  }
  arrive(rooms, rank, ranks, GATHER, begun);
  bool met = false;
#pragma unroll 1
  for (int row = blockIdx.x; row < T; row += gridDim.x) {
    const long long first = (long long)row * K;
#pragma unroll 1
    for (int c0 = 0; c0 < vectors; c0 += THREADS) {
      const int c = c0 + threadIdx.x;
      float total[8] = {};
      if (c < vectors) {
        add_rows(rows, row_of + first, weights == nullptr ? nullptr : weights + first, K, vectors, c, total);
      }
      if (!met) {
        wait(rooms, rank, ranks, GATHER, begun, stop);
        met = true;
      }
      Pack<S, 8> rounded;
#pragma unroll
      for (int i = 0; i < 8; i++) {
        rounded.v[i] = from_float<S>(total[i]);
      }
#pragma unroll 1
      for (int p = 1; p <= ranks && c < vectors; p++) {
        const int peer = rank + p < ranks ? rank + p : rank + p - ranks;
        (reinterpret_cast<Pack<S, 8>*>(rooms.at(peer) + sums) + (rank * (long long)T + row) * vectors)[c] = rounded;
      }
    }
  }
  arrive(rooms, rank, ranks, SUM, turn);
  wait(rooms, rank, ranks, SUM, turn, stop);
  const int wide = vectors * (8 / Elements<S>::COUNT);  // vectors that a row travels as
  add<S>(reinterpret_cast<const Vector*>(rooms.at(rank) + sums) + rank * (long long)T * wide, out, rooms, sums, rank, ranks, T, T, wide);
}

}  // namespace

#define ROOMS char *r0, char *r1, char *r2, char *r3, char *r4, char *r5, char *r6, char *r7
#define ALL_ROOMS {{r0, r1, r2, r3, r4, r5, r6, r7}}

// Row r of this rank's n to row rank * n + r of every rank's room: hidden state (vectors of 16 bytes), ids, weights and slot, at these places
// of the room. Rows from T on fill up: zeros, and -1 for ids and slot. mapping may be null: no slots travel. Grid: at most
// MOST_BLOCKS, the same on every rank, at least one.
extern "C" __global__ void __launch_bounds__(THREADS)
    peers_gather(const Vector* hidden, const int* ids, const float* weights, const int* mapping, ROOMS, const unsigned* stop, long long hidden_at,
                 long long ids_at, long long weights_at, long long slots_at, int rank, int ranks, int n, int T, int K, int vectors) {
  const Rooms rooms = ALL_ROOMS;
  wait_for_predecessor();
  const unsigned turn = turn_of(rooms, rank, GATHER);
  if (is_dead(rooms, rank)) {
    return;
  }
#pragma unroll 1
  for (long long row = blockIdx.x; row < n; row += gridDim.x) {
    const bool is_token = row < T;
    const long long to = rank * (long long)n + row;
#pragma unroll 1
    for (int k = threadIdx.x; k < K; k += THREADS) {
      const int id = is_token ? ids[row * K + k] : -1;
      const float weight = is_token ? weights[row * K + k] : 0.0f;
      for (int p = 0; p < ranks; p++) {
        reinterpret_cast<int*>(rooms.at(p) + ids_at)[to * K + k] = id;
        reinterpret_cast<float*>(rooms.at(p) + weights_at)[to * K + k] = weight;
      }
    }
    if (mapping != nullptr && threadIdx.x == THREADS - 1) {
      const int slot = is_token ? mapping[row] : -1;
      for (int p = 0; p < ranks; p++) {
        reinterpret_cast<int*>(rooms.at(p) + slots_at)[to] = slot;
      }
    }
#pragma unroll 1
    for (int c0 = threadIdx.x; c0 < vectors; c0 += AHEAD * THREADS) {
      Vector v[AHEAD] = {};
#pragma unroll
      for (int i = 0; i < AHEAD; i++) {
        if (is_token && c0 + i * THREADS < vectors) {
          v[i] = load(hidden + row * vectors + c0 + i * THREADS);
        }
      }
      for (int p = 0; p < ranks; p++) {
        Vector* there = reinterpret_cast<Vector*>(rooms.at(p) + hidden_at) + to * vectors;
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
          if (c0 + i * THREADS < vectors) {
            there[c0 + i * THREADS] = v[i];
          }
        }
      }
    }
  }
  arrive(rooms, rank, ranks, GATHER, turn);
  wait(rooms, rank, ranks, GATHER, turn, stop);
}

// What this rank's experts add to the tokens of all ranks, partial [ranks * n, H], goes to the ranks the tokens are of; there the parts of all
// ranks are added in f32 in the order of ranks, rounded once: out [T, H], T <= n. Others' parts arrive at sums in the room, [ranks * n, H].
// A row has `vectors` vectors of 16 bytes. Grid as above.
#define SUMS(FROM, TO, S, O)                                                                                                               \
  extern "C" __global__ void __launch_bounds__(THREADS)                                                                                   \
      peers_sum_##FROM##_##TO(const Vector* partial, O* out, ROOMS, const unsigned* stop, long long sums, int rank, int ranks, int n,     \
                              int T, int vectors) {                                                                                       \
    const Rooms rooms = ALL_ROOMS;                                                                                                        \
    sum<S, O>(partial, out, rooms, stop, sums, rank, ranks, n, T, vectors);                                                               \
  }
SUMS(bf16, bf16, bf16, bf16)
SUMS(bf16, f32, bf16, float)
SUMS(f32, f32, float, float)

// The same of the experts' rows as they are, [P, H] in bf16 with `vectors` vectors of 16 bytes: row_of [ranks * n, K] says which are a
// token's, -1 for those of other ranks; weights [ranks * n, K], null: they were applied before. A token's rows are added first, and their
// sum travels.
#define COMBINE(FROM, TO, S, O)                                                                                                           \
  extern "C" __global__ void __launch_bounds__(THREADS, 4)                                                                                \
      peers_combine_##FROM##_##TO(const Vector* rows, const int* row_of, const float* weights, O* out, ROOMS, const unsigned* stop,       \
                                  long long sums, int rank, int ranks, int n, int T, int K, int vectors) {                                \
    const Rooms rooms = ALL_ROOMS;                                                                                                        \
    combine<S, O>(rows, row_of, weights, out, rooms, stop, sums, rank, ranks, n, T, K, vectors);                                          \
  }
COMBINE(bf16, bf16, bf16, bf16)
COMBINE(bf16, f32, bf16, float)

// Sums of tokens that every rank has: partial [T, H] of each goes to all the others and arrives at sums in their rooms, [ranks * T, H]; every rank
// adds all of them in the order of ranks, so all have the same bits: out [T, H]. Grid as above, at most T.
#define REDUCE(FROM, TO, S, O)                                                                                                            \
  extern "C" __global__ void __launch_bounds__(THREADS)                                                                                   \
      peers_reduce_##FROM##_##TO(const Vector* partial, O* out, ROOMS, const unsigned* stop, long long sums, int rank, int ranks, int T,  \
                                 int vectors) {                                                                                           \
    const Rooms rooms = ALL_ROOMS;                                                                                                        \
    reduce<S, O>(partial, out, rooms, stop, sums, rank, ranks, T, vectors);                                                               \
  }
REDUCE(bf16, bf16, bf16, bf16)
REDUCE(bf16, f32, bf16, float)
REDUCE(f32, f32, float, float)

// The same of the experts' rows as they are, as for combine; row_of and weights are [T, K].
#define REDUCE_ROWS(FROM, TO, S, O)                                                                                                       \
  extern "C" __global__ void __launch_bounds__(THREADS, 4)                                                                                \
      peers_reduce_rows_##FROM##_##TO(const Vector* rows, const int* row_of, const float* weights, O* out, ROOMS, const unsigned* stop,   \
                                      long long sums, int rank, int ranks, int T, int K, int vectors) {                                   \
    const Rooms rooms = ALL_ROOMS;                                                                                                        \
    reduce_rows<S, O>(rows, row_of, weights, out, rooms, stop, sums, rank, ranks, T, K, vectors);                                         \
  }
REDUCE_ROWS(bf16, bf16, bf16, bf16)
REDUCE_ROWS(bf16, f32, bf16, float)
