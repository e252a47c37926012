package io.moe4j.backend.flashinfer;

import java.lang.foreign.MemorySegment;

/** A module of functions: a loaded library, or an object that a library made. */
final class TvmModule extends TvmObject {
  private final TvmRuntime runtime;
  private final String name;

  TvmModule(TvmRuntime runtime, MemorySegment handle, String name) {
    super(handle);
    this.runtime = runtime;
    this.name = name;
  }

  /**
   * A function of the module.
   *
   * @param function its name
   * @return owned by the caller
   * @throws UnavailableException if the module has none of that name
   */
  TvmFunction function(String function) throws UnavailableException {
    return runtime.functionOf(this, name, function);
  }

  @Override
  public String toString() {
    return name;
  }
}
