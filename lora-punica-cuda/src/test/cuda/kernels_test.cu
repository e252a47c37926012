// The kernels alone, on a machine with nvcc or with the binary made elsewhere:
//   nvcc -gencode arch=compute_90,code=sm_90 -O3 -std=c++17 -I../../main/cuda kernels_test.cu -o kernels_test
//   ./kernels_test check [CASES]  against double, every kernel variant, guard bands, twice bit for bit; cases like 0,3
//   ./kernels_test time [FILE [shape T rank adapters of way rows cluster parts]]
//                                 microseconds of each way and launch configuration on the shapes of the benchmark; "-" takes
//                                 all of a kind, lists are like 1,4
//   ./kernels_test once FILE ...  the same filters; each launched a few times, for a profiler
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <algorithm>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "lora_bf16.cu"
#include "lora_f16.cu"
#include "general.cu"

#define CU(x)                                                                            \
  do {                                                                                   \
    cudaError_t e_ = (x);                                                                \
    if (e_ != cudaSuccess) {                                                             \
      printf("%s:%d %s: %s\n", __FILE__, __LINE__, #x, cudaGetErrorString(e_));          \
      exit(1);                                                                           \
    }                                                                                    \
  } while (0)

static cudaStream_t S;

using OneShot = decltype(&lora_one_shot_bf16_same_16_4);
using Shrink = decltype(&lora_shrink_bf16_16_4);
using Expand = decltype(&lora_expand_bf16_same_16);

static const std::map<std::tuple<int, int, int, int>, OneShot> ONE = {
#define O(T, NAME, R, N)                                   \
  {{T, 0, R, N}, lora_one_shot_##NAME##_same_##R##_##N},   \
  {{T, 1, R, N}, lora_one_shot_##NAME##_f32_##R##_##N},
#define ON(T, NAME, R) O(T, NAME, R, 4) O(T, NAME, R, 8) O(T, NAME, R, 16)
    ON(BF16, bf16, 16) ON(BF16, bf16, 32) ON(BF16, bf16, 64) ON(F16, f16, 16) ON(F16, f16, 32) ON(F16, f16, 64)};
static const std::map<std::tuple<int, int, int>, Shrink> SHR = {
#define H(T, NAME, R) {{T, R, 4}, lora_shrink_##NAME##_##R##_4}, {{T, R, 16}, lora_shrink_##NAME##_##R##_16},
    H(BF16, bf16, 16) H(BF16, bf16, 32) H(F16, f16, 16) H(F16, f16, 32)};
static const std::map<std::tuple<int, int, int>, Expand> EXP = {
#define X(T, NAME, R) {{T, 0, R}, lora_expand_##NAME##_same_##R}, {{T, 1, R}, lora_expand_##NAME##_f32_##R},
    X(BF16, bf16, 16) X(BF16, bf16, 32) X(F16, f16, 16) X(F16, f16, 32)};

struct Call {
  const void* x; void* y; const Factor* table; const int* ids; const int* map; const int* mapping; const int* tiles;
  const int* order; const int* count; const float* weights; long long x_row, y_row, y_slice;
  int x_per_pair, in, out, interleaved, add, P, K, num_global, slots, target, slices, max_columns, max_tiles, type, y_f32;
};

template <class F, class... A>
static void launch(F f, dim3 grid, int shared, int cluster, A... args) {
  static std::map<void*, int> allowed;
  if (shared > 48 * 1024 && allowed[(void*)f] < shared) {
    CU(cudaFuncSetAttribute((void*)f, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
    allowed[(void*)f] = shared;
  }
  cudaLaunchConfig_t c = {};
  c.gridDim = grid; c.blockDim = 256; c.dynamicSmemBytes = shared; c.stream = S;
  cudaLaunchAttribute at[2];
  at[0].id = cudaLaunchAttributeProgrammaticStreamSerialization; at[0].val.programmaticStreamSerializationAllowed = 1;
  at[1].id = cudaLaunchAttributeClusterDimension; at[1].val.clusterDim = {(unsigned)cluster, 1, 1};
  c.attrs = at; c.numAttrs = cluster > 1 ? 2 : 1;
  CU(cudaLaunchKernelEx(&c, f, args...));
}

static int nt(int columns, bool one) { return columns <= 32 ? 4 : columns <= 64 && one ? 8 : 16; }

static void one_shot_call(const Call& c, int rows, int C, int parts) {
  const int n = nt(c.max_columns, true);  // as LaunchPlan.oneShotBytes
  const int wk = 8 / (rows / 16) / (n >= 8 ? 2 : 1), stage = (rows + n * 8) * std::max(2, wk) * 64;
  const int sums = std::max(1, wk / 2) * rows * sum_row(n * 8) * 4 + 2 * rows * rank_row_bytes(n * 8);
  const int shared = std::max(std::min(6, 98304 / stage) * stage, sums);
  launch(ONE.at({c.type, c.y_f32, rows, n}), dim3(c.max_tiles * C, parts), shared, C, c.x, c.y,
         (const void*)c.table, c.ids, c.map, c.mapping, c.tiles, c.order, c.count, c.weights, c.x_row, c.y_row, c.y_slice,
         c.x_per_pair, c.in, c.out, c.interleaved, c.add, c.P, c.K, c.num_global, c.slots, c.target, c.slices, n * 8);
}

static void two_kernels_call(const Call& c, float* part, int rows, int splits, int parts) {
  int wk = 8 / (rows / 16) / (nt(c.max_columns, true) > 8 ? 2 : 1), planes = wk > 1 ? wk / 2 : 1;
  int n = nt(c.max_columns, false);
  launch(SHR.at({c.type, rows, n}), dim3(c.max_tiles, splits, (c.max_columns + n * 8 - 1) / (n * 8)),
         planes * rows * sum_row(std::min(c.max_columns, n * 8)) * 4, 1, c.x, part, (const void*)c.table, c.ids, c.map, c.mapping,
         c.tiles, c.order, c.count, c.x_row, c.x_per_pair, c.in, c.P, c.K, c.num_global, c.slots, c.target, c.slices, c.max_columns);
  launch(EXP.at({c.type, c.y_f32, rows}), dim3(c.max_tiles, parts), 2 * rows * rank_row_bytes(c.max_columns), 1, (const float*)part,
         c.y, (const void*)c.table, c.ids, c.map, c.mapping, c.tiles, c.order, c.count, c.weights, c.y_row, c.y_slice, splits,
         c.out, c.interleaved, c.add, c.P, c.K, c.num_global, c.slots, c.target, c.slices, c.max_columns);
}

// ---- check ----

__device__ double at(const void* p, long long i, int type) { return load_as(p, i, type); }

__global__ void reference(Call c, const double* old, double* want, double* bound) {
  int p = blockIdx.x;
  int slot = c.mapping[p / c.K];
  int e = c.ids == nullptr ? 0 : c.ids[p];
  if (c.map && c.ids) e = e >= 0 && e < c.num_global ? c.map[e] : -1;
  for (int i = threadIdx.x; i < c.slices * c.out; i += blockDim.x) {
    int j = i / c.out, o = i % c.out;
    long long y = p * c.y_row + (c.interleaved && c.slices > 1 ? 2 * o + j : j * c.y_slice + o);
    want[y] = old[y];
    bound[y] = -1;
    if (slot < 0 || slot >= c.slots || e < 0) continue;
    Factor f = c.table[slot * TARGETS + c.target + j];
    if (f.rank == 0 || (f.experts && e >= f.experts)) continue;
    double sum = 0, size = 0;
    for (int r = 0; r < f.rank; r++) {
      double s = 0, m = 0;
      for (int k = 0; k < c.in; k++) {
        double v = at(f.a, f.a_expert * e + (long long)r * c.in + k, f.type) *
                   at(c.x, (c.x_per_pair ? p : p / c.K) * c.x_row + k, c.type);
        s += v; m += fabs(v);
      }
      double b = at(f.b, f.b_expert * e + (long long)o * f.b_row + r, f.type);
      sum += s * b; size += m * fabs(b);
    }
    double w = c.weights ? c.weights[p] : 1;
    want[y] = (c.add ? old[y] : 0) + w * sum;
    double half = c.y_f32 ? 6e-8 : c.type == BF16 ? 1.0 / 256 : 1.0 / 2048;
    bound[y] = 2 * (c.in + 64 + 4) * 6e-8 * (size * fabs(w) + fabs(old[y])) + half * fabs(want[y]) + 1e-30;
  }
}

static std::mt19937 rng(7);
static std::vector<void*> OWNED;

template <class V> static V* up(const std::vector<V>& v) {
  V* d; CU(cudaMalloc(&d, std::max<size_t>(16, v.size() * sizeof(V)))); OWNED.push_back(d);
  CU(cudaMemcpy(d, v.data(), v.size() * sizeof(V), cudaMemcpyHostToDevice));
  return d;
}

static unsigned short bits(float v, int type) {
  if (type == BF16) { bf16 b = __float2bfloat16(v); unsigned short u; memcpy(&u, &b, 2); return u; }
  f16 b = __float2half(v); unsigned short u; memcpy(&u, &b, 2); return u;
}

static void* random_type(size_t n, int type, float scale) {
  std::normal_distribution<float> d(0, scale);
  std::vector<unsigned short> v(n);
  for (auto& u : v) u = bits(d(rng), type);
  return up(v);
}

struct Sorted { std::vector<int> tiles, order; int count; };

static Sorted sort_pairs(const std::vector<int>& e, const std::vector<int>& slot_of_token, int K, int slots, int rows) {
  std::vector<int> order;
  for (int p = 0; p < (int)e.size(); p++) if (e[p] >= 0) order.push_back(p);
  auto key = [&](int p) { int s = slot_of_token[p / K]; return (long long)e[p] * (slots + 1) + (s >= 0 && s < slots ? s + 1 : 0); };
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return key(a) < key(b); });
  Sorted r{{}, order, 0};
  for (size_t i = 0; i < order.size();) {
    size_t j = i;
    while (j < order.size() && key(order[j]) == key(order[i])) j++;
    int s = key(order[i]) % (slots + 1) - 1;
    if (s >= 0) for (size_t t = i; t < j; t += rows) {
      int v[4] = {e[order[i]], (int)t, (int)std::min(j, t + rows), s};
      r.tiles.insert(r.tiles.end(), v, v + 4); r.count++;
    }
    i = j;
  }
  r.order.resize(std::max<size_t>(1, r.order.size()));
  return r;
}

struct Case {
  int T, K, E, slots, in, out, slices, type, y_f32, interleaved, add, map, per_pair, weights, shared_a, shared_b, linear;
  std::vector<int> ranks;
};

static int check_case(const Case& k) {
  int P = k.T * k.K, num_global = k.map ? 2 * k.E : k.E;
  std::vector<int> map, ids(P), slot(k.T), local(P);
  if (k.map) { map.assign(num_global, -1); for (int e = 0; e < k.E; e++) map[2 * e + (e % 3 == 0)] = e; }
  for (int t = 0; t < k.T; t++) slot[t] = (int)(rng() % (k.slots + 1)) - 1;
  for (int p = 0; p < P; p++) {
    ids[p] = rng() % 13 == 0 ? -1 : (int)(rng() % num_global);
    local[p] = k.linear ? 0 : ids[p] < 0 ? -1 : k.map ? map[ids[p]] : ids[p];
  }
  std::vector<Factor> table(k.slots * TARGETS);
  int max_columns = 0;
  for (int s = 0; s < k.slots; s++) {
    int columns = 0;
    const void* a0 = nullptr;
    for (int j = 0; j < k.slices; j++) {
      Factor f = {};
      f.rank = k.ranks[(s * 2 + j) % k.ranks.size()];
      f.type = k.type;
      f.rank = (f.rank + 7) / 8 * 8;
      f.b_row = f.rank;
      int Ea = k.shared_a || k.linear ? 1 : k.E, Eb = k.shared_b || k.linear ? 1 : k.E;
      f.experts = Ea == 1 && Eb == 1 ? 0 : k.E;
      if (f.rank > 0) {
        bool same = j == 1 && s % 3 == 2 && a0 && table[s * TARGETS].rank == f.rank;
        f.a = same ? a0 : random_type((size_t)Ea * f.rank * k.in, k.type, 0.1f);
        f.b = random_type((size_t)Eb * k.out * f.rank, k.type, 0.1f);
        a0 = f.a;
        f.a_expert = Ea == 1 ? 0 : (long long)f.rank * k.in;
        f.b_expert = Eb == 1 ? 0 : (long long)f.rank * k.out;
      } else { f.experts = k.E; }
      table[s * TARGETS + j] = f;
      columns += (f.rank + 15) / 16 * 16;
    }
    max_columns = std::max(max_columns, columns);
  }
  if (max_columns == 0) max_columns = 16;
  Call c = {};
  c.type = k.type; c.y_f32 = k.y_f32; c.in = k.in; c.out = k.out; c.interleaved = k.interleaved; c.add = k.add; c.P = P; c.K = k.K;
  c.num_global = num_global; c.slots = k.slots; c.target = 0; c.slices = k.slices; c.max_columns = max_columns;
  c.x_per_pair = k.per_pair; c.x_row = k.in + 8; c.y_slice = k.out; c.y_row = k.slices * k.out + 8;
  c.table = up(table); c.ids = k.linear ? nullptr : up(ids); c.map = k.map ? up(map) : nullptr; c.mapping = up(slot);
  c.x = random_type((size_t)(k.per_pair ? P : k.T) * c.x_row, k.type, 1);
  std::vector<float> w(P);
  for (auto& v : w) v = rng() % 1000 / 500.0f - 1;
  c.weights = k.weights ? up(w) : nullptr;
  size_t n = (size_t)P * c.y_row, guard = 64, bytes = k.y_f32 ? 4 : 2;
  std::vector<unsigned char> before((n + 2 * guard) * bytes);
  std::vector<double> old(n);
  std::normal_distribution<float> d(0, 1);
  for (size_t i = 0; i < n + 2 * guard; i++) {
    float v = d(rng);
    if (k.y_f32) memcpy(&before[i * 4], &v, 4);
    else { unsigned short u = bits(v, k.type); memcpy(&before[i * 2], &u, 2); v = k.type == BF16 ? __bfloat162float(*(bf16*)&u) : __half2float(*(f16*)&u); }
    if (i >= guard && i < n + guard) old[i - guard] = v;
  }
  unsigned char* y = up(before);
  c.y = y + guard * bytes;
  double *want, *bound, *olds = up(old);
  CU(cudaMalloc(&want, n * 8 + 8)); CU(cudaMalloc(&bound, n * 8 + 8)); OWNED.push_back(want); OWNED.push_back(bound);
  std::vector<double> hb(n, -1), hw(n);
  CU(cudaMemcpy(bound, hb.data(), n * 8, cudaMemcpyHostToDevice));
  CU(cudaMemcpy(want, old.data(), n * 8, cudaMemcpyHostToDevice));
  if (P) reference<<<P, 256>>>(c, olds, want, bound);
  CU(cudaDeviceSynchronize());
  CU(cudaMemcpy(hw.data(), want, n * 8, cudaMemcpyDeviceToHost));
  CU(cudaMemcpy(hb.data(), bound, n * 8, cudaMemcpyDeviceToHost));
  float* part; CU(cudaMalloc(&part, (size_t)8 * std::max(1, P) * max_columns * 4)); OWNED.push_back(part);
  int bad = 0, ways = 0;
  auto run = [&](const char* name, const std::function<void()>& f) {
    std::vector<unsigned char> first;
    for (int again = 0; again < 2; again++) {
      CU(cudaMemcpy(y, before.data(), before.size(), cudaMemcpyHostToDevice));
      CU(cudaMemset(part, 0xff, (size_t)8 * std::max(1, P) * max_columns * 4));
      CU(cudaDeviceSynchronize());  // the kernels run on a stream that does not wait for this one
      f();
      CU(cudaDeviceSynchronize());
      std::vector<unsigned char> after(before.size());
      CU(cudaMemcpy(after.data(), y, after.size(), cudaMemcpyDeviceToHost));
      if (again && after != first) { printf("  %s: two runs differ\n", name); bad++; }
      first = after;
      if (again) continue;
      double worst = 0; size_t where = 0; int wrong = 0;
      for (size_t i = 0; i < n + 2 * guard; i++) {
        bool in = i >= guard && i < n + guard;
        if (!in || hb[i - guard] < 0) {
          if (memcmp(&after[i * bytes], &before[i * bytes], bytes)) { if (!wrong++) { worst = 1e9; where = i; } }
          continue;
        }
        float v;
        if (k.y_f32) memcpy(&v, &after[i * 4], 4);
        else { unsigned short u; memcpy(&u, &after[i * 2], 2); v = k.type == BF16 ? __bfloat162float(*(bf16*)&u) : __half2float(*(f16*)&u); }
        double e = fabs(v - hw[i - guard]) / hb[i - guard];
        if (!(e <= 1)) wrong++;
        if (!(e <= worst)) { worst = e; where = i; }
      }
      if (wrong) {
        bad++;
        printf("  %s: %d wrong, worst %.3g of the bound at row %ld column %ld\n", name, wrong, worst,
               ((long)where - (long)guard) / (long)c.y_row, ((long)where - (long)guard) % (long)c.y_row);
      }
    }
    ways++;
  };
  char name[99];
  for (int rows : {0, 16, 32, 64}) {
    int tile_rows = rows;
    c.tiles = c.order = c.count = nullptr;
    c.max_tiles = P;
    if (rows) {
      Sorted s = sort_pairs(local, slot, k.K, k.slots, rows);
      c.max_tiles = s.count + 2;
      if (s.tiles.empty()) s.tiles.resize(4);
      c.tiles = up(s.tiles); c.order = up(s.order); c.count = up(std::vector<int>{s.count});
    } else tile_rows = 16;
    if (max_columns <= 128)
      for (int C : {1, 2, 8})
        for (int parts : {1, 3}) {
          if (rows && parts == 3 && C == 8) continue;
          sprintf(name, "one-shot rows %d cluster %d parts %d", rows, C, parts);
          if (P) run(name, [&] { one_shot_call(c, tile_rows, C, parts); });
        }
    if (rows > 32) continue;
    for (int splits : {1, 3}) {
      sprintf(name, "two kernels rows %d splits %d", rows, splits);
      if (2 * tile_rows * rank_row_bytes(max_columns) < 220000 && P) run(name, [&] { two_kernels_call(c, part, tile_rows, splits, splits); });
    }
  }
  bool il = k.interleaved && k.slices > 1;
  int max_rank = 1;
  for (int r : k.ranks) max_rank = std::max(max_rank, (r + 7) / 8 * 8);
  if (P) run("any", [&] {
    launch(&lora_any, dim3(P, 2), max_rank * 4, 1, c.x, c.y, (const void*)c.table, c.ids, c.map, c.mapping, c.weights,
           c.x_per_pair ? c.x_row * c.K : c.x_row, c.x_per_pair ? c.x_row : 0ll, 1ll, c.y_row * c.K, c.y_row, 1ll, il ? 1ll : (long long)c.out, il ? 2ll : 1ll, c.type, c.y_f32 ? F32 : c.type, -1, c.in,
           c.out, c.add, c.P, c.K, c.num_global, c.slots, c.target, c.slices, max_rank);
  });
  for (void* p : OWNED) cudaFree(p);
  OWNED.clear();
  CU(cudaGetLastError());
  return bad;
}

static bool listed(const char* list, const std::string& value) {
  return list == nullptr || !strcmp(list, "-") || ("," + std::string(list) + ",").find("," + value + ",") != std::string::npos;
}

static int check(const char* only) {
  //           T   K  E  slots in   out sl type  f32 il add map pp  w  sA sB lin ranks
  std::vector<Case> cases = {
      {100, 6, 8, 4, 256, 96, 2, BF16, 0, 0, 1, 0, 0, 0, 0, 0, 0, {16}},
      {100, 6, 8, 4, 256, 96, 2, BF16, 0, 0, 1, 1, 0, 0, 0, 0, 0, {8, 24, 0, 40, 32, 16, 16, 0}},
      {100, 6, 8, 3, 264, 104, 2, BF16, 0, 1, 1, 0, 0, 0, 0, 0, 0, {16, 16, 8, 0, 0, 64, 48, 48}},
      {100, 6, 8, 3, 2048, 1408, 1, BF16, 0, 0, 1, 0, 1, 1, 0, 0, 0, {64, 0, 32, 0, 128, 0}},
      {33, 2, 4, 2, 256, 256, 2, BF16, 0, 0, 0, 0, 0, 0, 0, 0, 0, {64}},
      {8, 2, 4, 2, 256, 256, 2, BF16, 0, 0, 1, 0, 0, 0, 0, 0, 0, {128, 256}},
      {8, 2, 4, 2, 256, 256, 1, F16, 0, 0, 0, 0, 1, 1, 0, 0, 0, {512, 512, 8, 8}},
      {100, 6, 8, 4, 256, 96, 2, F16, 0, 0, 1, 0, 0, 0, 0, 0, 0, {16, 64}},
      {100, 6, 8, 4, 160, 72, 2, F16, 1, 1, 1, 1, 0, 0, 1, 0, 0, {16, 64}},
      {64, 2, 4, 3, 512, 320, 2, BF16, 1, 0, 0, 0, 0, 0, 0, 1, 0, {16, 64}},
      {77, 1, 1, 5, 520, 264, 1, BF16, 0, 0, 1, 0, 0, 0, 0, 0, 1, {16, 16, 64, 64, 8, 8, 0, 0, 128, 128}},
      {300, 1, 1, 1, 256, 64, 1, BF16, 0, 0, 1, 0, 1, 1, 0, 0, 0, {16}},
      {700, 2, 2, 2, 328, 136, 2, BF16, 0, 0, 1, 0, 0, 0, 0, 0, 0, {64, 64, 16, 40}},
      {700, 2, 2, 2, 520, 136, 2, F16, 0, 1, 1, 1, 0, 0, 0, 0, 0, {64, 56, 0, 24}},
      {700, 2, 3, 2, 1032, 264, 1, F16, 1, 0, 1, 0, 1, 1, 0, 0, 0, {64, 0, 128}},
      {700, 2, 3, 3, 200, 264, 1, BF16, 1, 0, 0, 0, 1, 1, 1, 0, 0, {16, 0, 24, 0, 96}},
      {700, 2, 3, 3, 2048, 96, 2, F16, 0, 0, 1, 0, 0, 1, 0, 1, 0, {16, 16, 8, 8}},
      {1, 8, 64, 8, 2048, 768, 2, BF16, 0, 0, 1, 0, 0, 0, 0, 0, 0, {16}},
      {3, 2, 4, 2, 128, 64, 2, BF16, 0, 0, 1, 0, 0, 0, 0, 0, 0, {0}},
  };
  int bad = 0;
  for (size_t i = 0; i < cases.size(); i++) {
    if (!listed(only, std::to_string(i))) continue;
    int b = check_case(cases[i]);
    printf("case %zu: %s\n", i, b ? "WRONG" : "ok");
    bad += b;
  }
  printf("%d wrong of %zu cases\n", bad, cases.size());
  return bad != 0;
}

// ---- time ----

__global__ void noise(unsigned short* p, size_t n, float scale) {
  for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x) {
    unsigned h = (unsigned)i * 2654435761u;
    h ^= h >> 15; h *= 2246822519u; h ^= h >> 13;
    reinterpret_cast<bf16*>(p)[i] = __float2bfloat16(((int)(h >> 8 & 0xffff) - 32768) / 32768.0f * scale);
  }
}

static bf16* fresh(size_t n, float scale) {
  bf16* p; CU(cudaMalloc(&p, n * 2));
  noise<<<4096, 256>>>((unsigned short*)p, n, scale);
  return p;
}

static bool ONCE;
static const char* ONLY[9];  // shape, T, rank, adapters, of, way, rows, cluster, parts

static bool wanted(int kind, const std::string& value) { return listed(ONLY[kind], value); }
static bool wanted(int kind, int value) { return wanted(kind, std::to_string(value)); }

static double time_graph(const std::function<void(int)>& f, int R, int reps) {
  if (ONCE) {
    for (int i = 0; i < 3; i++) f(i % R);
    CU(cudaStreamSynchronize(S));
    return 0;
  }
  cudaGraph_t g; cudaGraphExec_t x;
  f(0);
  CU(cudaStreamSynchronize(S));
  CU(cudaStreamBeginCapture(S, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < R; i++) f(i);
  CU(cudaStreamEndCapture(S, &g));
  CU(cudaGraphInstantiate(&x, g, 0));
  cudaEvent_t a, b; CU(cudaEventCreate(&a)); CU(cudaEventCreate(&b));
  std::vector<float> t;
  for (int i = 0; i < reps + 2; i++) {
    CU(cudaEventRecord(a, S)); CU(cudaGraphLaunch(x, S)); CU(cudaEventRecord(b, S)); CU(cudaEventSynchronize(b));
    float ms; CU(cudaEventElapsedTime(&ms, a, b)); if (i >= 2) t.push_back(ms * 1e3f / R);
  }
  CU(cudaEventDestroy(a)); CU(cudaEventDestroy(b)); CU(cudaGraphExecDestroy(x)); CU(cudaGraphDestroy(g));
  std::sort(t.begin(), t.end());
  return t[t.size() / 2];
}

static void time_all(FILE* out) {
  struct Shape { const char* name; int E, k, H, I; } shapes[] = {
      {"qwen3-30b-a3b", 128, 8, 2048, 768}, {"gpt-oss-120b-like", 128, 4, 2880, 2880}, {"mixtral-8x7b", 8, 2, 4096, 14336}};
  fprintf(out, "shape,T,rank,adapters,of,way,rows,cluster,parts,us,floor\n");
  for (auto& h : shapes) {
    if (!wanted(0, h.name)) continue;
    for (int rank : {16, 64}) {
      if (!wanted(2, rank)) continue;
      size_t na = (size_t)h.E * rank * h.H, nb = (size_t)h.E * rank * h.I;
      bf16* a13 = fresh(32 * 2 * na, 0.05f); bf16* b13 = fresh(32 * 2 * nb, 0.05f);
      bf16* a2 = fresh(32 * nb, 0.05f); bf16* b2 = fresh(32 * na, 0.05f);
      std::vector<Factor> table(64 * TARGETS);
      for (int s = 0; s < 64; s++) {
        int z = s % 32;
        for (int j = 0; j < 2; j++)
          table[s * TARGETS + j] = {a13 + (z * 2 + j) * na, b13 + (z * 2 + j) * nb, (long long)rank * h.H, (long long)rank * h.I, rank, rank, BF16, h.E};
        table[s * TARGETS + 2] = {a2 + z * nb, b2 + z * na, (long long)rank * h.I, (long long)rank * h.H, rank, rank, BF16, h.E};
      }
      Factor* dt = up(table);
      for (int T : {1, 4, 16, 64, 256, 1024, 4096, 8192}) {
        if (!wanted(1, T)) continue;
        int P = T * h.k;
        bf16* x = fresh((size_t)T * h.H, 1); bf16* act = fresh((size_t)P * h.I, 1);
        bf16* y13 = fresh((size_t)P * 2 * h.I, 1); bf16* y2 = fresh((size_t)P * h.H, 1);
        float* part; CU(cudaMalloc(&part, (size_t)16 * std::min(P, 8192) * 128 * 4 + (size_t)P * 512));
        for (int n : {1, 8, 32}) {
          if (!wanted(3, n)) continue;
          for (int of : {13, 2}) {
            if (!wanted(4, of)) continue;
            // Adapters rotate, so that factors come from memory, not from the cache.
            double bytes = std::min((double)P, (double)h.E * n) * (of == 13 ? 2 : 1) * rank * (h.H + h.I) * 2.0;
            int R = T > 64 ? 1 : (int)std::min(32.0, std::max(1.0, 150e6 / bytes));
            if (R > 32 / n && n > 1) R = std::max(1, std::min(R, 8));
            struct In { int *ids, *map, *slot; std::vector<int> e, s; };
            std::vector<In> ins;
            size_t touched = 0;
            for (int i = 0; i < R; i++) {
              In in; in.e.resize(P); in.s.resize(T);
              std::vector<int> perm(h.E);
              for (int e = 0; e < h.E; e++) perm[e] = e;
              std::map<long, int> seen;
              for (int t = 0; t < T; t++) {
                in.s[t] = (t + i) % n + (n == 1 ? i % 32 : 0);
                for (int j = 0; j < h.k; j++) { std::swap(perm[j], perm[j + rng() % (h.E - j)]); in.e[t * h.k + j] = perm[j]; seen[perm[j] * 64L + in.s[t]] = 1; }
              }
              touched += seen.size();
              in.ids = up(in.e); in.slot = up(in.s);
              ins.push_back(in);
            }
            Call c = {};
            c.table = dt; c.P = P; c.K = h.k; c.num_global = h.E; c.slots = 64; c.add = 1; c.type = BF16;
            c.max_columns = of == 13 ? 2 * rank : rank; c.target = of == 13 ? 0 : 2; c.slices = of == 13 ? 2 : 1;
            c.x = of == 13 ? x : act; c.in = of == 13 ? h.H : h.I; c.out = of == 13 ? h.I : h.H; c.x_row = c.in;
            c.x_per_pair = of == 2; c.y = of == 13 ? y13 : y2; c.y_row = c.slices * c.out; c.y_slice = c.out;
            double floor = (touched / (double)R * c.slices * rank * 2.0 * (h.H + h.I) + (double)P * c.y_row * 4 + (of == 13 ? T : P) * 2.0 * c.in) / 4.3e6;
            int reps = T <= 64 ? 7 : 5;
            double best = 1e30; char what[99] = "";
            auto report = [&](const char* way, int rows, int C, int parts, double us) {
              fprintf(out, "%s,%d,%d,%d,%d,%s,%d,%d,%d,%.2f,%.2f\n", h.name, T, rank, n, of, way, rows, C, parts, us, floor);
              if (us < best) { best = us; sprintf(what, "%s rows %d C %d parts %d", way, rows, C, parts); }
            };
            double avg = P / std::min((double)P, (double)h.E * n);
            for (int rows : {0, 16, 32, 64}) {
              if (!wanted(6, rows)) continue;
              if (rows == 0 && (P > 2048 || avg > 8)) continue;
              if (rows > 0 && T == 1) continue;
              if (rows == 32 && avg < 6) continue;
              if (rows == 16 && avg > 64) continue;
              if (rows == 64 && avg < 12) continue;
              std::vector<Call> calls;
              int tiles_now = P;
              for (auto& in : ins) {
                Call d = c;
                d.ids = in.ids; d.mapping = in.slot; d.max_tiles = P;
                if (rows) {
                  Sorted s = sort_pairs(in.e, in.s, h.k, 64, rows);
                  tiles_now = s.count;
                  // Empty tiles as in the product: as many as no routing exceeds.
                  d.max_tiles = std::min(P, P / rows + (int)std::min((long)P, (long)h.E * n));
                  d.tiles = up(s.tiles); d.order = up(s.order); d.count = up(std::vector<int>{s.count});
                }
                calls.push_back(d);
              }
              int r = rows ? rows : 16;
              for (int C : {1, 2, 4, 8})
                for (int parts : {1, 2, 4, 8}) {
                  long blocks = (long)tiles_now * C * parts;
                  if (!wanted(7, C) || !wanted(8, parts)) continue;
                  if (C > 1 && blocks > 132 * 8) continue;
                  if (parts > 1 && tiles_now * C > 132 && (rows < 32 || C > 1 || parts > 4)) continue;
                  if (wanted(5, "one"))
                    report("one", rows, C, parts, time_graph([&](int i) { one_shot_call(calls[i], r, C, parts); }, R, reps));
                }
              for (int splits : {1, 2, 4, 8, 16})
                for (int parts : {1, 2, 4, 8}) {
                  if (rows > 32 || !wanted(5, "two") || !wanted(7, splits) || !wanted(8, parts)) continue;
                  if (splits > 1 && (P > 8192 || (long)tiles_now * splits > 132 * 8)) continue;
                  if (parts > 1 && (long)tiles_now * parts > 132 * 8) continue;
                  if (T <= 4 && (splits == 2 || parts == 2)) continue;
                  report("two", rows, splits, parts, time_graph([&](int i) { two_kernels_call(calls[i], part, r, splits, parts); }, R, reps));
                }
            }
            printf("%s T %d r%d n%d w%d: %.1f us (floor %.1f) %s\n", h.name, T, rank, n, of, best, floor, what);
            fflush(stdout);
          }
        }
        CU(cudaDeviceSynchronize());
        cudaFree(x); cudaFree(act); cudaFree(y13); cudaFree(y2); cudaFree(part);
        for (size_t i = 1; i < OWNED.size(); i++) cudaFree(OWNED[i]);
        OWNED.resize(1);
      }
      cudaFree(a13); cudaFree(b13); cudaFree(a2); cudaFree(b2);
      for (void* p : OWNED) cudaFree(p);
      OWNED.clear();
    }
  }
}

int main(int n, char** a) {
  CU(cudaStreamCreateWithFlags(&S, cudaStreamNonBlocking));
  if (n > 1 && (!strcmp(a[1], "time") || !strcmp(a[1], "once"))) {
    ONCE = !strcmp(a[1], "once");
    FILE* f = n > 2 ? fopen(a[2], "w") : stdout;
    for (int i = 3; i < n && i < 12; i++) ONLY[i - 3] = a[i];
    time_all(f);
    if (f != stdout) fclose(f);
    return 0;
  }
  return check(n > 2 ? a[2] : nullptr);
}
