/* A stand-in for libtvm_ffi.so: objects, functions, errors, streams and allocation by its C interface. */
#include "standin.h"

#include <dlfcn.h>

#ifndef TVM_MINOR
#define TVM_MINOR 1
#endif
#ifndef TVM_PATCH
#define TVM_PATCH 14
#endif

static _Atomic int64_t live;

EXPORT int64_t standin_live(void) { return live; }
EXPORT void standin_destroyed(void) { live--; }

EXPORT void* standin_object(size_t size, int32_t type, void (*deleter)(void*, int)) {
  Object* o = calloc(1, size);
  o->counts = 1;
  o->type_index = type;
  o->deleter = deleter;
  live++;
  return o;
}

EXPORT int TVMFFIObjectIncRef(void* o) {
  ((Object*)o)->counts++;
  return 0;
}

EXPORT int TVMFFIObjectDecRef(void* o) {
  Object* object = o;
  uint32_t before = (uint32_t)(object->counts--);
  if (before == 0) abort(); /* given back more often than taken */
  if (before == 1) object->deleter(object, 3);
  return 0;
}

EXPORT void TVMFFIGetVersion(uint32_t* v) {
  v[0] = 0;
  v[1] = TVM_MINOR;
  v[2] = TVM_PATCH;
}

/* Errors. */

typedef struct {
  Object object;
  Bytes kind, message, backtrace;
  void *cause, *extra;
} Error;

static _Thread_local Error* raised;

static void delete_error(void* self, int flags) {
  (void)flags;
  Error* e = self;
  free((void*)e->kind.data);
  free((void*)e->message.data);
  free(e);
  standin_destroyed();
}

static Bytes copy(const char* text) {
  Bytes b = {strdup(text), strlen(text)};
  return b;
}

EXPORT void TVMFFIErrorSetRaisedFromCStr(const char* kind, const char* message) {
  if (raised) TVMFFIObjectDecRef(raised);
  raised = standin_object(sizeof(Error), ERROR, delete_error);
  raised->kind = copy(kind);
  raised->message = copy(message);
}

EXPORT void TVMFFIErrorMoveFromRaised(void** out) {
  *out = raised;
  raised = NULL;
}

/* Functions. */

static void delete_function(void* self, int flags) {
  (void)flags;
  Function* f = self;
  if (f->owner) TVMFFIObjectDecRef(f->owner);
  free(f);
  standin_destroyed();
}

static Function* function(SafeCall call, Object* owner) {
  Function* f = standin_object(sizeof(Function), FUNCTION, delete_function);
  f->call = call;
  f->owner = owner;
  if (owner) TVMFFIObjectIncRef(owner);
  return f;
}

EXPORT int TVMFFIFunctionCall(void* handle, Any* args, int32_t count, Any* result) {
  Function* f = handle;
  if (f->object.type_index != FUNCTION) return fail("TypeError", "not a function");
  if (result->type_index != NONE) return fail("ValueError", "the result was not set to None");
  return f->call(f->owner, args, count, result);
}

/* Tensors. */

static void delete_tensor(void* self, int flags) {
  (void)flags;
  Tensor* t = self;
  if (t->managed->deleter) t->managed->deleter(t->managed);
  free(t);
  standin_destroyed();
}

EXPORT int TVMFFITensorFromDLPackVersioned(Managed* from, int32_t alignment, int32_t contiguous_only, void** out) {
  (void)alignment;
  if (from->major != 1) return fail("ValueError", "DLPack version %u.%u", from->major, from->minor);
  if (from->flags != 0) return fail("ValueError", "flags are %lu", (unsigned long)from->flags);
  if (from->tensor.ndim != 0 && !from->tensor.strides) return fail("ValueError", "no strides");
  if (contiguous_only && !contiguous(&from->tensor)) return fail("RuntimeError", "FromDLPack: Tensor is not contiguous.");
  Tensor* t = standin_object(sizeof(Tensor), TENSOR, delete_tensor);
  t->tensor = from->tensor;
  t->managed = from;
  *out = t;
  return 0;
}

/* The thread's stream and allocator. */

static _Thread_local void* streams[4][8];
static _Thread_local Allocator allocator;

EXPORT int TVMFFIEnvSetStream(int32_t type, int32_t id, void* stream, void** before) {
  if (type < 0 || type > 3 || id < 0 || id > 7) return fail("ValueError", "no device %d:%d", type, id);
  if (before) *before = streams[type][id];
  streams[type][id] = stream;
  return 0;
}

EXPORT void* TVMFFIEnvGetStream(int32_t type, int32_t id) { return streams[type][id]; }

EXPORT int TVMFFIEnvSetDLPackManagedTensorAllocator(Allocator a, int32_t global, Allocator* before) {
  if (global) return fail("ValueError", "the stand-in has no global allocator");
  if (before) *before = allocator;
  allocator = a;
  return 0;
}

static void set_error(void* context, const char* kind, const char* message) {
  (void)context;
  TVMFFIErrorSetRaisedFromCStr(kind, message);
}

#ifndef WITHOUT_ENV_ALLOC
EXPORT int TVMFFIEnvTensorAlloc(DlTensor* prototype, void** out) {
  if (!allocator) return fail("RuntimeError", "TVMFFIEnvTensorAlloc: allocator is nullptr");
  Managed* managed = NULL;
  int result = allocator(prototype, &managed, NULL, set_error);
  if (result != 0) return result;
  return TVMFFITensorFromDLPackVersioned(managed, 0, 1, out);
}
#endif

/* Global functions. */

static void delete_array(void* self, int flags) {
  (void)flags;
  Array* a = self;
  for (int64_t i = 0; i < a->size; i++) {
    if (a->items[i].type_index >= OBJECTS) TVMFFIObjectDecRef(a->items[i].p);
  }
  free(a->items);
  free(a);
  standin_destroyed();
}

EXPORT Array* standin_array(const Any* items, int64_t count) {
  Array* a = standin_object(sizeof(Array), ARRAY, delete_array);
  a->items = calloc(count + 1, sizeof(Any));
  a->size = count;
  for (int64_t i = 0; i < count; i++) {
    a->items[i] = items[i];
    if (items[i].type_index >= OBJECTS) TVMFFIObjectIncRef(items[i].p);
  }
  return a;
}

static int answer(Any* result, int32_t type, void* object) {
  result->type_index = type;
  result->p = object;
  return 0;
}

static void delete_string(void* self, int flags) {
  (void)flags;
  free((void*)((String*)self)->text.data);
  free(self);
  standin_destroyed();
}

/* What an array keeps of a string that is lent. */
static String* string(const char* text) {
  String* s = standin_object(sizeof(String), STR, delete_string);
  s->text = copy(text);
  return s;
}

static int make_array(void* self, const Any* args, int32_t count, Any* result) {
  (void)self;
  for (int32_t i = 0; i < count; i++) {
    if (args[i].type_index != INT && args[i].type_index != RAW_STR && args[i].type_index < OBJECTS) return type_is("ffi.Array", args, i, INT);
  }
  Array* a = standin_array(args, count);
  for (int32_t i = 0; i < count; i++) {
    if (args[i].type_index != RAW_STR) continue;
    a->items[i].type_index = STR;
    a->items[i].p = string(args[i].s);
  }
  return answer(result, ARRAY, a);
}

static int array_size(void* self, const Any* args, int32_t count, Any* result) {
  (void)self;
  if (count_is("ffi.ArraySize", count, 1) || type_is("ffi.ArraySize", args, 0, ARRAY)) return -1;
  result->type_index = INT;
  result->i = ((Array*)args[0].p)->size;
  return 0;
}

static int array_get(void* self, const Any* args, int32_t count, Any* result) {
  (void)self;
  const char* name = "ffi.ArrayGetItem";
  if (count_is(name, count, 2) || type_is(name, args, 0, ARRAY) || type_is(name, args, 1, INT)) return -1;
  Array* a = args[0].p;
  int64_t i = args[1].i;
  if (i < 0 || i >= a->size) return fail("IndexError", "indexing %ld on an array of size %ld", (long)i, (long)a->size);
  *result = a->items[i];
  if (result->type_index >= OBJECTS) TVMFFIObjectIncRef(result->p);
  return 0;
}

static void delete_module(void* self, int flags) {
  (void)flags;
  Module* m = self;
  dlclose(m->library);
  free(m);
  standin_destroyed();
}

static int module_load(void* self, const Any* args, int32_t count, Any* result) {
  (void)self;
  if (count_is("ffi.ModuleLoadFromFile", count, 1) || type_is("ffi.ModuleLoadFromFile", args, 0, RAW_STR)) return -1;
  void* library = dlopen(args[0].s, RTLD_LAZY | RTLD_LOCAL);
  if (!library) return fail("RuntimeError", "Failed to load dynamic shared library %s %s", args[0].s, dlerror());
  Module* m = standin_object(sizeof(Module), MODULE, delete_module);
  m->library = library;
  return answer(result, MODULE, m);
}

static int module_function(void* self, const Any* args, int32_t count, Any* result) {
  (void)self;
  const char* name = "ffi.ModuleGetFunction";
  if (count_is(name, count, 3) || type_is(name, args, 0, MODULE) || type_is(name, args, 1, RAW_STR) ||
      type_is(name, args, 2, BOOL)) {
    return -1;
  }
  Module* m = args[0].p;
  SafeCall call;
  if (m->find) {
    call = m->find(m, args[1].s);
  } else {
    char symbol[256];
    snprintf(symbol, sizeof symbol, "__tvm_ffi_%s", args[1].s);
    call = (SafeCall)dlsym(m->library, symbol);
  }
  if (!call) return 0; /* None */
  return answer(result, FUNCTION, function(call, &m->object));
}

EXPORT int TVMFFIFunctionGetGlobal(const Bytes* name, void** out) {
  static const struct {
    const char* name;
    SafeCall call;
  } globals[] = {{"ffi.Array", make_array},
                 {"ffi.ArraySize", array_size},
                 {"ffi.ArrayGetItem", array_get},
                 {"ffi.ModuleLoadFromFile", module_load},
                 {"ffi.ModuleGetFunction", module_function}};
  *out = NULL;
  for (size_t i = 0; i < sizeof globals / sizeof *globals; i++) {
    if (strlen(globals[i].name) == name->size && memcmp(globals[i].name, name->data, name->size) == 0) {
      *out = function(globals[i].call, NULL);
    }
  }
  return 0;
}
