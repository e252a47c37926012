package io.moe4j.backend.cpu.ffi;

import java.lang.foreign.Arena;
import java.lang.foreign.FunctionDescriptor;
import java.lang.foreign.Linker;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.lang.invoke.MethodHandle;
import java.util.BitSet;
import java.util.Optional;

/** The few functions of the C library that the JDK does not offer. Linux, 64 bits. */
final class LibC {
  private static final ValueLayout.OfInt INT = ValueLayout.JAVA_INT;
  private static final ValueLayout.OfLong LONG = ValueLayout.JAVA_LONG;
  private static final int READ_WRITE = 3;
  private static final int PRIVATE_ANONYMOUS = 0x22;
  private static final int MADV_HUGEPAGE = 14;
  private static final int MFD_CLOEXEC = 1;
  private static final int MFD_EXEC = 16;

  private static final MethodHandle MMAP =
      function("mmap", FunctionDescriptor.of(LONG, LONG, LONG, INT, INT, INT, LONG));
  private static final MethodHandle MUNMAP =
      function("munmap", FunctionDescriptor.of(INT, LONG, LONG));
  private static final MethodHandle MADVISE =
      function("madvise", FunctionDescriptor.of(INT, LONG, LONG, INT));
  private static final MethodHandle MEMFD_CREATE =
      function("memfd_create", FunctionDescriptor.of(INT, ValueLayout.ADDRESS, INT));
  private static final MethodHandle WRITE =
      function("write", FunctionDescriptor.of(LONG, INT, ValueLayout.ADDRESS, LONG));
  private static final FunctionDescriptor AFFINITY =
      FunctionDescriptor.of(INT, INT, LONG, ValueLayout.ADDRESS);
  private static final MethodHandle GET_AFFINITY = function("sched_getaffinity", AFFINITY);
  private static final MethodHandle SET_AFFINITY = function("sched_setaffinity", AFFINITY);
  private static final Optional<MethodHandle> CURRENT =
      Linker.nativeLinker()
          .defaultLookup()
          .find("sched_getcpu")
          .map(_ -> function("sched_getcpu", FunctionDescriptor.of(INT)));
  private static final MethodHandle CLOSE = function("close", FunctionDescriptor.of(INT, INT));

  private LibC() {}

  @SuppressWarnings("restricted")
  private static MethodHandle function(String name, FunctionDescriptor type) {
    Linker linker = Linker.nativeLinker();
    return linker.downcallHandle(
        linker
            .defaultLookup()
            .find(name)
            .orElseThrow(() -> new UnsatisfiedLinkError("the C library has no " + name)),
        type);
  }

  /** {@return the address of so many zeroed bytes, -1 if there are none} */
  static long map(long bytes) {
    try {
      return (long) MMAP.invokeExact(0L, bytes, READ_WRITE, PRIVATE_ANONYMOUS, -1, 0L);
    } catch (Throwable t) {
      throw unexpected(t);
    }
  }

  static void unmap(long address, long bytes) {
    try {
      int _ = (int) MUNMAP.invokeExact(address, bytes);
    } catch (Throwable t) {
      throw unexpected(t);
    }
  }

  /** {@return whether the system takes the advice to use huge pages} */
  static boolean adviseHugePages(long address, long bytes) {
    try {
      return (int) MADVISE.invokeExact(address, bytes, MADV_HUGEPAGE) == 0;
    } catch (Throwable t) {
      throw unexpected(t);
    }
  }

  /** {@return a descriptor of memory that holds some bytes and can be executed, -1 if refused} */
  static int memoryFile(String name, byte[] content) {
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment label = arena.allocateFrom(name);
      int fd = (int) MEMFD_CREATE.invokeExact(label, MFD_CLOEXEC | MFD_EXEC);
      if (fd < 0) { // kernels before 6.3 do not know MFD_EXEC
        fd = (int) MEMFD_CREATE.invokeExact(label, MFD_CLOEXEC);
      }
      if (fd < 0) {
        return -1;
      }
      MemorySegment bytes = arena.allocateFrom(ValueLayout.JAVA_BYTE, content);
      for (long at = 0; at < content.length; ) {
        long n = (long) WRITE.invokeExact(fd, bytes.asSlice(at), content.length - at);
        if (n <= 0) {
          close(fd);
          return -1;
        }
        at += n;
      }
      return fd;
    } catch (Throwable t) {
      throw unexpected(t);
    }
  }

  /** {@return the processors that the calling thread may use} */
  static BitSet affinity(int bits) {
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment mask = arena.allocate(bits / 8, 8);
      int n = (int) GET_AFFINITY.invokeExact(0, mask.byteSize(), mask);
      return n < 0 ? new BitSet() : BitSet.valueOf(mask.toArray(LONG));
    } catch (Throwable t) {
      throw unexpected(t);
    }
  }

  /** {@return whether the calling thread is kept on a processor} */
  static boolean pin(int processor, int bits) {
    try (Arena arena = Arena.ofConfined()) {
      MemorySegment mask = arena.allocate(bits / 8, 8);
      mask.setAtIndex(LONG, processor / Long.SIZE, 1L << processor);
      return (int) SET_AFFINITY.invokeExact(0, mask.byteSize(), mask) == 0;
    } catch (Throwable t) {
      throw unexpected(t);
    }
  }

  /** {@return the processor that the calling thread runs on now; -1 if unknown} */
  static int currentProcessor() {
    if (CURRENT.isEmpty()) {
      return -1;
    }
    try {
      return (int) CURRENT.get().invokeExact();
    } catch (Throwable t) {
      throw unexpected(t);
    }
  }

  static void close(int fd) {
    try {
      int _ = (int) CLOSE.invokeExact(fd);
    } catch (Throwable t) {
      throw unexpected(t);
    }
  }

  private static RuntimeException unexpected(Throwable t) {
    if (t instanceof Error e) {
      throw e;
    }
    return t instanceof RuntimeException e ? e : new IllegalStateException(t);
  }
}
