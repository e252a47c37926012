// A stand-in for libnccl.so.2: the functions that the bindings use, between threads of one process, with checks of every argument and faults on
// demand. Own code. Without CARD, tensors are in host memory and a call has happened when its state turns to success, as ranks poll; with CARD
// they are in device memory and the work goes to the stream (card.h).
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef VERSION
#define VERSION 23007
#endif
#define API __attribute__((visibility("default")))
#define MOST_RANKS 16
#define MOST_OPS 4096
#define MOST_WORLDS 4096
#define MOST_ITEMS 64
#define MAGIC 0xcafebeefu

enum { SUCCESS = 0, CUDA_ERROR = 1, SYSTEM = 2, INTERNAL = 3, ARGUMENT = 4, USAGE = 5, REMOTE = 6, IN_PROGRESS = 7 };
enum { GATHER = 1, SCATTER, REDUCE, SEND, RECV };
enum { U8 = 1, F16 = 6, F32 = 7, BF16 = 9 };

typedef struct { char internal[128]; } Id;

// ncclConfig_t of 2.30; older ones end earlier.
typedef struct {
  size_t size;
  unsigned magic, version;
  int blocking, cga, min_ctas, max_ctas;
  const char* net;
  int split, traffic;
  const char* name;
  int rest[10];
} Config;

typedef struct {
  int kind, type, peer;
  const void* send;
  void* recv;
  size_t count;
} Item;

typedef struct {
  int items;
  Item item[MOST_ITEMS];
  void* result[MOST_ITEMS];
  int submitted, computed;
  void* stream;
} Part;

typedef struct {
  Part part[MOST_RANKS];
} Op;

struct Comm;
typedef struct World {
  Id id;
  int size, joined, left, number;
  struct Comm* comm[MOST_RANKS];
  Op* op[MOST_OPS];
  struct World* next;
} World;

typedef struct Comm {
  World* world;
  int rank, ops, aborted, finalized, async, pending, group_items, group_bad;
  Item group[MOST_ITEMS];
  void* group_stream;
} Comm;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static World* worlds;
static long live, aborts, destroys, calls, groups, stuck, stuck_of[MOST_RANKS], hang, fail_next, same_gpu, inits, made;
static __thread int depth;
static __thread Comm* in_group;
static __thread char last[512];

static int bad(int code, const char* format, ...) {
  va_list a;
  va_start(a, format);
  vsnprintf(last, sizeof last, format, a);
  va_end(a);
  return code;
}

#ifdef CARD
#include "card.h"
#else
#include "host.h"
#endif

// What tests say and ask.
API void standin_set(const char* what, long value) {
  pthread_mutex_lock(&lock);
  if (!strcmp(what, "stuck")) stuck = value, memset(stuck_of, 0, sizeof stuck_of);
  if (!strncmp(what, "stuck ", 6)) stuck_of[atoi(what + 6)] = value;
  if (!strcmp(what, "hang")) hang = value;
  if (!strcmp(what, "same_gpu")) same_gpu = value;
  if (!strcmp(what, "fail_next")) fail_next = value;
  if (!strcmp(what, "async_error"))
    for (World* w = worlds; w; w = w->next)
      for (int r = 0; r < w->size; r++)
        if (w->comm[r]) w->comm[r]->async = (int)value;
  pthread_mutex_unlock(&lock);
}

API long standin_ask(const char* what) {
  pthread_mutex_lock(&lock);
  long v = !strcmp(what, "live")       ? live
           : !strcmp(what, "aborts")   ? aborts
           : !strcmp(what, "destroys") ? destroys
           : !strcmp(what, "calls")    ? calls
           : !strcmp(what, "groups")   ? groups
           : !strcmp(what, "inits")    ? inits
           : !strncmp(what, "stuck ", 6) ? stuck_of[atoi(what + 6)]
                                         : -1;
  pthread_mutex_unlock(&lock);
  return v;
}

API int ncclGetVersion(int* version) {
  if (!version) return bad(ARGUMENT, "version is null");
  *version = VERSION;
  return SUCCESS;
}

API int ncclGetUniqueId(Id* id) {
  static unsigned next;
  if (!id) return bad(ARGUMENT, "id is null");
  memset(id, 0x5a, sizeof *id);
  pthread_mutex_lock(&lock);
  next++;
  memcpy(id->internal + 4, &next, sizeof next);
  pthread_mutex_unlock(&lock);
  return SUCCESS;
}

API const char* ncclGetErrorString(int code) {
  static const char* words[] = {"no error",         "unhandled cuda error", "unhandled system error", "internal error",
                                "invalid argument", "invalid usage",        "remote process exited or there was a network error",
                                "NCCL operation in progress"};
  return code >= 0 && code <= IN_PROGRESS ? words[code] : "unknown result code";
}

API const char* ncclGetLastError(Comm* comm) { return last; }

API int ncclCommInitRankConfig(Comm** out, int size, Id id, int rank, const Config* config) {
  if (!out || !config) return bad(ARGUMENT, "comm or config is null");
  if (config->magic != MAGIC) return bad(ARGUMENT, "config has no magic");
  if (config->size < 48 || config->size > sizeof(Config)) return bad(ARGUMENT, "config is of %zu bytes, that of 2.30 of %zu", config->size, sizeof(Config));
  if (config->version > VERSION || config->version < 22700) return bad(ARGUMENT, "config is of version %u", config->version);
  if (config->blocking != 0) return bad(USAGE, "the communicator would block");
  if (config->cga != INT_MIN || config->net || config->name || config->split != INT_MIN) return bad(ARGUMENT, "config is not as initialised");
  for (int i = 0; i < 10; i++)
    if (config->rest[i] != INT_MIN) return bad(ARGUMENT, "config is not as initialised");
  if (same_gpu) return bad(USAGE, "Duplicate GPU detected : rank 0 and rank 1 both on CUDA device 1000");
  if (size < 1 || size > MOST_RANKS || rank < 0 || rank >= size) return bad(ARGUMENT, "rank %d of %d", rank, size);
  pthread_mutex_lock(&lock);
  World* w = worlds;
  while (w && memcmp(&w->id, &id, sizeof id)) w = w->next;
  if (!w) {
    w = calloc(1, sizeof *w);
    w->id = id;
    w->size = size;
    w->next = worlds;
    w->number = made++ % MOST_WORLDS;
    worlds = w;
  }
  int result = IN_PROGRESS;
#ifdef CARD
  if (!w->joined && prepare(w)) result = CUDA_ERROR;
#endif
  if (result != IN_PROGRESS) {
  } else if (w->size != size || w->comm[rank]) {
    result = bad(ARGUMENT, "rank %d of %d is there already, or the world is of %d", rank, size, w->size);
  } else {
    Comm* c = calloc(1, sizeof *c);
    c->world = w;
    c->rank = rank;
    w->comm[rank] = c;
    w->joined++;
    live++;
    inits++;
    *out = c;
  }
  pthread_mutex_unlock(&lock);
  return result;
}

static size_t width(int type) { return type == U8 ? 1 : type == F16 || type == BF16 ? 2 : type == F32 ? 4 : 0; }

// Whether the ranks' parts go together; those that do not are never finished, as in NCCL itself.
static int fits(World* w, Op* op) {
  for (int r = 1; r < w->size; r++) {
    Part *a = &op->part[0], *b = &op->part[r];
    if (a->items && a->item[0].kind <= REDUCE) {
      if (a->items != b->items) return 0;
      for (int i = 0; i < a->items; i++)
        if (a->item[i].kind != b->item[i].kind || a->item[i].count != b->item[i].count || a->item[i].type != b->item[i].type) return 0;
    }
  }
  return 1;
}

static const Item* sent(Op* op, int from, int to) {
  Part* p = &op->part[from];
  for (int i = 0; i < p->items; i++)
    if (p->item[i].kind == SEND && p->item[i].peer == to) return &p->item[i];
  return NULL;
}

// Called with the lock.
static int advance(Comm* c) {
  World* w = c->world;
  if (c->async) return bad(c->async, "the network is down");
  if (w->joined < w->size) return IN_PROGRESS;
  if (!c->pending) return SUCCESS;
  if (stuck) return SUCCESS;
  if (hang) return IN_PROGRESS;
  Op* op = w->op[c->ops - 1];
  int submitted = 0, computed = 0;
  for (int r = 0; r < w->size; r++) submitted += op->part[r].submitted;
  if (submitted < w->size || !fits(w, op)) return IN_PROGRESS;
  Part* mine = &op->part[c->rank];
  if (!mine->computed) {
    int result = compute(w, op, c->rank);
    if (result) return result;
    mine->computed = 1;
  }
  for (int r = 0; r < w->size; r++) computed += op->part[r].computed;
  if (computed < w->size) return IN_PROGRESS;
  deliver(op, c->rank);
  c->pending = 0;
  return SUCCESS;
}

API int ncclCommGetAsyncError(Comm* c, int* state) {
  if (!c || !state) return bad(ARGUMENT, "comm or state is null");
  pthread_mutex_lock(&lock);
  *state = c->aborted ? USAGE : advance(c);
  pthread_mutex_unlock(&lock);
  return SUCCESS;
}

static int submit(Comm* c, const Item* items, int n, void* stream) {
  pthread_mutex_lock(&lock);
  World* w = c->world;
  int result = IN_PROGRESS;
  calls++;
  if (c->aborted || c->finalized) {
    result = bad(USAGE, "the communicator is no more");
  } else if (w->joined < w->size || (c->pending && !stuck)) {
    result = bad(USAGE, "an earlier call is still in progress");
  } else if (fail_next) {
    result = bad((int)fail_next, "as the test wished");
    fail_next = 0;
  } else if (c->ops == MOST_OPS) {
    result = bad(INTERNAL, "more than %d calls", MOST_OPS);
  } else {
    Op* op = w->op[c->ops];
    if (!op) op = w->op[c->ops] = calloc(1, sizeof *op);
    c->ops++;
    Part* p = &op->part[c->rank];
    memcpy(p->item, items, n * sizeof *items);
    p->items = n;
    p->stream = stream;
    p->submitted = 1;
    c->pending = 1;
    stuck_of[c->rank] += stuck != 0;
    result = advance(c);
  }
  pthread_mutex_unlock(&lock);
  return result;
}

static int add(Comm* c, Item item, void* stream) {
  if (!c) return bad(ARGUMENT, "comm is null");
  if (!width(item.type)) return bad(ARGUMENT, "type %d", item.type);
  if (item.count && (item.kind == RECV ? !item.recv : !item.send)) return bad(ARGUMENT, "a buffer is null");
  if (!depth) return submit(c, &item, 1, stream);
  if (in_group && in_group != c) return bad(USAGE, "two communicators in a group");
  if (c->group_items == MOST_ITEMS) return bad(INTERNAL, "more than %d calls in a group", MOST_ITEMS);
  if (c->group_items && c->group_stream != stream) return bad(USAGE, "two streams in a group");
  in_group = c;
  c->group_stream = stream;
  c->group[c->group_items++] = item;
  return SUCCESS;
}

API int ncclGroupStart(void) {
  depth++;
  return SUCCESS;
}

API int ncclGroupEnd(void) {
  if (!depth) return bad(USAGE, "no group was begun");
  depth--;
  Comm* c = in_group;
  if (depth || !c) return SUCCESS;
  in_group = NULL;
  int n = c->group_items;
  c->group_items = 0;
  pthread_mutex_lock(&lock);
  groups++;
  pthread_mutex_unlock(&lock);
  return submit(c, c->group, n, c->group_stream);
}

API int ncclAllGather(const void* send, void* recv, size_t count, int type, Comm* c, void* stream) {
  if (count && !recv) return bad(ARGUMENT, "recv is null");
  return add(c, (Item){GATHER, type, 0, send, recv, count}, stream);
}

static int sum(int kind, const void* send, void* recv, size_t count, int type, int op, Comm* c, void* stream) {
  if (count && !recv) return bad(ARGUMENT, "recv is null");
  if (op != 0 || type == U8) return bad(ARGUMENT, "op %d of type %d", op, type);
  return add(c, (Item){kind, type, 0, send, recv, count}, stream);
}

API int ncclReduceScatter(const void* send, void* recv, size_t count, int type, int op, Comm* c, void* stream) {
  return sum(SCATTER, send, recv, count, type, op, c, stream);
}

API int ncclAllReduce(const void* send, void* recv, size_t count, int type, int op, Comm* c, void* stream) {
  return sum(REDUCE, send, recv, count, type, op, c, stream);
}

API int ncclSend(const void* send, size_t count, int type, int peer, Comm* c, void* stream) {
  if (c && (peer < 0 || peer >= c->world->size)) return bad(ARGUMENT, "peer %d", peer);
  return add(c, (Item){SEND, type, peer, send, NULL, count}, stream);
}

#ifndef LACKS_RECV
API int ncclRecv(void* recv, size_t count, int type, int peer, Comm* c, void* stream) {
  if (c && (peer < 0 || peer >= c->world->size)) return bad(ARGUMENT, "peer %d", peer);
  return add(c, (Item){RECV, type, peer, NULL, recv, count}, stream);
}
#endif

// The world goes with its last rank.
static void leave(Comm* c) {
  World* w = c->world;
  live--;
  if (++w->left < w->size) return;
  for (World** p = &worlds; *p; p = &(*p)->next)
    if (*p == w) {
      *p = w->next;
      break;
    }
  for (int i = 0; i < MOST_OPS; i++) free(w->op[i]);
  for (int r = 0; r < w->size; r++) free(w->comm[r]);
  free(w);
}

API int ncclCommFinalize(Comm* c) {
  if (!c) return bad(ARGUMENT, "comm is null");
  pthread_mutex_lock(&lock);
  c->finalized = 1;
  int result = advance(c);
  pthread_mutex_unlock(&lock);
  return result;
}

API int ncclCommDestroy(Comm* c) {
  if (!c) return bad(ARGUMENT, "comm is null");
  pthread_mutex_lock(&lock);
  int result = c->finalized ? SUCCESS : bad(USAGE, "destroyed before it was finalised");
  destroys++;
  leave(c);
  pthread_mutex_unlock(&lock);
  return result;
}

API int ncclCommAbort(Comm* c) {
  if (!c) return bad(ARGUMENT, "comm is null");
  pthread_mutex_lock(&lock);
  int result = c->aborted ? bad(USAGE, "aborted twice") : SUCCESS;
  c->aborted = 1;
  aborts++;
#ifdef CARD
  release(c->world, c->rank);
#endif
  stuck_of[c->rank] = 0; // what ran on its stream returns
  leave(c);
  pthread_mutex_unlock(&lock);
  return result;
}
