// Tile instructions; with MOE_TILES, a header that stands in for them, so that tests run on machines without.
#include <immintrin.h>
#ifdef MOE_TILES
#include MOE_TILES
#endif
