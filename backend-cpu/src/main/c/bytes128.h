// Four numbers of 8 or 16 bits widened.
static vf widen_f16(vh h) { return (vf)vcvt_f32_f16(vreinterpret_f16_u16((uint16x4_t)h)); }
INLINE int16x4_t four_bytes(const char *p) {
  uint32_t v;
  __builtin_memcpy(&v, p, 4);
  return vget_low_s16(vmovl_s8(vreinterpret_s8_u32(vdup_n_u32(v))));
}
INLINE vf widen_i8(const char *p) { return (vf)vcvtq_f32_s32(vmovl_s16(four_bytes(p))); }
// Sign, exponent and mantissa where a binary16 has them.
INLINE vf widen_e4m3(const char *p) {
  uint16x4_t v = vand_u16(vreinterpret_u16_s16(vshl_n_s16(four_bytes(p), 7)), vdup_n_u16(0xbfff));
  return (vf)vcvt_f32_f16(vreinterpret_f16_u16(v));
}
