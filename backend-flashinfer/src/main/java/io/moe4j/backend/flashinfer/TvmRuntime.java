package io.moe4j.backend.flashinfer;

import io.moe4j.api.tensor.Tensor;
import io.moe4j.backend.flashinfer.ffi.TVMFFIByteArray;
import io.moe4j.backend.flashinfer.ffi.TVMFFIVersion;
import io.moe4j.backend.flashinfer.ffi.TvmFfi;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.List;
import org.jspecify.annotations.Nullable;

/**
 * The TVM-FFI library of this process. There is one: it holds the table of types and the global
 * functions of every module, and the bindings are linked to it. Loaded when first asked for, kept
 * until the process ends. Safe for several threads.
 */
final class TvmRuntime {
  /** The file, beside which nothing else of TVM-FFI is needed. */
  static final String FILE = "libtvm_ffi.so";

  /** Before 0.1.6 FlashInfer's modules do not load; a 0.2 may change the calling convention. */
  private static final String ACCEPTED = "0.1.6 to 0.1.x";

  /** What the bindings link, and what FlashInfer's modules need beyond it. */
  private static final List<String> SYMBOLS =
      List.of(
          "TVMFFIGetVersion",
          "TVMFFIObjectIncRef",
          "TVMFFIObjectDecRef",
          "TVMFFIFunctionGetGlobal",
          "TVMFFIFunctionCall",
          "TVMFFIErrorMoveFromRaised",
          "TVMFFIErrorSetRaisedFromCStr",
          "TVMFFITensorFromDLPackVersioned",
          "TVMFFIEnvSetStream",
          "TVMFFIEnvGetStream",
          "TVMFFIEnvTensorAlloc",
          "TVMFFIEnvSetDLPackManagedTensorAllocator");

  private static @Nullable TvmRuntime loaded;

  /** A version of TVM-FFI. */
  record Version(int major, int minor, int patch) {
    boolean accepted() {
      return major == 0 && minor == 1 && patch >= 6;
    }

    @Override
    public String toString() {
      return major + "." + minor + "." + patch;
    }
  }

  private final Path path;
  private final Version version;
  private final TvmFunction array;
  private final TvmFunction arraySize;
  private final TvmFunction arrayGetItem;
  private final TvmFunction moduleLoad;
  private final TvmFunction moduleGetFunction;

  private TvmRuntime(Path path, Version version) throws UnavailableException {
    this.path = path;
    this.version = version;
    this.array = global("ffi.Array");
    this.arraySize = global("ffi.ArraySize");
    this.arrayGetItem = global("ffi.ArrayGetItem");
    this.moduleLoad = global("ffi.ModuleLoadFromFile");
    this.moduleGetFunction = global("ffi.ModuleGetFunction");
  }

  /**
   * Loads the library, once.
   *
   * @param library its file
   * @return the process's runtime
   * @throws UnavailableException if it cannot be loaded, is of another version, lacks a symbol, or
   *     the process has loaded another file before
   */
  static synchronized TvmRuntime load(Path library) throws UnavailableException {
    Path file = library.toAbsolutePath().normalize();
    TvmRuntime known = loaded;
    if (known != null) {
      if (known.path.equals(file)) {
        return known;
      }
      throw new UnavailableException(
          "this process has loaded "
              + known.path
              + " (apache-tvm-ffi "
              + known.version
              + ") already and cannot load "
              + file
              + " beside it");
    }
    Version version = examine(file);
    NativeLibrary.loadForAll(file);
    try {
      // The generated bindings look among the libraries of their class loader.
      System.load(file.toString());
    } catch (UnsatisfiedLinkError e) {
      throw new UnavailableException(
          file + " could not be loaded by this class loader: " + e.getMessage(), e);
    }
    TvmRuntime now = new TvmRuntime(file, version);
    loaded = now;
    return now;
  }

  /** Looks at a library without letting its symbols loose. */
  static Version examine(Path file) throws UnavailableException {
    NativeLibrary library = NativeLibrary.load(file);
    try (Arena arena = Arena.ofConfined()) {
      List<String> missing = SYMBOLS.stream().filter(s -> library.find(s).isEmpty()).toList();
      if (!missing.isEmpty()) {
        throw new UnavailableException(
            file + " lacks " + String.join(", ", missing) + ": not a libtvm_ffi of " + ACCEPTED);
      }
      MemorySegment version = TVMFFIVersion.allocate(arena);
      library.call("TVMFFIGetVersion", version);
      Version v =
          new Version(
              TVMFFIVersion.major(version),
              TVMFFIVersion.minor(version),
              TVMFFIVersion.patch(version));
      if (!v.accepted()) {
        throw new UnavailableException(file + " is apache-tvm-ffi " + v + ", must be " + ACCEPTED);
      }
      return v;
    } finally {
      library.unload();
    }
  }

  Path path() {
    return path;
  }

  Version version() {
    return version;
  }

  private static TvmFunction global(String name) throws UnavailableException {
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment text = TVMFFIByteArray.allocate(arena);
      byte[] bytes = name.getBytes(StandardCharsets.UTF_8);
      TVMFFIByteArray.data(text, arena.allocateFrom(ValueLayout.JAVA_BYTE, bytes));
      TVMFFIByteArray.size(text, bytes.length);
      MemorySegment slot = arena.allocate(ValueLayout.ADDRESS);
      TvmErrors.check(
          TvmFfi.TVMFFIFunctionGetGlobal(text, slot), "TVMFFIFunctionGetGlobal(" + name + ")");
      MemorySegment handle = slot.get(ValueLayout.ADDRESS, 0);
      if (handle.address() == 0) {
        throw new UnavailableException("libtvm_ffi has no global function " + name);
      }
      return new TvmFunction(handle, name);
    }
  }

  /**
   * Loads a module.
   *
   * @param file a shared object that exports {@code __tvm_ffi_} functions
   * @return owned by the caller
   * @throws io.moe4j.api.DeviceException in the loader's words, if it cannot be loaded
   */
  TvmModule module(Path file) {
    try (TvmArguments arguments = new TvmArguments(1)) {
      MemorySegment handle =
          moduleLoad.callForObject(arguments.text(file.toString()), TvmFfi.kTVMFFIModule());
      return new TvmModule(this, handle, String.valueOf(file.getFileName()));
    }
  }

  /**
   * Calls a function that makes a module.
   *
   * @param maker the function
   * @param arguments its arguments
   * @param name of the module, for messages
   * @return owned by the caller
   */
  TvmModule make(TvmFunction maker, TvmArguments arguments, String name) {
    return new TvmModule(this, maker.callForObject(arguments, TvmFfi.kTVMFFIModule()), name);
  }

  TvmFunction functionOf(TvmModule module, String moduleName, String name)
      throws UnavailableException {
    try (TvmArguments arguments = new TvmArguments(3)) {
      MemorySegment handle =
          moduleGetFunction.callForObject(
              arguments.object(module).text(name).bool(false), TvmFfi.kTVMFFIFunction());
      if (handle.address() == 0) {
        throw new UnavailableException(moduleName + " has no function " + name);
      }
      return new TvmFunction(handle, name);
    }
  }

  /**
   * A tensor object, for arguments that are arrays of tensors.
   *
   * @param tensor in device memory that stays as long as the object does
   * @return owned by the caller
   */
  TvmObject tensor(Tensor tensor) {
    MemorySegment managed = ManagedTensors.describe(tensor);
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment slot = arena.allocate(ValueLayout.ADDRESS);
      TvmErrors.check(
          TvmFfi.TVMFFITensorFromDLPackVersioned(managed, 0, 0, slot),
          "TVMFFITensorFromDLPackVersioned");
      return new TvmObject(slot.get(ValueLayout.ADDRESS, 0));
    } catch (RuntimeException | Error e) {
      ManagedTensors.drop(managed);
      throw e;
    }
  }

  /**
   * An array of objects, which keeps them alive.
   *
   * @param elements in order; stay the caller's to close
   * @return owned by the caller
   */
  TvmObject array(List<? extends TvmObject> elements) {
    try (TvmArguments arguments = new TvmArguments(elements.size())) {
      elements.forEach(arguments::object);
      return arrayOf(arguments);
    }
  }

  /** An array of tensors: the objects are made and given to it. */
  TvmObject tensors(List<Tensor> tensors) {
    TvmObject[] made = new TvmObject[tensors.size()];
    int count = 0;
    try {
      for (Tensor tensor : tensors) {
        made[count++] = tensor(tensor);
      }
      return array(List.of(made));
    } finally {
      for (TvmObject t : made) {
        if (t != null) {
          t.close();
        }
      }
    }
  }

  /** An array of integers, owned by the caller. */
  TvmObject integers(long... values) {
    try (TvmArguments arguments = new TvmArguments(values.length)) {
      for (long v : values) {
        arguments.integer(v);
      }
      return arrayOf(arguments);
    }
  }

  /** An array of strings, owned by the caller. */
  TvmObject strings(List<String> values) {
    try (TvmArguments arguments = new TvmArguments(values.size())) {
      values.forEach(arguments::text);
      return arrayOf(arguments);
    }
  }

  private TvmObject arrayOf(TvmArguments elements) {
    return new TvmObject(array.callForObject(elements, TvmFfi.kTVMFFIArray()));
  }

  /**
   * Calls a function that answers with an array of integers.
   *
   * @param function the function
   * @param arguments its arguments
   * @return the integers
   */
  long[] integers(TvmFunction function, TvmArguments arguments) {
    try (TvmObject answer =
        new TvmObject(function.callForObject(arguments, TvmFfi.kTVMFFIArray()))) {
      long[] values = new long[Math.toIntExact(sizeOf(answer))];
      for (int i = 0; i < values.length; i++) {
        try (TvmArguments at = new TvmArguments(2)) {
          values[i] = arrayGetItem.callForLong(at.object(answer).integer(i));
        }
      }
      return values;
    }
  }

  private long sizeOf(TvmObject array) {
    try (TvmArguments arguments = new TvmArguments(1)) {
      return arraySize.callForLong(arguments.object(array));
    }
  }

  /** An array that a function answered with, owned by the caller. */
  TvmObject array(TvmFunction function, TvmArguments arguments) {
    return new TvmObject(function.callForObject(arguments, TvmFfi.kTVMFFIArray()));
  }

  /**
   * A tensor of an array, owned by the caller.
   *
   * @throws io.moe4j.api.DeviceException if there is none at that place
   */
  TvmObject tensorOf(TvmObject array, int index) {
    long size = sizeOf(array);
    if (index >= size) {
      throw new io.moe4j.api.DeviceException(
          "FlashInfer answered with " + size + " tensors, needed number " + index);
    }
    try (TvmArguments at = new TvmArguments(2)) {
      MemorySegment handle =
          arrayGetItem.callForObject(at.object(array).integer(index), TvmFfi.kTVMFFITensor());
      if (handle.address() == 0) {
        throw new io.moe4j.api.DeviceException(
            "FlashInfer answered with nothing for tensor " + index);
      }
      return new TvmObject(handle);
    }
  }
}
