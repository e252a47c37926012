// Sixteen numbers of 8 or 16 bits widened.
static vf widen_f16(vh h) { return (vf)_mm512_cvtph_ps((__m256i)h); }
INLINE vf widen_i8(const char *p) { return (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p))); }
// Sign, exponent and mantissa where a binary16 has them.
INLINE vf widen_e4m3(const char *p) {
  __m256i v = _mm256_slli_epi16(_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)p)), 7);
  return (vf)_mm512_cvtph_ps(_mm256_and_si256(v, _mm256_set1_epi16((short)0xbfff)));
}
