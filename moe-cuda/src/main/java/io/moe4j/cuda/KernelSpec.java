package io.moe4j.cuda;

import java.util.List;
import java.util.Map;
import java.util.TreeMap;

/**
 * One compiled kernel as its manifest describes it: pure data, nothing loaded.
 *
 * @param name what callers ask for, like {@code gemm}; several variants and architectures share it
 * @param constants what this variant was compiled with, by name: tile sizes, dtypes, switches
 * @param arch the target of the PTX
 * @param ptxIsa the PTX version the driver must understand
 * @param sources source files, relative to the module's root, with the sha256 of their bytes; the
 *     first is the one that holds the kernel
 * @param compiler name and version
 * @param options what the compiler was told
 * @param ptx where the PTX lies, relative to the manifest; {@code .gz} means gzip
 * @param ptxSha256 sha256 of the file at {@code ptx}, as it lies there
 * @param entry the function's name in the PTX
 * @param params in order, trailing scratch pointers included
 * @param sharedBytes dynamic shared memory of a launch; what a caller gives may replace it
 * @param threads threads a block
 * @param cluster blocks a cluster along x, 1 for none
 * @param pdl whether the kernel waits for its predecessor itself, so that it may be launched with
 *     programmatic stream serialization
 */
public record KernelSpec(
    String name,
    Map<String, String> constants,
    KernelArch arch,
    PtxVersion ptxIsa,
    Map<String, String> sources,
    String compiler,
    String options,
    String ptx,
    String ptxSha256,
    String entry,
    List<Param> params,
    int sharedBytes,
    int threads,
    int cluster,
    boolean pdl) {

  /**
   * A parameter.
   *
   * @param name the source's name for it
   * @param type what it takes
   */
  public record Param(String name, ParamType type) {}

  /** Copies the collections; see the record. */
  public KernelSpec {
    constants = java.util.Collections.unmodifiableMap(new TreeMap<>(constants));
    sources = java.util.Collections.unmodifiableMap(new java.util.LinkedHashMap<>(sources));
    params = List.copyOf(params);
    if (threads < 1 || threads > 1024 || cluster < 1 || cluster > 16 || sharedBytes < 0) {
      throw new IllegalArgumentException(
          name
              + ": threads "
              + threads
              + ", cluster "
              + cluster
              + " or sharedBytes "
              + sharedBytes
              + " is out of range (1..1024, 1..16, 0..)");
    }
  }

  /**
   * {@return a constant}
   *
   * @param key its name
   * @throws IllegalArgumentException if this kernel has none of that name
   */
  public String constant(String key) {
    String value = constants.get(key);
    if (value == null) {
      throw new IllegalArgumentException(
          "kernel " + id() + " has no constant " + key + ", only " + constants.keySet());
    }
    return value;
  }

  /**
   * {@return a constant that is a number}
   *
   * @param key its name
   */
  public int intConstant(String key) {
    return Integer.parseInt(constant(key));
  }

  /** {@return name, constants and target in one word, for messages} */
  public String id() {
    return name + (constants.isEmpty() ? "" : constants.toString()) + "@" + arch;
  }
}
