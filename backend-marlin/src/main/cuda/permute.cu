// Rows in the order of inputs that act-order weights were packed in: out[row, k] = x[row or its token, perm[expert of the row, k]], 0 where that is
// negative. KX, KD: columns of x and out. A block a tile.
#include "tile.cuh"

KERNEL(256, 1) moe_permute_inputs(const uint16_t* x, uint16_t* out, const int* perm, const int* ids, const int* expert_map, const int* pairs,
                                  const int* gtile, const int* nums, int has_map, int gather, int naive, int P, int TOPK, int KX, int KD, int EG, int E) {
  wait_for_predecessor();
  launch_dependents();
  const Tile t = find_tile(0, ids, expert_map, nullptr, gtile, nums, has_map, 0, naive, P, TOPK, 1, EG, E, 0, 0, BLOCK);
  if (!t.some) return;
  const int* order = perm + (int64_t)t.e * KD;
  for (int row = t.row0; row < t.row1; row++) {
    int from = row;
    if (gather) from = (naive ? row : pairs[row]) / TOPK;
    for (int k = THREAD; k < KD; k += 256) out[(int64_t)row * KD + k] = order[k] < 0 ? 0 : x[(int64_t)from * KX + order[k]];
  }
}
