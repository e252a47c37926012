// How the vector kernels walk over rows: passes over a block, each for a few rows, and what is fetched meanwhile.
#include "moe.h"

struct fetch {
  const char *at;        // this line and the one `second` bytes behind it, then `step` bytes further
  int64_t second, step;
};

static inline void fetch_next(struct fetch *f) {
  __builtin_prefetch(f->at);
  __builtin_prefetch(f->at + f->second);
  f->at += f->step;
}

// For pass `pass` of `passes` over a block that is read in `steps` steps of 128 bytes.
static inline struct fetch fetch_of(const char *w, int64_t steps, int64_t pass, int64_t passes, int first) {
  if (passes == 1) return (struct fetch){w + 8192, 64, 128};
  if (pass < 2 && first) return (struct fetch){w + steps * (128 + pass * 64), 0, 64};
  return (struct fetch){w, 0, 0};
}
