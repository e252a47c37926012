// narrow.cuh, wide.cuh and repack.cu on the host, against float64: see the README.
// Every code and scale layout, both element types, all heights, adapters of ragged ranks, with and without gate.
#include "../../main/cuda/narrow.cuh"
#include "../../main/cuda/wide.cuh"
#include "../../main/cuda/single.cuh"
#include "../../main/cuda/repack.cu"
#include "../../main/cuda/permute.cu"

#include <random>
#include <string>

static std::mt19937 rng(7);
static double normal() { return std::normal_distribution<double>()(rng); }
static int below(int n) { return (int)(rng() % (unsigned)n); }

static float e4m3(int c) {
  float m = c & 7, v = (c >> 3 & 15) == 0 ? m / 8 * std::exp2(-6.f) : (1 + m / 8) * std::exp2((c >> 3 & 15) - 7.f);
  return c & 128 ? -v : v;
}
static float e2m1(int c) {
  static const float t[8] = {0, .5f, 1, 1.5f, 2, 3, 4, 6};
  return c & 8 ? -t[c & 7] : t[c & 7];
}

struct Format {
  const char* name;
  int q, group;         // group: columns a scale, 0 a row, -1 blocks of 128 x 128
  int scale_type;       // F32_SCALE ..
  bool asym;
  int layout;           // 0 GPTQ, 1 AWQ, 2 rows packed along the contraction, 3 bytes
  bool global, order;
};

// Zero points are kept, or stand for a symmetric scheme that has no kernel of its own.
static bool keeps_zeros(const Format& f, int SG) { return f.asym || (f.q == U4 && SG == 4) || (f.q == U8 && SG > 1); }

template <class T>
struct Weights {
  int E, M, N, KD, SG, chunks_a_group, group_shift, has_zero, tiles, chunks;
  std::vector<double> w;  // [E, M, N, KD]
  std::vector<uint32_t> codes, ratio, zero;
  std::vector<float> channel;
  std::vector<int> perm;  // [KD]

  Weights(const Format& f, int E, int M, int N, int KD) : E(E), M(M), N(N), KD(KD) {
    int bits = code_bits(f.q), per = 32 / bits;
    tiles = (N + 15) / 16;
    chunks = (KD + 63) / 64;
    int group = f.group == 0 ? KD : f.group < 0 ? 128 : f.group;
    SG = f.group == 0 ? is_integer(f.q) : group % 64 == 0 ? 1 : group % 32 == 0 ? 2 : 4;
    chunks_a_group = SG != 1 ? 1 : f.group == 0 ? chunks : group / 64;
    has_zero = keeps_zeros(f, SG);
    group_shift = 0;
    if (f.group == 0) while (1 << group_shift < chunks_a_group) group_shift++;
    else while (chunks_a_group % 2 == 0) chunks_a_group /= 2, group_shift++;
    chunks_a_group = 1 << group_shift;
    int G = (KD + group - 1) / group, stored = SG == 1 ? (chunks + chunks_a_group - 1) / chunks_a_group : chunks * SG;
    w.resize((size_t)E * M * N * KD);
    codes.assign((size_t)E * M * tiles * chunks * (bits == 4 ? 128 : 256), 0xDEADBEEF);
    ratio.assign((size_t)E * M * tiles * stored * 8 + 4, 0x7E007E00);
    zero.assign(ratio.size(), 0xFFFFFFFF);
    channel.assign((size_t)E * M * tiles * 16, NAN);
    for (int k = 0; k < KD; k++) perm.push_back(k);
    if (f.order) std::shuffle(perm.begin(), perm.end(), rng);
    for (int e = 0; e < E; e++)
      for (int m = 0; m < M; m++) {
        std::vector<int> q(N * KD), z(N * G);
        std::vector<double> s(N * G);
        float global = f.global ? 0.37f + 0.11f * (e * M + m) : 1.0f;
        for (int& c : q) {
          do c = below(1 << bits);
          while (f.q == E4M3 && (c & 0x7F) == 0x7F);
        }
        for (int& v : z) v = f.asym ? below(1 << bits) + (f.layout == 0) : f.q == U8 ? 128 : 8;
        int bn = f.group < 0 ? 128 : 1, SN = (N + bn - 1) / bn;
        std::vector<uint8_t> sb(SN * G * 4);
        std::vector<float> sv(SN * G);
        for (int i = 0; i < SN * G; i++) {
          double spread = std::exp2(-(double)below(4)) * (1 + below(1000) / 1000.) / std::sqrt((double)KD) / (f.q == U8 ? 100 : f.q == E4M3 ? 100 : 4);
          if (f.scale_type == F32_SCALE) { sv[i] = spread; memcpy(&sb[4 * i], &sv[i], 4); }
          if (f.scale_type == F16_SCALE) { uint16_t h = emu::to_f16(spread); memcpy(&sb[2 * i], &h, 2); sv[i] = emu::f16(h); }
          if (f.scale_type == BF16_SCALE) { uint16_t h = emu::to_bf16(spread); memcpy(&sb[2 * i], &h, 2); sv[i] = emu::bf16(h); }
          if (f.scale_type == E4M3_SCALE) { sb[i] = 1 + below(100); sv[i] = e4m3(sb[i]); }
          if (f.scale_type == E8M0_SCALE) { sb[i] = 118 + below(6); sv[i] = std::exp2(sb[i] - 127.f); }
        }
        // [N, G], or for GPTQ and AWQ [G, N]
        bool turned = f.layout <= 1;
        for (int n = 0; n < N; n++)
          for (int k = 0; k < KD; k++) {
            int g = k / group, i = turned ? g * SN + n / bn : n / bn * G + g, src = n * KD + perm[k];
            double v = f.q == U4 || f.q == U8 ? q[src] - z[n * G + g] : f.q == E4M3 ? e4m3(q[src]) : e2m1(q[src]);
            w[(((size_t)e * M + m) * N + n) * KD + perm[k]] = v * sv[i] * global;
          }
        std::vector<uint8_t> data;
        int64_t ks, ns;
        int bytes = 4, along = f.layout != 1, flip = f.layout == 3 && f.q == U8 ? 0x80 : 0;
        auto order = [](int c) { return c / 2 + c % 2 * 4; };
        if (f.layout == 3) {
          bytes = 1; ks = 1; ns = KD;
          for (int c : q) data.push_back(c ^ flip);
        } else {
          std::vector<uint32_t> words(f.layout == 1 ? KD * ((N + per - 1) / per) : N * ((KD + per - 1) / per));
          int kw = (KD + per - 1) / per, nw = (N + per - 1) / per;
          ks = f.layout == 0 ? N : f.layout == 1 ? nw : 1;
          ns = f.layout == 2 ? kw : 1;
          for (int n = 0; n < N; n++)
            for (int k = 0; k < KD; k++) {
              uint32_t c = q[n * KD + k];
              if (f.layout == 1) words[k * nw + n / per] |= c << bits * order(n % per);
              else words[k / per * ks + n * ns] |= c << bits * (k % per);
            }
          data.resize(words.size() * 4);
          memcpy(data.data(), words.data(), data.size());
        }
        std::vector<uint32_t> zw;
        int64_t zn = 1, zg = 1;
        int add = f.layout == 0 && f.asym ? 1 : 0;
        if (f.asym) {
          int nw = (N + per - 1) / per;
          zw.resize(nw * G);
          if (f.layout == 2) { zn = G; zg = 1; } else { zn = 1; zg = nw; }
          for (int n = 0; n < N; n++)
            for (int g = 0; g < G; g++) {
              zw[n / per * zn + g * zg] |= (uint32_t)(z[n * G + g] - add) << bits * (f.layout == 1 ? order(n % per) : n % per);
            }
        }
        size_t mat = (size_t)e * M + m;
        int words = bits == 4 ? 128 : 256;
        emu::launch((tiles * 16 + 127) / 128, 128, [&] {
          moe_repack_scales(sb.data(), f.global ? &global : nullptr, f.asym ? (const uint8_t*)zw.data() : nullptr,
                            (uint16_t*)(ratio.data() + mat * tiles * stored * 8), has_zero ? (uint16_t*)(zero.data() + mat * tiles * stored * 8) : nullptr,
                            channel.data() + mat * tiles * 16, turned ? 1 : G, turned ? SN : 1, zn, zg, f.scale_type, 0, bn, group, bits, 0,
                            f.layout == 1, 0, f.asym ? add : f.q == U8 ? 128 : 8, 4, SG, group_shift, N, KD, 0, KD);
        });
        emu::launch((tiles * chunks * words + 255) / 256, 256, [&] {
          moe_repack_codes(data.data(), f.order ? perm.data() : nullptr, codes.data() + mat * tiles * chunks * words, channel.data() + mat * tiles * 16, ks, ns, bytes, bits, along,
                           f.layout == 1, flip, f.q == E4M3, N, KD);
        });
      }
  }
};

template <class T>
static std::vector<uint16_t> random16(size_t n, double scale) {
  std::vector<uint16_t> v(n);
  for (auto& x : v) x = emu::code<T>((float)(normal() * scale));
  return v;
}

struct Adapter { int r[3]; };
static int pages(int r) { return (r + 15) / 16; }

static int experts = 3, topk = 2;
static bool holes = false;  // some pairs without an expert, where they are not sorted

// NT 1: single.cuh, w13 if gated, else w2 with the sum.
template <int Q, class T, int NT, int SG, bool GATED, bool WIDE_ONE, bool ZERO>
static bool run_one(const Format& f, int tokens, int N, int KD, bool first, bool adapters, bool naive, int warps_k, int phase, int act, bool on_input) {
  constexpr bool SINGLE_ONE = NT == 1;
  const bool sums = SINGLE_ONE && !GATED, f32 = sums && tokens % 2 == 0;
  int E = experts, TOPK = topk, P = tokens * TOPK, M = GATED ? 2 : 1;
  Weights<T> w(f, E, M, N, KD);
  if (w.SG != SG) { printf("SG %d\n", w.SG); return false; }
  bool gather = first && !f.order;
  auto x = random16<T>((size_t)(first ? tokens : P) * KD, 1.0);
  std::vector<int> ids(P), mapping(tokens);
  for (int t = 0; t < tokens; t++) {
    for (int k = 0; k < TOPK; k++) {
      int* own = &ids[TOPK * t];
      do own[k] = below(E);
      while (std::find(own, own + k, own[k]) != own + k);
    }
    if (holes) ids[TOPK * t + below(TOPK)] = t % 2 ? -1 : E;
    mapping[t] = adapters ? below(4) - 1 : -1;
  }
  std::vector<float> tw(P), bias(E * M * N);
  for (auto& v : tw) v = 0.2f + below(100) / 100.f;
  for (auto& v : bias) v = (float)normal() * 0.3f;
  // Adapters of ranks padded to 8; s is given, as the shrink would leave it.
  Adapter ad[3] = {{{8, 24, 8}}, {{40, 16, 24}}, {{0, 8, 16}}};
  int R = 48, RS = GATED ? 2 * R : R, SU = R;
  std::vector<std::vector<uint16_t>> B(9);
  std::vector<int64_t> table(3 * SLOT_WIDTH);
  for (int a = 0; a < 3; a++)
    for (int p = 0; p < 3; p++) {
      int r = ad[a].r[p];
      B[a * 3 + p] = random16<T>((size_t)E * N * r + 16, 0.2);
      auto* row = &table[a * SLOT_WIDTH];
      row[B_ADDR + p] = (int64_t)(uintptr_t)B[a * 3 + p].data() / 2;
      row[B_EXPERT + p] = (int64_t)N * r;
      row[B_ROW + p] = r;
      row[RANK + p] = r;
    }
  int SPLIT = 3, of = first ? 0 : 2;
  auto s = random16<T>((size_t)P * RS, 0.5);
  std::vector<float> part((size_t)P * SPLIT * RS);
  // The sort.
  std::vector<int> pairs, seg_of, gtile;
  std::vector<int64_t> pga, pgb, pgm;
  int tiles = 0, segs = 0;
  std::vector<int> expert_of, slot_of;
  for (int e = 0; e < E; e++) {
    int e0 = (int)pairs.size();
    std::vector<std::array<int, 2>> row_pages;
    for (int a = -1; a < 3; a++) {
      bool any = false;
      int p0 = (int)pga.size(), np = 0;
      for (int p = 0; p < P; p++)
        if (ids[p] == e && mapping[p / TOPK] == a) {
          if (!any && a >= 0) {
            int r1 = ad[a].r[of], r2 = first && GATED ? ad[a].r[1] : r1;
            np = std::max(pages(r1), pages(r2));
            for (int j = 0; j < np; j++) {
              auto valid = [&](int r) { return (int64_t)std::max(0, std::min(16, r - 16 * j)) / 8; };
              auto* row = &table[a * SLOT_WIDTH];
              pga.push_back((row[B_ADDR + of] + row[B_EXPERT + of] * e + j * 16) / 8);
              pgb.push_back((row[B_ADDR + 1] + row[B_EXPERT + 1] * e + j * 16) / 8);
              pgm.push_back(segs | (int64_t)(r1 / 8) << 32 | (int64_t)(r2 / 8) << 40 | (int64_t)j << 48 | valid(r1) << 56 | valid(r2) << 58);
            }
          }
          any = true;
          pairs.push_back(p);
          seg_of.push_back(a < 0 ? -1 : segs);
          row_pages.push_back({p0, p0 + np});
          expert_of.push_back(e);
          slot_of.push_back(a);
        }
      if (any && a >= 0) segs++;
    }
    int e1 = (int)pairs.size(), l0 = e0;
    while (l0 < e1 && slot_of[l0] < 0) l0++;
    for (int r = e0; r < e1; r += NT, tiles++) {
      int end = std::min(r + NT, e1), f0 = std::max(r, l0);
      int b = 0, bend = 0;
      if (f0 < end) b = row_pages[f0 - e0][0], bend = row_pages[end - 1 - e0][1];
      int words[8] = {e, r, end, f0, b, bend, b, bend};
      gtile.insert(gtile.end(), words, words + 8);
    }
  }
  if (naive) {
    pairs.resize(P);
    expert_of = ids;
    slot_of.resize(P);
    for (int p = 0; p < P; p++) pairs[p] = p, slot_of[p] = mapping[p / TOPK];
    for (auto& v : part) v = (float)normal() * 0.3f;
    for (int p = 0; p < P; p++)
      for (int c = 0; c < RS; c++) {
        float sum = 0;
        for (int k = 0; k < SPLIT; k++) sum += part[((size_t)p * SPLIT + k) * RS + c];
        s[(size_t)p * RS + c] = emu::code<T>(sum);
      }
  }
  gtile.resize(gtile.size() + 64);
  int nums[2] = {tiles, 0};
  std::vector<uint16_t> xp;
  if (f.order) {
    std::vector<int> perm;
    for (int e = 0; e < E; e++) perm.insert(perm.end(), w.perm.begin(), w.perm.end());
    xp.assign((size_t)P * KD, 0xFFFF);
    emu::launch(naive ? P : tiles + 1, 256, [&] {
      moe_permute_inputs(x.data(), xp.data(), perm.data(), ids.data(), ids.data(), pairs.data(), gtile.data(), nums, 0, first, naive, P, TOPK, KD, KD, E, E);
    });
  }
  std::vector<uint16_t> y((size_t)P * N, 0xFFFF);
  std::vector<float> yf((size_t)tokens * N, NAN);
  float alpha = 1.7f, beta = 1.0f, limit = act == 0 ? INFINITY : 1.5f;
  int rows = SINGLE_ONE ? (sums ? 16 : 128 / warps_k) : WIDE_ONE ? wide_groups(NT) * (GATED ? 64 : 128) / warps_k : 8 / warps_k * (GATED ? 16 : 32), grid = (sums ? tokens : naive ? P : tiles) * ((N + rows - 1) / rows);
  emu::launch(grid + !SINGLE_ONE, sums ? 512 : WIDE_ONE ? 128 * wide_groups(NT) : 256, [&] {
    auto call = [&](auto kernel) {
      kernel(f.order ? xp.data() : x.data(), (const uint8_t*)w.codes.data(), w.ratio.data(), w.zero.data(), w.channel.data(), bias.data(), tw.data(), y.data(),
             table.data(), ids.data(), ids.data(), mapping.data(), pairs.data(), gtile.data(), nums, seg_of.data(), pga.data(), pgb.data(),
             pgm.data(), s.data(), part.data(), 0, 1, on_input, first, GATED, gather, adapters, naive, act, alpha, beta, limit, P, TOPK, N, KD, E, E, 3,
             RS, SU, SPLIT, 2, adapters ? 2 : first ? 0 : 1, f.group != 0 && f.scale_type <= F16_SCALE && f.scale_type != BF16_SCALE, w.group_shift, warps_k, phase);
    };
    if constexpr (SINGLE_ONE)
      single_rows<Q, T, SG, ZERO, !GATED>(f.order ? xp.data() : x.data(), (const uint8_t*)w.codes.data(), w.ratio.data(), w.zero.data(), w.channel.data(),
                                          bias.data(), tw.data(), f32 ? (void*)yf.data() : y.data(), table.data(), ids.data(), ids.data(), mapping.data(), part.data(),
                                          0, 1, on_input, gather, adapters, f32, act, alpha, beta, limit, TOPK, N, KD, E, E, 3, RS, SU, SPLIT, adapters ? 2 : 0, w.group_shift, warps_k);
    else if constexpr (WIDE_ONE) call(wide<Q, T, NT, SG, ZERO>);
    else call(narrow<Q, T, NT, SG, ZERO>);
  });
  double error = 0, norm = 0;
  std::vector<double> wanted(sums ? (size_t)tokens * N : 0);
  for (int r = 0; r < P; r++) {
    int e = expert_of[r], a = slot_of[r];
    if (e < 0 || e >= E) continue;
    for (int n = 0; n < N; n++) {
      double v[2] = {};
      for (int m = 0; m < M; m++) {
        const double* row = &w.w[(((size_t)e * M + m) * N + n) * KD];
        for (int k = 0; k < KD; k++) v[m] += row[k] * emu::value<T>(x[(size_t)(first ? pairs[r] / TOPK : r) * KD + k]);
        int p = first ? m : 2;
        if (a >= 0)
          for (int c = 0; c < ad[a].r[p]; c++)
            v[m] += emu::value<T>(B[a * 3 + p][(size_t)(e * N + n) * ad[a].r[p] + c]) * emu::value<T>(s[(size_t)r * RS + (m ? SU : 0) + c]);
        if (on_input && !sums) v[m] *= tw[pairs[r]];
        v[m] += bias[(e * M + m) * N + n];
      }
      if (sums) {
        wanted[(size_t)(r / TOPK) * N + n] += v[0] * (on_input ? 1.0 : tw[r]);
        continue;
      }
      double want = GATED ? activate_gated(v[0], v[1], act, alpha, beta, limit) : activate_single(v[0], act);
      double got = emu::value<T>(y[(size_t)r * N + n]);
      error += (got - want) * (got - want);
      norm += want * want;
    }
  }
  for (size_t i = 0; i < wanted.size(); i++) {
    double got = f32 ? yf[i] : emu::value<T>(y[i]);
    error += (got - wanted[i]) * (got - wanted[i]);
    norm += wanted[i] * wanted[i];
  }
  error = std::sqrt(error / norm);
  bool bf = std::is_same_v<T, Bf16>, ok = error < (bf ? 4e-3 : 6e-4);
  printf("%-6s %-6s %-24s %s NT %3d %s T %d N %d K %d%s%s%s wk %d phase %d act %d: %.1e%s\n", SINGLE_ONE ? "single" : WIDE_ONE ? "wide" : "narrow", bf ? "bf16" : "f16", f.name,
         GATED ? "gated " : "single", NT, first ? "first " : "second", tokens, N, KD, adapters ? " lora" : "", naive ? " naive" : "", on_input ? " input" : "",
         warps_k, phase, act, error, ok ? "" : " WRONG");
  return ok;
}

template <int Q, class T, int NT, int SG, bool GATED, bool WIDE_ONE, class... A>
static bool run(const Format& f, A... a) {
  if constexpr (is_integer(Q)) {
    if (keeps_zeros(f, SG)) return run_one<Q, T, NT, SG, GATED, WIDE_ONE, true>(f, a...);
  }
  return run_one<Q, T, NT, SG, GATED, WIDE_ONE, false>(f, a...);
}

int main() {
  bool ok = true;
  const Format GPTQ = {"GPTQ int4 g128", U4, 128, F16_SCALE, false, 0, false, false}, ASYM = {"GPTQ int4 asym g32 order", U4, 32, F16_SCALE, true, 0, false, true},
               AWQ = {"AWQ g64", U4, 64, F16_SCALE, true, 1, false, false}, CT16 = {"CT int4 g16 asym", U4, 16, BF16_SCALE, true, 2, false, false},
               ROW = {"CT int4 channel", U4, 0, BF16_SCALE, false, 2, false, false}, I8 = {"int8 channel", U8, 0, F32_SCALE, false, 3, false, false},
               I8G = {"CT int8 g32", U8, 32, BF16_SCALE, false, 2, false, false}, I8A = {"GPTQ int8 asym g64", U8, 64, F16_SCALE, true, 0, false, false},
               FC = {"FP8 channel", E4M3, 0, BF16_SCALE, false, 3, false, false}, FB = {"FP8 block", E4M3, -1, F32_SCALE, false, 3, false, false},
               NV = {"NVFP4", E2M1, 16, E4M3_SCALE, false, 2, true, false}, MX = {"MXFP4", E2M1, 32, E8M0_SCALE, false, 2, false, false};
#define BOTH_KINDS(Q, T, SG, F, G)                                                                    \
  ok &= run<Q, T, 8, SG, G, false>(F, 9, 40, 328, G, true, false, 4, 8, G ? 0 : -1, false);            \
  ok &= run<Q, T, 8, SG, G, false>(F, 3, 40, 328, G, true, true, 8, 8, G ? 3 : -1, false);             \
  ok &= run<Q, T, 16, SG, G, false>(F, 3, 40, 648, G, true, true, 2, 4, G ? 0 : -1, false);            \
  ok &= run<Q, T, 32, SG, G, false>(F, 30, 72, 328, G, false, false, 2, 4, G ? 0 : -1, G);             \
  ok &= run<Q, T, 32, SG, G, true>(F, 14, 264, 328, G, true, false, 1, 1, G ? 3 : -1, false);          \
  ok &= run<Q, T, 32, SG, G, true>(F, 30, 136, 248, G, true, false, 2, 1, G ? 3 : -1, false);          \
  ok &= run<Q, T, 160, SG, G, true>(F, 110, 136, 264, G, true, false, 1, 1, G ? 0 : -1, G);            \
  ok &= run<Q, T, 1, SG, G, false>(F, 3, 40, 1352, G, true, true, 8, 1, G ? 3 : -1, false);
#define ALL(Q, SG, F)                 \
  BOTH_KINDS(Q, Bf16, SG, F, true)    \
  BOTH_KINDS(Q, Bf16, SG, F, false)   \
  BOTH_KINDS(Q, F16, SG, F, true)     \
  BOTH_KINDS(Q, F16, SG, F, false)
#ifdef FORMATS
#define ONE(Q, SG, F)                                                                     \
  ok &= run<Q, Bf16, 8, SG, true, false>(F, 9, 40, 328, true, true, false, 4, 8, 0, false); \
  ok &= run<Q, Bf16, 32, SG, true, true>(F, 14, 264, 328, true, true, false, 1, 1, 3, false); \
  ok &= run<Q, Bf16, 32, SG, true, true>(F, 30, 136, 248, true, true, false, 2, 1, 3, false);
  ONE(U4, 2, ASYM)
  ONE(U4, 1, AWQ)
  ONE(U4, 4, CT16)
  ONE(U4, 1, ROW)
  ONE(U8, 1, I8)
  ONE(U8, 2, I8G)
  ONE(U8, 1, I8A)
  ONE(E4M3, 0, FC)
  ONE(E4M3, 1, FB)
  ONE(E2M1, 4, NV)
  ONE(E2M1, 2, MX)
#else
  ALL(U4, 1, GPTQ)
#endif
  // Blocks of one warpgroup, where there are kernels of them; tiles of 80 and less.
#define ONE_GROUP(Q, F)                                                                       \
  ok &= run<Q, Bf16, 80, 1, true, true>(F, 110, 136, 264, true, true, false, 1, 1, 0, false);  \
  ok &= run<Q, Bf16, 80, 1, true, true>(F, 90, 136, 264, true, true, false, 1, 1, 1, true);    \
  ok &= run<Q, Bf16, 80, 1, true, true>(F, 40, 72, 328, true, false, false, 1, 1, 3, false);   \
  ok &= run<Q, Bf16, 80, 1, false, true>(F, 250, 264, 264, false, true, false, 1, 1, -1, false);
  ONE_GROUP(U4, GPTQ)
  ONE_GROUP(E4M3, FB)
#if defined(FORMATS)
#elif defined(QUICK)
  BOTH_KINDS(U4, Bf16, 2, ASYM, true)
  for (int act = 5; act < 9; act++) ok &= run<U4, Bf16, 32, 1, false, true>(GPTQ, 14, 264, 328, true, true, false, 1, 1, act, act == 6);
  for (int act = 1; act < 5; act++) ok &= run<U4, Bf16, 32, 1, true, true>(GPTQ, 14, 264, 328, true, true, false, 1, 1, act, act == 2);
#else
  ALL(U4, 2, ASYM)
  ALL(U4, 1, AWQ)
  ALL(U4, 4, CT16)
  ALL(U4, 1, ROW)
  ALL(U8, 1, I8)
  ALL(U8, 2, I8G)
  ALL(U8, 1, I8A)
  ALL(E4M3, 0, FC)
  ALL(E4M3, 1, FB)
  ALL(E2M1, 4, NV)
  ALL(E2M1, 2, MX)
  ok &= run<U4, Bf16, 160, 1, true, true>(GPTQ, 250, 136, 264, true, true, false, 1, 1, 0, false);
  ok &= run<U4, Bf16, 160, 1, false, true>(GPTQ, 250, 136, 264, false, true, false, 1, 1, -1, false);
  ok &= run<U4, Bf16, 64, 1, true, false>(GPTQ, 200, 136, 264, true, true, false, 2, 4, 0, false);
  for (int act = 5; act < 9; act++) ok &= run<U4, Bf16, 8, 1, false, false>(GPTQ, 9, 40, 328, true, true, false, 4, 8, act, false);
  for (int act = 1; act < 5; act++) ok &= run<U4, Bf16, 8, 1, true, false>(GPTQ, 9, 40, 328, true, true, false, 4, 8, act, true);
  // Single rows: experts of a token 1 to 16, warps 1 to 8, pairs without an expert.
  experts = 17;
  for (int k : {1, 3, 4, 6, 8, 9, 16}) {
    topk = k;
    holes = k > 1;
    ok &= run<U4, Bf16, 1, 1, true, false>(GPTQ, 2, 72, 456, true, true, true, k == 1 || k == 8 ? k : k == 3 ? 2 : 4, 1, 0, k == 4);
    ok &= run<U4, Bf16, 1, 1, false, false>(GPTQ, 2 + k % 2, 24, 1352, false, true, true, 8, 1, -1, k == 4);
  }
#endif
  printf(ok ? "all right\n" : "WRONG\n");
  return ok ? 0 : 1;
}
