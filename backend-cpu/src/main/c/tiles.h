// Tile instructions; with MOE_TILES, a header that stands in for them, so that tests run on machines without.
#include <immintrin.h>
#ifdef MOE_TILES
#include MOE_TILES
#define TILE_CONFIG(c) tile_configure(&(c))
#else
// The compiler's own names only the first bytes of the configuration as read, and stores to the others are left out where it is inlined.
#define TILE_CONFIG(c) __asm__ volatile("ldtilecfg %0" : : "m"(c))
#endif
