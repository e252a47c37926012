// Tensors on a card, so that several ranks can share one (NCCL itself refuses that). Once all ranks have made a call, each enqueues its part on its
// own stream: a barrier between the streams, copies or sums out of the others' buffers, a barrier, and a third one. Barriers are kernels that
// wait for each other like NCCL's own: a rank that does not come holds the others' streams until the abort. Everything can be recorded. The card's
// primary context is kept from the first call on, as its kernels are in it: whoever else closes the card would take them along.
#include <dlfcn.h>

#include "sum_ptx.h"

typedef uint64_t Pointer;
static int (*cu_alloc)(Pointer*, size_t);
static int (*cu_host_alloc)(void**, size_t, unsigned);
static int (*cu_set)(Pointer, unsigned char, size_t);
static int (*cu_load)(void**, const void*);
static int (*cu_function)(void**, void*, const char*);
static int (*cu_copy)(Pointer, Pointer, size_t, void*);
static int (*cu_device)(int*);
static int (*cu_retain)(void**, int);
static int (*cu_current)(void*);
static int (*cu_launch)(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**, void**);
static void *sum_kernel, *barrier_kernel;
static Pointer flags[MOST_WORLDS], spare;
static int* stop[MOST_WORLDS];
static void* context;
enum { SPARE_BYTES = 32 << 20 };

static void* symbol(const char* name) {
  static void* driver;
  if (!driver) driver = dlopen("libcuda.so.1", RTLD_NOW);
  return driver ? dlsym(driver, name) : NULL;
}

// Called with the lock, in a thread whose context is current.
static int prepare(World* w) {
  void* module;
  if (!cu_alloc) {
    cu_alloc = symbol("cuMemAlloc_v2");
    cu_host_alloc = symbol("cuMemHostAlloc");
    cu_set = symbol("cuMemsetD8_v2");
    cu_load = symbol("cuModuleLoadData");
    cu_function = symbol("cuModuleGetFunction");
    cu_copy = symbol("cuMemcpyDtoDAsync_v2");
    cu_device = symbol("cuCtxGetDevice");
    cu_retain = symbol("cuDevicePrimaryCtxRetain");
    cu_current = symbol("cuCtxSetCurrent");
    cu_launch = symbol("cuLaunchKernel");
    int device;
    if (!cu_launch || cu_device(&device) || cu_retain(&context, device) || cu_load(&module, SUM_PTX) || cu_function(&sum_kernel, module, "standin_sum") ||
        cu_function(&barrier_kernel, module, "standin_barrier") || cu_alloc(&spare, (size_t)SPARE_BYTES * MOST_RANKS))
      return bad(CUDA_ERROR, "the card's kernels could not be loaded");
  }
  if (!flags[w->number]) {
    if (cu_alloc(&flags[w->number], 3 * MOST_RANKS * sizeof(int)) || cu_host_alloc((void**)&stop[w->number], MOST_RANKS * sizeof(int), 2))
      return bad(CUDA_ERROR, "no memory for flags");
  }
  memset(stop[w->number], 0, MOST_RANKS * sizeof(int));
  return cu_set(flags[w->number], 0, 3 * MOST_RANKS * sizeof(int)) ? bad(CUDA_ERROR, "flags") : SUCCESS;
}

static size_t width(int type);
static const Item* sent(Op* op, int from, int to);

static int barrier(World* w, int rank, int phase, void* stream) {
  int size = w->size;
  void* args[] = {&flags[w->number], &rank, &size, &phase, &stop[w->number]};
  return cu_launch(barrier_kernel, 1, 1, 1, 1, 1, 1, 0, stream, args, NULL);
}

static int compute(World* w, Op* op, int rank) {
  Part* mine = &op->part[rank];
  Pointer extra = spare + (Pointer)rank * SPARE_BYTES;
  int failed = cu_current(context) || barrier(w, rank, 0, mine->stream);
  for (int i = 0; i < mine->items && !failed; i++) {
    Item* item = &mine->item[i];
    size_t bytes = item->count * width(item->type);
    if (!bytes) continue;
    if (item->kind == GATHER) {
      for (int r = 0; r < w->size; r++)
        failed |= cu_copy((Pointer)item->recv + r * bytes, (Pointer)op->part[r].item[i].send, bytes, mine->stream);
    } else if (item->kind == RECV) {
      const Item* from = sent(op, item->peer, rank);
      if (!from || from->count != item->count) return bad(ARGUMENT, "what rank %d sends is not what rank %d takes", item->peer, rank);
      failed |= cu_copy((Pointer)item->recv, (Pointer)from->send, bytes, mine->stream);
    } else if (item->kind != SEND) {
      if (item->kind == REDUCE && bytes > SPARE_BYTES) return bad(INTERNAL, "a sum of %zu bytes", bytes);
      struct { Pointer rank[MOST_RANKS]; } sources;
      size_t first = item->kind == SCATTER ? rank * bytes : 0;
      for (int r = 0; r < w->size; r++) sources.rank[r] = (Pointer)op->part[r].item[i].send + first;
      Pointer to = item->kind == REDUCE ? extra : (Pointer)item->recv;
      long long n = item->count;
      int ranks = w->size;
      void* args[] = {&sources, &to, &n, &ranks, &item->type};
      failed |= cu_launch(sum_kernel, n < 262144 ? (unsigned)((n + 255) / 256) : 1024, 1, 1, 256, 1, 1, 0, mine->stream, args, NULL);
    }
  }
  failed |= barrier(w, rank, 1, mine->stream);
  for (int i = 0; i < mine->items && !failed; i++) {
    Item* item = &mine->item[i];
    size_t bytes = item->count * width(item->type);
    if (item->kind == REDUCE && bytes) failed |= cu_copy((Pointer)item->recv, extra, bytes, mine->stream);
  }
  failed |= barrier(w, rank, 2, mine->stream);
  return failed ? bad(CUDA_ERROR, "the driver refused") : SUCCESS;
}

static void deliver(Op* op, int rank) {}

// What waits on this rank's streams returns.
static void release(World* w, int rank) { ((volatile int*)stop[w->number])[rank] = 1; }
