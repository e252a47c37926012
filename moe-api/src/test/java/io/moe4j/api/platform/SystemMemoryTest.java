package io.moe4j.api.platform;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** A machine of 256 GiB, 200 of them available, and a process that has 3 GiB. */
class SystemMemoryTest {
  private static final long GIB = 1L << 30;

  @TempDir private Path proc;

  @BeforeEach
  void machine() throws IOException {
    Files.writeString(
        proc.resolve("meminfo"),
        """
        MemTotal:       268435456 kB
        MemFree:         10485760 kB
        MemAvailable:   209715200 kB
        """);
    Files.writeString(
        Files.createDirectory(proc.resolve("self")).resolve("status"),
        """
        Name:	java
        VmRSS:	 6291456 kB
        RssAnon:	 2097152 kB
        RssFile:	 3145728 kB
        RssShmem:	 1048576 kB
        """);
  }

  @Test
  void withoutALimitItIsTheMachines() {
    assertThat(SystemMemory.availableBytes(proc, 256 * GIB)).isEqualTo(200 * GIB);
    assertThat(SystemMemory.availableBytes(proc, 0)).isEqualTo(200 * GIB);
  }

  /** Mapped files do not count: their pages go when memory is asked for. */
  @Test
  void aContainersLimitCountsBesideWhatTheProcessHas() {
    assertThat(SystemMemory.availableBytes(proc, 8 * GIB)).isEqualTo(5 * GIB);
    assertThat(SystemMemory.availableBytes(proc, 2 * GIB)).isZero();
    assertThat(SystemMemory.availableBytes(proc, 250 * GIB)).isEqualTo(200 * GIB);
  }

  @Test
  void whatIsNotSaidIsNotMadeUp() throws IOException {
    Files.delete(proc.resolve("self").resolve("status"));
    assertThat(SystemMemory.availableBytes(proc, 8 * GIB)).isEqualTo(8 * GIB);
    Files.writeString(proc.resolve("meminfo"), "MemAvailable: much kB\n");
    assertThat(SystemMemory.availableBytes(proc, 8 * GIB)).isEqualTo(Long.MAX_VALUE);
    Files.delete(proc.resolve("meminfo"));
    assertThat(SystemMemory.availableBytes(proc, 8 * GIB)).isEqualTo(Long.MAX_VALUE);
  }
}
