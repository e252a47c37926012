// What stands between a layer's tensors and the rows that ranks exchange.

namespace {

struct alignas(16) Vector {
  unsigned v[4];
};

}  // namespace

// A block per row r of n: the token's hidden state (bytes a multiple of 16, rows 16-byte aligned), its ids, weights and slot; rows from T on
// only fill up: zeros, and -1 for ids and slot. mapping and slots may be null together.
extern "C" __global__ void exchange_pad(const Vector* __restrict__ hidden, const int* __restrict__ ids, const float* __restrict__ weights,
                                        const int* __restrict__ mapping, Vector* __restrict__ out_hidden, int* __restrict__ out_ids,
                                        float* __restrict__ out_weights, int* __restrict__ slots, int T, int K, int vectors) {
  const long long r = blockIdx.x;
  const bool is_token = r < T;
  const Vector zero = {{0, 0, 0, 0}};
  for (int c = threadIdx.x; c < vectors; c += blockDim.x) {
    out_hidden[r * vectors + c] = is_token ? hidden[r * vectors + c] : zero;
  }
  for (int k = threadIdx.x; k < K; k += blockDim.x) {
    out_ids[r * K + k] = is_token ? ids[r * K + k] : -1;
    out_weights[r * K + k] = is_token ? weights[r * K + k] : 0.0f;
  }
  if (threadIdx.x == 0 && slots != nullptr) {
    slots[r] = is_token ? mapping[r] : -1;
  }
}

// Of several ranks that have an expert, all but the one that computes it forget the pair. owner is [ranks, E], the pairs of one of its rows lie
// together.
extern "C" __global__ void exchange_own(int* __restrict__ ids, const int* __restrict__ owner, long long pairs, long long pairs_per_rank, int E,
                                        int me) {
  for (long long p = blockIdx.x * (long long)blockDim.x + threadIdx.x; p < pairs; p += (long long)gridDim.x * blockDim.x) {
    const int e = ids[p];
    if (e >= 0 && e < E && owner[p / pairs_per_rank * E + e] != me) {
      ids[p] = -1;
    }
  }
}
