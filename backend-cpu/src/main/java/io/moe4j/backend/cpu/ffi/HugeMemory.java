package io.moe4j.backend.cpu.ffi;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;

/** Anonymous memory, on huge pages where the system has them. */
public final class HugeMemory {
  private static final long HUGE_PAGE = 2L << 20;

  private HugeMemory() {}

  /** {@return whether it can be asked for here, which says nothing of how much there is} */
  public static boolean isAvailable() {
    return Linux.THERE;
  }

  /** Whether the system has what {@link LibC} calls; it is asked once. */
  private static final class Linux {
    static final boolean THERE = NativeLibrary.target().startsWith("linux-") && isLinked();

    private static boolean isLinked() {
      try {
        long page = LibC.map(HUGE_PAGE);
        if (page == -1) {
          return false;
        }
        LibC.unmap(page, HUGE_PAGE);
        return true;
      } catch (LinkageError | IllegalCallerException e) {
        return false; // native access is denied, or the C library lacks a function
      }
    }
  }

  /**
   * Zeroed memory that begins at a huge page. Pages are taken when they are first written.
   *
   * @param bytes how much
   * @param arena whose end gives the memory back
   * @return exactly so much
   * @throws OutOfMemoryError if the system has none
   */
  @SuppressWarnings("restricted")
  public static MemorySegment allocate(long bytes, Arena arena) {
    long size = Math.addExact(Math.max(1, bytes), 2 * HUGE_PAGE - 1) & -HUGE_PAGE;
    long base = LibC.map(size);
    if (base == -1) {
      throw new OutOfMemoryError("the system has no " + bytes + " bytes");
    }
    MemorySegment all =
        MemorySegment.ofAddress(base).reinterpret(size, arena, s -> LibC.unmap(s.address(), size));
    long skip = -base & (HUGE_PAGE - 1);
    LibC.adviseHugePages(base + skip, (size - skip) & -HUGE_PAGE);
    return all.asSlice(skip, bytes);
  }

  /**
   * Lets one arena end with another.
   *
   * @param arena whose end ends it
   * @param own shared
   */
  @SuppressWarnings("restricted")
  public static void closeWith(Arena arena, Arena own) {
    var _ = MemorySegment.ofAddress(1).reinterpret(1, arena, _ -> own.close());
  }
}
