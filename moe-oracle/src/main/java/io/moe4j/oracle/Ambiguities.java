package io.moe4j.oracle;

import java.util.ArrayList;
import java.util.List;
import java.util.function.BiPredicate;

/**
 * Takes out what could not be told apart: two backends of one name, two device providers of one
 * type in one place. Where one of two is on the class path or module path and the other in a
 * plugins directory, the first stays: a file in a folder does not replace what the application
 * itself brought.
 */
final class Ambiguities {
  private final List<FoundBackend> backends = new ArrayList<>();
  private final List<FoundDeviceProvider> deviceProviders = new ArrayList<>();
  private final List<PluginFailure> failures = new ArrayList<>();

  Ambiguities(Discovery found) {
    List<FoundBackend> all = found.backends;
    for (FoundBackend b : all) {
      List<FoundBackend> rivals = rivals(b, all, (x, y) -> x.name().equals(y.name()));
      if (rivals.isEmpty()) {
        backends.add(b);
        continue;
      }
      boolean own = b.origin().plugin().isEmpty();
      List<FoundBackend> before =
          rivals.stream().filter(r -> r.origin().plugin().isEmpty()).toList();
      if (own && before.isEmpty()) {
        backends.add(b); // only plugins want its name
        continue;
      }
      FoundBackend other = before.isEmpty() ? rivals.getFirst() : before.getFirst();
      failures.add(
          PluginFailure.of(
              b.name(),
              b.origin(),
              ambiguous(
                  "two backends are named \"" + b.name() + "\"",
                  b.backend(),
                  b.origin(),
                  other.backend(),
                  other.origin(),
                  "let name() of one say something else, or remove one of the two jars"),
              null));
    }
    List<FoundDeviceProvider> providers = found.deviceProviders;
    for (FoundDeviceProvider p : providers) {
      // Plugins may each bring a provider for their own backends.
      List<FoundDeviceProvider> rivals =
          rivals(
              p,
              providers,
              (x, y) ->
                  x.type().equals(y.type()) && x.origin().plugin().equals(y.origin().plugin()));
      if (rivals.isEmpty()) {
        deviceProviders.add(p);
      } else {
        FoundDeviceProvider other = rivals.getFirst();
        failures.add(
            PluginFailure.of(
                p.provider().getClass().getName(),
                p.origin(),
                ambiguous(
                    "two device providers open " + p.type() + " devices",
                    p.provider(),
                    p.origin(),
                    other.provider(),
                    other.origin(),
                    "remove one of the two jars"),
                null));
      }
    }
  }

  @SuppressWarnings("ReferenceEquality") // itself is no rival, whatever equals says
  private static <T> List<T> rivals(T of, List<T> all, BiPredicate<T, T> alike) {
    return all.stream().filter(x -> x != of && alike.test(x, of)).toList();
  }

  private static String ambiguous(
      String what, Object a, PluginOrigin aFrom, Object b, PluginOrigin bFrom, String remedy) {
    return "ambiguous: "
        + what
        + ": "
        + a.getClass().getName()
        + " from "
        + aFrom
        + " and "
        + b.getClass().getName()
        + " from "
        + bFrom
        + "; "
        + remedy;
  }

  List<FoundBackend> backends() {
    return backends;
  }

  List<FoundDeviceProvider> deviceProviders() {
    return List.copyOf(deviceProviders);
  }

  List<PluginFailure> failures() {
    return failures;
  }
}
