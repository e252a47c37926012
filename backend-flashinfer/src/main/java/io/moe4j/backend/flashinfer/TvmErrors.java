package io.moe4j.backend.flashinfer;

import io.moe4j.api.DeviceException;
import io.moe4j.backend.flashinfer.ffi.TVMFFIByteArray;
import io.moe4j.backend.flashinfer.ffi.TVMFFIErrorCell;
import io.moe4j.backend.flashinfer.ffi.TVMFFIObject;
import io.moe4j.backend.flashinfer.ffi.TvmFfi;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.charset.StandardCharsets;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/** Errors that a call through TVM-FFI left behind, as exceptions in the library's own words. */
final class TvmErrors {
  private static final Logger LOG = LoggerFactory.getLogger(TvmErrors.class);

  private TvmErrors() {}

  /**
   * Throws what a call raised.
   *
   * @param result what the C function returned: 0 = it worked
   * @param what which function, for the message
   * @throws DeviceException if it did not work
   */
  static void check(int result, String what) {
    if (result != 0) {
      throw raised(result, what);
    }
  }

  private static DeviceException raised(int result, String what) {
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment slot = arena.allocate(ValueLayout.ADDRESS);
      TvmFfi.TVMFFIErrorMoveFromRaised(slot);
      MemorySegment error = slot.get(ValueLayout.ADDRESS, 0);
      if (error.address() == 0) {
        return new DeviceException(
            what + " of FlashInfer failed with code " + result + " and left no message");
      }
      try {
        MemorySegment cell =
            error
                .reinterpret(TVMFFIObject.sizeof() + TVMFFIErrorCell.sizeof())
                .asSlice(TVMFFIObject.sizeof());
        String kind = text(TVMFFIErrorCell.kind(cell));
        String message = text(TVMFFIErrorCell.message(cell)).strip();
        LOG.debug("{} failed: {}", what, text(TVMFFIErrorCell.backtrace(cell)));
        return new DeviceException(what + " of FlashInfer failed: " + kind + ": " + message);
      } finally {
        // Its own failure would hide the one that is being told.
        int _ = TvmFfi.TVMFFIObjectDecRef(error);
      }
    }
  }

  private static String text(MemorySegment bytes) {
    MemorySegment data = TVMFFIByteArray.data(bytes);
    long size = TVMFFIByteArray.size(bytes);
    return data.address() == 0 || size == 0
        ? ""
        : new String(data.reinterpret(size).toArray(ValueLayout.JAVA_BYTE), StandardCharsets.UTF_8);
  }
}
