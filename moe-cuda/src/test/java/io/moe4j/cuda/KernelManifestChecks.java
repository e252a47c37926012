package io.moe4j.cuda;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.io.InputStream;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.ArrayList;
import java.util.HexFormat;
import java.util.List;
import java.util.Map;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/**
 * What must hold of every module's kernel manifest; each GPU module's tests call this. Needs no
 * device.
 */
public final class KernelManifestChecks {
  private static final Pattern SIZE = Pattern.compile("\\.[busf](8|16|32|64)\\b");
  private static final Pattern ARRAY = Pattern.compile("\\[(\\d+)]");

  private static final Pattern REGISTER_OPERAND =
      Pattern.compile("wgmma\\.mma_async[^;{]*\\{[^}]*\\}\\s*,\\s*\\{");

  private KernelManifestChecks() {}

  /**
   * Sources unchanged since the PTX was made, PTX undamaged, entries and parameters as listed.
   *
   * @param owner a class of the module
   * @param module its name
   * @param moduleDir where its sources lie
   */
  public static void check(Class<?> owner, String module, Path moduleDir) {
    KernelLibrary library = KernelLibrary.of(owner, module);
    assertThat(library.kernels()).isNotEmpty();
    for (KernelSpec k : library.kernels()) {
      for (Map.Entry<String, String> source : k.sources().entrySet()) {
        assertThat(sha256(read(moduleDir.resolve(source.getKey()))))
            .as(
                "%s was compiled from another %s than this one: run python3 tools/kernels/build.py %s",
                k.id(), source.getKey(), moduleDir.toAbsolutePath().normalize().getFileName())
            .isEqualTo(source.getValue());
      }
      assertThat(sha256(resource(owner, KernelLibrary.ROOT + module + "/" + k.ptx())))
          .as("%s of %s", k.ptx(), k.id())
          .isEqualTo(k.ptxSha256());
      String ptx = new String(library.ptx(k), StandardCharsets.UTF_8);
      assertThat(ptx).contains(".version " + k.ptxIsa());
      assertThat(ptx).contains(".target " + k.arch());
      assertThat(parameterSizes(ptx, k.entry()))
          .as("bytes of the parameters of %s", k.id())
          .isEqualTo(k.params().stream().map(p -> p.type().byteSize()).toList());
    }
  }

  /**
   * No kernel has a {@code wgmma} whose first operand after the accumulators is a list of
   * registers: one that a loop computes may still be read by the last iteration's {@code wgmma}
   * while the next one overwrites it, since Triton leaves them in flight; see gemm.py of
   * backend-triton.
   *
   * @param library of Triton kernels
   * @return kernels that have a {@code wgmma} at all
   */
  public static int checkMatrixOperands(KernelLibrary library) {
    int seen = 0;
    for (KernelSpec k : library.kernels()) {
      String ptx = new String(library.ptx(k), StandardCharsets.US_ASCII);
      assertThat(readsRegisters(ptx)).as(k.id()).isFalse();
      seen += ptx.contains("wgmma.mma_async") ? 1 : 0;
    }
    return seen;
  }

  /**
   * {@return whether a {@code wgmma} reads registers}
   *
   * @param ptx the text
   */
  public static boolean readsRegisters(String ptx) {
    return REGISTER_OPERAND.matcher(ptx).find();
  }

  private static List<Integer> parameterSizes(String ptx, String entry) {
    Matcher m =
        Pattern.compile("\\.entry\\s+" + Pattern.quote(entry) + "\\s*\\(([^)]*)\\)").matcher(ptx);
    assertThat(m.find()).as("entry %s is in the PTX", entry).isTrue();
    List<Integer> sizes = new ArrayList<>();
    for (String p : m.group(1).split(",", -1)) {
      if (p.isBlank()) {
        continue;
      }
      Matcher size = SIZE.matcher(p);
      assertThat(size.find()).as(p).isTrue();
      Matcher array = ARRAY.matcher(p);
      sizes.add(
          Integer.parseInt(size.group(1))
              / Byte.SIZE
              * (array.find() ? Integer.parseInt(array.group(1)) : 1));
    }
    return sizes;
  }

  private static byte[] resource(Class<?> owner, String path) {
    try (InputStream in = owner.getClassLoader().getResourceAsStream(path)) {
      assertThat(in).as(path).isNotNull();
      return in.readAllBytes();
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }

  private static byte[] read(Path file) {
    try {
      return Files.readAllBytes(file);
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }

  private static String sha256(byte[] bytes) {
    try {
      return HexFormat.of().formatHex(MessageDigest.getInstance("SHA-256").digest(bytes));
    } catch (NoSuchAlgorithmException e) {
      throw new AssertionError(e);
    }
  }
}
