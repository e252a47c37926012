package io.moe4j.cuda;

import java.util.Locale;

/** Types of kernel parameters, with the names the manifest uses in lower case. */
public enum ParamType {
  /** A device address. */
  POINTER(8, 8),
  /**
   * A device address that is always 0 (scratch that a compiler declares and the kernel ignores).
   */
  NULL(8, 8),
  /** 8 bits, also a boolean. */
  I8(1, 1),
  /** 16 bits, signed or not. */
  I16(2, 2),
  /** 32 bits, signed or not. */
  I32(4, 4),
  /** 64 bits, signed or not. */
  I64(8, 8),
  /** binary32. */
  F32(4, 4),
  /** binary64. */
  F64(8, 8),
  /** A {@code CUtensorMap} by value. */
  TENSOR_MAP(128, 64);

  private final int byteSize;
  private final int alignment;

  ParamType(int byteSize, int alignment) {
    this.byteSize = byteSize;
    this.alignment = alignment;
  }

  /** {@return bytes in the parameter block} */
  public int byteSize() {
    return byteSize;
  }

  /** {@return alignment in the parameter block} */
  public int alignment() {
    return alignment;
  }

  /** {@return the manifest's name} */
  public String manifestName() {
    return name().toLowerCase(Locale.ROOT);
  }

  /**
   * {@return the type of that name}
   *
   * @param name a manifest's name
   */
  static ParamType ofManifest(String name) {
    for (ParamType t : values()) {
      if (t.manifestName().equals(name)) {
        return t;
      }
    }
    throw new IllegalArgumentException("unknown parameter type \"" + name + "\"");
  }
}
