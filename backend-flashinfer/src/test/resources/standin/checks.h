/* What both modules of the stand-in do with their arguments, and failing on demand. */
#ifndef MOE4J_STANDIN_CHECKS_H
#define MOE4J_STANDIN_CHECKS_H

#include "standin.h"

#ifndef DEVICE_ID
#define DEVICE_ID 0
#endif

static char fail_kind[64], fail_message[256];

EXPORT void standin_fail_next(const char* kind, const char* message) {
  snprintf(fail_kind, sizeof fail_kind, "%s", kind);
  snprintf(fail_message, sizeof fail_message, "%s", message);
}

static int told_to_fail(void) {
  if (!fail_kind[0]) return 0;
  char kind[64];
  strcpy(kind, fail_kind);
  fail_kind[0] = 0;
  return fail(kind, "%s", fail_message);
}

static int same(DType a, DType b) { return a.code == b.code && a.bits == b.bits && a.lanes == b.lanes; }

static int check_tensor(const char* name, const char* what, const DlTensor* t, DType dtype, int dims, int64_t a, int64_t b, int64_t c) {
  int64_t wanted[3] = {a, b, c};
  if (t->device.type != CUDA || t->device.id != DEVICE_ID) {
    return fail("ValueError", "%s: %s must be on cuda:%d, is on %d:%d", name, what, DEVICE_ID, t->device.type, t->device.id);
  }
  if (!same(t->dtype, dtype)) {
    return fail("ValueError", "%s: %s has dtype %d:%d, expected %d:%d", name, what, t->dtype.code, t->dtype.bits, dtype.code, dtype.bits);
  }
  if (t->ndim != dims) return fail("ValueError", "%s: %s must be a %dD tensor, has %d dimensions", name, what, dims, t->ndim);
  for (int d = 0; d < dims && d < 3; d++) { /* what has more sizes is looked at by the caller */
    if (wanted[d] >= 0 && t->shape[d] != wanted[d]) {
      return fail("ValueError", "%s: size %d of %s is %ld, expected %ld", name, d, what, (long)t->shape[d], (long)wanted[d]);
    }
  }
  if (!contiguous(t)) return fail("ValueError", "%s: %s must be contiguous", name, what);
  if (t->byte_offset != 0) return fail("ValueError", "%s: %s has byte offset %lu", name, what, (unsigned long)t->byte_offset);
  return 0;
}

static const DlTensor* view(const Any* args, int i) { return args[i].type_index == NONE ? NULL : args[i].p; }

#endif
