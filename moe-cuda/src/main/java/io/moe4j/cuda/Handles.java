package io.moe4j.cuda;

import java.lang.foreign.MemorySegment;
import java.lang.invoke.MethodHandles;
import java.lang.invoke.VarHandle;
import jcuda.NativePointerObject;

/**
 * The bridge between the two layers: JCuda keeps a native handle in a private field, the generated
 * bindings take it as an address.
 */
final class Handles {
  private static final VarHandle NATIVE_POINTER = find();

  private Handles() {}

  private static VarHandle find() {
    try {
      return MethodHandles.privateLookupIn(NativePointerObject.class, MethodHandles.lookup())
          .findVarHandle(NativePointerObject.class, "nativePointer", long.class);
    } catch (ReflectiveOperationException e) {
      throw new LinkageError(
          "jcuda.NativePointerObject has no field nativePointer: moe-cuda needs JCuda 12.6", e);
    }
  }

  /** {@return the handle that JCuda hides} */
  static long raw(NativePointerObject object) {
    return (long) NATIVE_POINTER.get(object);
  }

  /** Gives a JCuda object somebody else's handle. */
  static <T extends NativePointerObject> T wrap(T object, long handle) {
    NATIVE_POINTER.set(object, handle);
    return object;
  }

  /** {@return the handle as the generated bindings take it} */
  static MemorySegment segment(NativePointerObject object) {
    return MemorySegment.ofAddress(raw(object));
  }
}
