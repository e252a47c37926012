// The formats that kernels are compiled for, F(name, code, SG, ZERO, T, type); PackedLayout says which one a scheme is kept in. Symmetric integers
// whose groups no kernel of its own serves have their zero points written out.
#pragma once

#define FORMATS_OFTEN(F, T, type)   \
  F(u4_1, U4, 1, false, T, type)    \
  F(u4_1z, U4, 1, true, T, type)    \
  F(u4_2, U4, 2, false, T, type)    \
  F(u8_1, U8, 1, false, T, type)    \
  F(e4m3_0, E4M3, 0, false, T, type) \
  F(e4m3_1, E4M3, 1, false, T, type) \
  F(e2m1_2, E2M1, 2, false, T, type) \
  F(e2m1_4, E2M1, 4, false, T, type)
#define FORMATS_RARE(F, T, type)    \
  F(u4_2z, U4, 2, true, T, type)    \
  F(u4_4z, U4, 4, true, T, type)    \
  F(u8_1z, U8, 1, true, T, type)    \
  F(u8_2z, U8, 2, true, T, type)    \
  F(u8_4z, U8, 4, true, T, type)    \
  F(e4m3_2, E4M3, 2, false, T, type)
#define FORMATS(F, T, type) FORMATS_OFTEN(F, T, type) FORMATS_RARE(F, T, type)
#define JOIN_(a, b, c, d) a##b##_##c##_##d
#define JOIN(a, b, c, d) JOIN_(a, b, c, d)
