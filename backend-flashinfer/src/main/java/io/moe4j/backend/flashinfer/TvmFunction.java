package io.moe4j.backend.flashinfer;

import io.moe4j.api.DeviceException;
import io.moe4j.backend.flashinfer.ffi.TVMFFIAny;
import io.moe4j.backend.flashinfer.ffi.TvmFfi;
import java.lang.foreign.MemorySegment;

/** A function that TVM-FFI knows. Calls run on the calling thread and may come from several. */
final class TvmFunction extends TvmObject {
  private final String name;

  TvmFunction(MemorySegment handle, String name) {
    super(handle);
    this.name = name;
  }

  /**
   * Calls, and drops whatever comes back.
   *
   * @param arguments in the function's order
   * @throws DeviceException with the library's own words, if the function fails
   */
  void call(TvmArguments arguments) {
    MemorySegment result = invoke(arguments);
    if (isObject(result)) {
      release(TVMFFIAny.v_ptr(result));
    }
  }

  /**
   * Calls a function that answers with an integer.
   *
   * @param arguments in the function's order
   * @return the answer
   * @throws DeviceException if the function fails or answers with something else
   */
  long callForLong(TvmArguments arguments) {
    MemorySegment result = invoke(arguments);
    int type = TVMFFIAny.type_index(result);
    if (type != TvmFfi.kTVMFFIInt()) {
      throw wrongAnswer(result, "an integer (type " + TvmFfi.kTVMFFIInt() + ")");
    }
    return TVMFFIAny.v_int64(result);
  }

  /**
   * Calls a function that answers with an object.
   *
   * @param arguments in the function's order
   * @param type TVM-FFI's index of the type that must come
   * @return the object's handle, whose reference is the caller's; of address 0 if none came
   * @throws DeviceException if the function fails or answers with something else
   */
  MemorySegment callForObject(TvmArguments arguments, int type) {
    MemorySegment result = invoke(arguments);
    int answered = TVMFFIAny.type_index(result);
    if (answered == TvmFfi.kTVMFFINone()) {
      return MemorySegment.NULL;
    }
    if (answered != type) {
      throw wrongAnswer(result, "an object of type " + type);
    }
    return TVMFFIAny.v_ptr(result);
  }

  private MemorySegment invoke(TvmArguments arguments) {
    MemorySegment result = arguments.result();
    TvmErrors.check(
        TvmFfi.TVMFFIFunctionCall(handle(), arguments.array(), arguments.count(), result), name);
    return result;
  }

  private DeviceException wrongAnswer(MemorySegment result, String wanted) {
    int type = TVMFFIAny.type_index(result);
    if (isObject(result)) {
      release(TVMFFIAny.v_ptr(result));
    }
    return new DeviceException(
        name + " of FlashInfer answered with a value of type " + type + ", not with " + wanted);
  }

  private static boolean isObject(MemorySegment any) {
    return TVMFFIAny.type_index(any) >= TvmFfi.kTVMFFIStaticObjectBegin();
  }

  @Override
  public String toString() {
    return name;
  }
}
