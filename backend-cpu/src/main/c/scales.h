// Scales, zero points and 8-bit codes of packed blocks in codes. Whoever includes it has vectors.h and
//   widen_i8(p), widen_e4m3(p): VL bytes; the latter 256 times too small, which the factor makes up for
INLINE vf widen_e8m0(const uint8_t *p) {
  vu v;
  for (int i = 0; i < VL; i++) v[i] = p[i];
  return (vf)(v << 23);
}

// Scales of VL outputs from `lane` on.
INLINE vf scales_at(const struct moe_coded *q, const char *w, int64_t group, int64_t lane) {
  const char *p = w + q->scales;
  int64_t at = q->scale_lanes == 2 ? group * 2 + lane / HALF : group * BLOCK + lane;
  if (q->scale_lanes == 2) {
    switch (q->scale_type) {
      case SCALE_F32: return splat(((const float *)p)[at]);
      case SCALE_E8M0: return (vf)(((vu){} + ((const uint8_t *)p)[at]) << 23);
      case SCALE_E4M3: {
        char all[VL];
        for (int i = 0; i < VL; i++) all[i] = p[at];
        return widen_e4m3(all);
      }
      default: {
        vh h = (vh){} + ((const uint16_t *)p)[at];
        return q->scale_type == SCALE_BF16 ? widen_bf16(h) : widen_f16(h);
      }
    }
  }
  switch (q->scale_type) {
    case SCALE_F32: return *(const vf *)(p + at * 4);
    case SCALE_E8M0: return widen_e8m0((const uint8_t *)p + at);
    case SCALE_E4M3: return widen_e4m3(p + at);
    case SCALE_BF16: return widen_bf16(*(const vh *)(p + at * 2));
    default: return widen_f16(*(const vh *)(p + at * 2));
  }
}

// Zero points of VL outputs from `lane` on.
INLINE vf zeros_at(const struct moe_coded *q, const char *w, int64_t group, int64_t lane) {
  const uint8_t *p = (const uint8_t *)w + q->zeros;
  vi v;
  if (q->format == CODE_4)
    for (int i = 0; i < VL; i++) v[i] = p[group * HALF + (lane + i) % HALF] >> (lane / HALF * 4) & 15;
  else
    for (int i = 0; i < VL; i++) v[i] = p[group * BLOCK + lane + i];
  return __builtin_convertvector(v + (int32_t)q->zero_offset, vf);
}

INLINE vf byte_value(const char *p, int format) { return format == CODE_I8 ? widen_i8(p) : widen_e4m3(p); }
