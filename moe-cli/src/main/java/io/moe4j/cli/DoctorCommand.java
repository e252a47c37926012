package io.moe4j.cli;

import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import io.moe4j.api.MoeException;
import io.moe4j.api.SettingException;
import io.moe4j.api.comm.CommProvider;
import io.moe4j.api.config.SystemSettings;
import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.api.platform.Platform;
import io.moe4j.api.spi.ExternalBackend;
import io.moe4j.api.spi.ExternalStatus;
import io.moe4j.api.spi.Support;
import io.moe4j.api.spi.TunableBackend;
import io.moe4j.api.spi.TuningStatus;
import io.moe4j.cli.json.Json;
import io.moe4j.oracle.BackendCatalog;
import io.moe4j.oracle.Candidate;
import io.moe4j.oracle.FoundBackend;
import io.moe4j.oracle.MoeOracle;
import io.moe4j.oracle.PluginFailure;
import java.io.PrintWriter;
import java.lang.management.ManagementFactory;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.concurrent.Callable;
import java.util.stream.Collectors;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;
import picocli.CommandLine.ParentCommand;

/** {@code moe doctor}. */
@Command(
    name = "doctor",
    description =
        "Look at the JDK, its flags, the processor, memory, devices, backends and plugins, and say"
            + " what to change. Ends with exit code 1 if something does not work.")
final class DoctorCommand implements Callable<Integer> {
  private static final int NEEDED_JAVA = 25;

  /** Turns the CPU backend's fast kernels off. */
  private static final String CPU_SCALAR = "moe4j.cpu.scalar";

  /** What a device of the host says of its kernels, and what it says where the fast ones lack. */
  private static final String KERNELS = "kernels";

  private static final String NO_KERNELS = "no kernels in C";

  private static final long SMALL_MEMORY = 4L << 30;

  @ParentCommand private Moe moe;

  @Mixin private OracleOptions oracleOptions = new OracleOptions();

  @Option(names = "--json", description = "Print JSON.")
  private boolean json;

  private final List<Finding> findings = new ArrayList<>();

  @SuppressWarnings("NullAway.Init") // picocli sets moe
  DoctorCommand() {}

  private enum Verdict {
    OK,
    NOTE,
    SLOW,
    FAULT
  }

  /**
   * One thing that was looked at.
   *
   * @param what the thing
   * @param verdict how it is
   * @param found what was found
   * @param remedy what to do, empty where nothing is to be done
   */
  private record Finding(String what, Verdict verdict, String found, String remedy) {}

  @Override
  public Integer call() {
    java();
    machine();
    oracle();
    boolean fault = findings.stream().anyMatch(f -> f.verdict() == Verdict.FAULT);
    if (json) {
      moe.terminal().json(json(fault));
    } else {
      print(fault);
    }
    return fault ? ExitCode.CHECK_FAILED : ExitCode.OK;
  }

  private void add(Verdict verdict, String what, String found, String remedy) {
    findings.add(new Finding(what, verdict, found, remedy));
  }

  /** A value that is not accepted turns nothing off: it is an error of the backend's own row. */
  private static boolean isScalar() {
    try {
      return SystemSettings.isTrue(CPU_SCALAR, false);
    } catch (SettingException e) {
      return false;
    }
  }

  private void java() {
    add(
        Runtime.version().feature() >= NEEDED_JAVA ? Verdict.OK : Verdict.FAULT,
        "Java",
        Machine.java() + ", " + System.getProperty("java.home"),
        Runtime.version().feature() >= NEEDED_JAVA ? "" : "install a JDK " + NEEDED_JAVA);
    boolean vectors = Machine.hasVectorModule();
    boolean turnedOff = isScalar();
    add(
        vectors && !turnedOff ? Verdict.OK : Verdict.SLOW,
        "Vector API",
        Machine.vectors() + (turnedOff ? ", turned off by -D" + CPU_SCALAR : ""),
        !vectors
            ? "start Java with --add-modules=jdk.incubator.vector"
            : turnedOff ? "leave out -D" + CPU_SCALAR : "");
    boolean access = DoctorCommand.class.getModule().isNativeAccessEnabled();
    add(
        access ? Verdict.OK : Verdict.NOTE,
        "native access",
        access ? "enabled" : "not enabled: GPU backends will warn, later JDKs will refuse",
        access ? "" : "start Java with --enable-native-access=ALL-UNNAMED");
    add(
        Verdict.OK,
        "JVM flags",
        String.join(" ", ManagementFactory.getRuntimeMXBean().getInputArguments()),
        "");
    add(Verdict.OK, "Java heap", "up to " + Text.bytes(Runtime.getRuntime().maxMemory()), "");
  }

  private void machine() {
    add(Verdict.OK, "system", Machine.system(), "");
    add(
        Verdict.OK,
        "processor",
        Machine.processor() + ", " + Machine.processors() + " processors for this JVM",
        "");
    long memory = Machine.memoryBytes();
    if (memory > 0) {
      add(
          memory < SMALL_MEMORY ? Verdict.NOTE : Verdict.OK,
          "memory",
          Text.bytes(memory) + ", " + Text.bytes(Machine.availableMemoryBytes()) + " available",
          memory < SMALL_MEMORY
              ? "checkpoints are mapped and may be larger, but will be slow"
              : "");
    }
    String huge = Machine.hugePages();
    if (!huge.isEmpty()) {
      add(Verdict.OK, "huge pages", "transparent huge pages are set to " + huge, "");
    }
  }

  private void oracle() {
    try (MoeOracle oracle = oracleOptions.discover()) {
      BackendCatalog catalog = oracle.catalog();
      Platform platform = catalog.detectPlatform();
      for (DeviceInfo d : platform.devices()) {
        String properties =
            d.properties().entrySet().stream()
                .map(e -> e.getKey() + " " + e.getValue())
                .collect(Collectors.joining(", "));
        String kernels = d.properties().getOrDefault(KERNELS, "");
        boolean wrong = kernels.startsWith("-D");
        add(
            wrong ? Verdict.FAULT : kernels.contains(NO_KERNELS) ? Verdict.SLOW : Verdict.OK,
            "device " + d.id(),
            d.name()
                + d.capability().map(c -> ", capability " + c).orElse("")
                + (d.memoryBytes() > 0 ? ", " + Text.bytes(d.memoryBytes()) : "")
                + (properties.isEmpty() ? "" : ", " + properties),
            wrong ? "leave the property out, or give it a value that is accepted" : "");
      }
      platform
          .absent()
          .forEach((type, why) -> add(Verdict.NOTE, "device " + type, "none: " + why, ""));
      for (Candidate c : oracle.evaluate(BackendsCommand.defaultConfig(), platform).candidates()) {
        FoundBackend b = c.backend();
        String broken =
            c.support().reasons().stream()
                .filter(r -> r.code() == Support.Code.LOAD_FAILURE)
                .map(Support.Reason::message)
                .collect(Collectors.joining("; "));
        add(
            broken.isEmpty() ? Verdict.OK : Verdict.FAULT,
            "backend " + b.name(),
            (broken.isEmpty() ? b.description() : broken) + ", from " + b.origin(),
            broken.isEmpty() ? "" : "remove or update the jar");
      }
      for (FoundBackend b : catalog.backends()) {
        if (b.backend() instanceof TunableBackend t) {
          TuningStatus s = t.tuningStatus(platform.device(b.deviceType()).orElse(null));
          add(
              s.usable() ? Verdict.OK : Verdict.NOTE,
              "tuning of " + b.name(),
              s.file().map(f -> f + ": ").orElse("") + s.explanation(),
              s.usable() ? "" : "the built-in table serves; moe tune writes the file anew");
        }
      }
      for (FoundBackend b : catalog.backends()) {
        if (b.backend() instanceof ExternalBackend external) {
          for (ExternalStatus s : external.externalStatus(platform)) {
            add(
                s.usable() ? Verdict.OK : Verdict.NOTE,
                s.what() + " for " + b.name(),
                s.found(),
                s.remedy());
          }
        }
      }
      for (CommProvider p : catalog.commProviders()) {
        String why = p.whyUnsupported(platform).orElse("");
        add(
            why.isEmpty() ? Verdict.OK : Verdict.NOTE,
            "ranks over " + p.name(),
            why.isEmpty()
                ? (p.version() + " for memory of " + p.deviceType()).strip()
                : "none: " + why,
            "");
      }
      if (catalog.backends().isEmpty()) {
        add(Verdict.FAULT, "backends", "none found", "put backend-cpu on the class path");
      }
      for (PluginFailure f : catalog.failures()) {
        add(
            Verdict.FAULT,
            "plugin " + f.name(),
            "from " + f.origin() + ": " + f.reason().message(),
            "remove or update the jar");
      }
      add(
          Verdict.OK,
          "plugins",
          oracleOptions.plugins() == null
              ? "no directory given (--plugins DIR or MOE_PLUGINS)"
              : "looked into " + oracleOptions.plugins(),
          "");
    } catch (MoeException e) {
      add(Verdict.FAULT, "backends", String.valueOf(e.getMessage()), "");
    }
  }

  private void print(boolean fault) {
    PrintWriter out = moe.terminal().out();
    TextTable table = new TextTable("", "what", "found");
    for (Finding f : findings) {
      String mark = f.verdict().name().toLowerCase(Locale.ROOT);
      table.row(mark, f.what(), f.found());
      if (!f.remedy().isEmpty()) {
        table.row("", "", "-> " + f.remedy());
      }
    }
    out.print(table.render(""));
    boolean slow = findings.stream().anyMatch(f -> f.verdict() == Verdict.SLOW);
    out.println();
    out.println(
        fault
            ? "Something does not work, see \"fault\" above."
            : slow ? "It works, and could be faster, see \"slow\" above." : "Everything works.");
  }

  private ObjectNode json(boolean fault) {
    ObjectNode root = Json.document("doctor");
    root.put("version", Version.current());
    root.put("works", !fault);
    ArrayNode all = root.putArray("findings");
    for (Finding f : findings) {
      ObjectNode n = all.addObject();
      n.put("what", f.what());
      n.put("verdict", f.verdict().name().toLowerCase(Locale.ROOT));
      n.put("found", f.found());
      if (!f.remedy().isEmpty()) {
        n.put("remedy", f.remedy());
      }
    }
    return root;
  }
}
