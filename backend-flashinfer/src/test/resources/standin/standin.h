/* The structures of TVM-FFI's and DLPack's C interfaces that the stand-in speaks, and what both halves of it share. */
#ifndef MOE4J_STANDIN_H
#define MOE4J_STANDIN_H

#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

enum { NONE = 0, INT = 1, BOOL = 2, FLOAT = 3, DTYPE = 5, TENSOR_VIEW = 7, RAW_STR = 8 };
enum { OBJECTS = 64, STR = 65, ERROR = 67, FUNCTION = 68, TENSOR = 70, ARRAY = 71, MODULE = 73 };
enum { CUDA = 2 };

typedef struct {
  uint8_t code, bits;
  uint16_t lanes;
} DType;

typedef struct {
  int32_t type, id;
} DlDevice;

typedef struct {
  void* data;
  DlDevice device;
  int32_t ndim;
  DType dtype;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
} DlTensor;

typedef struct Managed {
  uint32_t major, minor;
  void* context;
  void (*deleter)(struct Managed*);
  uint64_t flags;
  DlTensor tensor;
} Managed;

typedef int (*Allocator)(DlTensor*, Managed**, void*, void (*)(void*, const char*, const char*));

typedef struct {
  _Atomic uint64_t counts; /* strong references in the lower half, weak ones in the upper */
  int32_t type_index;
  uint32_t padding;
  void (*deleter)(void* self, int flags);
} Object;

typedef struct {
  int32_t type_index;
  uint32_t padding;
  union {
    int64_t i;
    double f;
    void* p;
    const char* s;
    DType t;
  };
} Any;

typedef struct {
  const char* data;
  size_t size;
} Bytes;

typedef struct {
  Object object;
  Bytes text;
} String;

typedef int (*SafeCall)(void* self, const Any* args, int32_t count, Any* result);

typedef struct {
  Object object;
  SafeCall call;
  void* cpp_call;
  Object* owner; /* kept alive by the function; what the call works on */
} Function;

typedef struct {
  Object object;
  DlTensor tensor;
  Managed* managed;
} Tensor;

typedef struct {
  Object object;
  Any* items;
  int64_t size;
} Array;

typedef struct Module {
  Object object;
  SafeCall (*find)(struct Module*, const char* name); /* NULL for a library: its exports are looked up */
  void (*drop)(struct Module*);
  void* library;
} Module;

/* What tvm.c exports, of TVM-FFI's own names and of the stand-in's. */
int TVMFFIObjectIncRef(void*);
int TVMFFIObjectDecRef(void*);
void TVMFFIErrorSetRaisedFromCStr(const char* kind, const char* message);
void* TVMFFIEnvGetStream(int32_t type, int32_t id);
int TVMFFIEnvTensorAlloc(DlTensor* prototype, void** out);
void* standin_object(size_t size, int32_t type, void (*deleter)(void*, int));
void standin_destroyed(void);
Array* standin_array(const Any* items, int64_t count);

static inline int fail(const char* kind, const char* format, ...) {
  char text[1024];
  va_list list;
  va_start(list, format);
  vsnprintf(text, sizeof text, format, list);
  va_end(list);
  TVMFFIErrorSetRaisedFromCStr(kind, text);
  return -1;
}

static inline int count_is(const char* name, int32_t given, int32_t wanted) {
  return given == wanted ? 0
                         : fail("TypeError", "Mismatched number of arguments when calling: `%s`. Expected %d but got %d arguments",
                                name, wanted, given);
}

static inline int type_is(const char* name, const Any* args, int32_t i, int32_t wanted) {
  if (args[i].padding != 0 && args[i].type_index < 11) {
    return fail("ValueError", "`%s`: argument #%d has padding %u", name, i, args[i].padding);
  }
  return args[i].type_index == wanted
             ? 0
             : fail("TypeError", "Mismatched type on argument #%d when calling: `%s`. Expected type %d but got type %d", i, name,
                    wanted, args[i].type_index);
}

static inline int optional_type_is(const char* name, const Any* args, int32_t i, int32_t wanted) {
  return args[i].type_index == NONE ? 0 : type_is(name, args, i, wanted);
}

/* Every dimension's stride is the product of the sizes behind it; without this a module would read something else. */
static inline int contiguous(const DlTensor* t) {
  int64_t step = 1;
  for (int d = t->ndim - 1; d >= 0; d--) {
    if (t->shape[d] != 1 && t->strides[d] != step) return 0;
    step *= t->shape[d];
  }
  return 1;
}

#endif
