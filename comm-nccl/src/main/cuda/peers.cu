// The exchange of ranks that write into each other's memory: no library between a rank's tokens and the others' experts.
//
// Every rank has a room that all others have mapped, laid out alike: flags, then what arrives. A call of a phase pushes rows, raises a flag in
// each other rank's room and waits for theirs. Blocks are paired: block b of one rank meets block b of the others and nobody else, so the grids
// must be alike, and a block pushes before it waits, so it does not matter when which of them runs.
//
// A layer calls gather and sum in turn. That is what makes one room enough: a rank that has come through a sum knows that all others have
// begun it, so their experts have read what was gathered; one that has come through a gather knows that the others' sums before it are done.
// A sum of tokens that every rank has follows no gather: it begins by meeting the others, for the same reason.
#include "common.cuh"

namespace {

using namespace moe;

constexpr int MOST_RANKS = 8;
constexpr int MOST_BLOCKS = 512;
constexpr int THREADS = 256;
constexpr int AHEAD = 4;          // vectors a thread has under way
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

// All stores of this block that come before are seen by the same block of the others after theirs, and the other way round.
__device__ __forceinline__ void meet(const Rooms& rooms, int rank, int ranks, int phase, const unsigned* stop) {
  Head* own = reinterpret_cast<Head*>(rooms.at(rank));
  const int peer = threadIdx.x;
  __syncthreads();
  if (peer < ranks && peer != rank) {
    const unsigned turn = own->turns[phase][blockIdx.x] + 1;
    __threadfence_system();
    raise(&reinterpret_cast<Head*>(rooms.at(peer))->flags[phase][rank][blockIdx.x], turn);
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
    own->turns[phase][blockIdx.x]++;
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

// Adds what all ranks have in the order of ranks, rounded once: own rows from mine, others' from where they arrived, n rows a rank.
template <class S, class O>
__device__ __forceinline__ void add(const Vector* mine, const Vector* arrived, O* out, int rank, int ranks, long long n, long long T, int vectors) {
  constexpr int N = Elements<S>::COUNT;
  for (long long row = blockIdx.x; row < T; row += gridDim.x) {
    for (int c = threadIdx.x; c < vectors; c += THREADS) {
      float total[N] = {};
#pragma unroll
      for (int r = 0; r < MOST_RANKS; r++) {
        if (r < ranks) {
          const Vector v = load(r == rank ? mine + row * vectors + c : arrived + (r * n + row) * vectors + c);
#pragma unroll
          for (int i = 0; i < N; i++) {
            total[i] += Elements<S>::get(v, i);
          }
        }
      }
      Pack<O, N> rounded;
#pragma unroll
      for (int i = 0; i < N; i++) {
        rounded.v[i] = from_float<O>(total[i]);
      }
      *reinterpret_cast<Pack<O, N>*>(out + (row * vectors + c) * N) = rounded;
    }
  }
}

template <class S, class O>
__device__ __forceinline__ void sum(const Vector* partial, O* out, const Rooms& rooms, const unsigned* stop, long long sums, int rank, int ranks,
                                    int n, int T, int vectors) {
  wait_for_predecessor();
  if (is_dead(rooms, rank)) {
    return;
  }
  for (int p = 1; p < ranks; p++) {
    const int peer = rank + p < ranks ? rank + p : rank + p - ranks;
    Vector* there = reinterpret_cast<Vector*>(rooms.at(peer) + sums);
    for (long long row = blockIdx.x; row < n; row += gridDim.x) {
      const Vector* from = partial + (peer * (long long)n + row) * vectors;
      Vector* to = there + (rank * (long long)n + row) * vectors;
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
  meet(rooms, rank, ranks, 1, stop);
  const Vector* arrived = reinterpret_cast<const Vector*>(rooms.at(rank) + sums);
  add<S, O>(partial + rank * (long long)n * vectors, arrived, out, rank, ranks, n, T, vectors);
}

template <class S, class O>
__device__ __forceinline__ void reduce(const Vector* partial, O* out, const Rooms& rooms, const unsigned* stop, long long sums, int rank, int ranks,
                                       int T, int vectors) {
  wait_for_predecessor();
  if (is_dead(rooms, rank)) {
    return;
  }
  const bool is_first = threadIdx.x < vectors && blockIdx.x < T;
  Vector first = {};
  if (is_first) {  // on its way while the ranks meet
    first = load(partial + blockIdx.x * (long long)vectors + threadIdx.x);
  }
  meet(rooms, rank, ranks, 0, stop);
  for (int p = 1; p < ranks; p++) {
    const int peer = rank + p < ranks ? rank + p : rank + p - ranks;
    Vector* there = reinterpret_cast<Vector*>(rooms.at(peer) + sums) + rank * (long long)T * vectors;
    if (is_first) {
      there[blockIdx.x * (long long)vectors + threadIdx.x] = first;
    }
    for (long long row = blockIdx.x; row < T; row += gridDim.x) {
      for (int c0 = threadIdx.x + (row == blockIdx.x ? THREADS : 0); c0 < vectors; c0 += AHEAD * THREADS) {
        Vector v[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
          if (c0 + i * THREADS < vectors) {
            v[i] = load(partial + row * vectors + c0 + i * THREADS);
          }
        }
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
          if (c0 + i * THREADS < vectors) {
            there[row * vectors + c0 + i * THREADS] = v[i];
          }
        }
      }
    }
  }
  meet(rooms, rank, ranks, 1, stop);
  add<S, O>(partial, reinterpret_cast<const Vector*>(rooms.at(rank) + sums), out, rank, ranks, T, T, vectors);
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
  if (is_dead(rooms, rank)) {
    return;
  }
  for (long long row = blockIdx.x; row < n; row += gridDim.x) {
    const bool is_token = row < T;
    const long long to = rank * (long long)n + row;
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
  meet(rooms, rank, ranks, 0, stop);
}

// What this rank's experts add to the tokens of all ranks, partial [ranks * n, H], goes to the ranks the tokens are of; there the parts of all
// ranks are added in f32 in the order of ranks, rounded once: out [T, H], T <= n. Others' parts arrive at sums in the room, [ranks * n, H].
// A row has `vectors` vectors of 16 bytes. Grid as above.
#define SUM(FROM, TO, S, O)                                                                                                               \
  extern "C" __global__ void __launch_bounds__(THREADS)                                                                                   \
      peers_sum_##FROM##_##TO(const Vector* partial, O* out, ROOMS, const unsigned* stop, long long sums, int rank, int ranks, int n,     \
                              int T, int vectors) {                                                                                       \
    const Rooms rooms = ALL_ROOMS;                                                                                                        \
    sum<S, O>(partial, out, rooms, stop, sums, rank, ranks, n, T, vectors);                                                               \
  }
SUM(bf16, bf16, bf16, bf16)
SUM(bf16, f32, bf16, float)
SUM(f32, f32, float, float)

// Sums of tokens that every rank has: partial [T, H] of each goes to all the others and arrives at sums in their rooms, [ranks * T, H]; every rank
// adds all of them in the order of ranks, so all have the same bits: out [T, H]. Grid as above.
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
