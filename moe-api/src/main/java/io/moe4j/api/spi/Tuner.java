package io.moe4j.api.spi;

import io.moe4j.api.lora.MoeLoraContext;
import java.util.List;
import java.util.Objects;
import java.util.Optional;
import java.util.function.BooleanSupplier;
import java.util.function.Consumer;
import org.jspecify.annotations.Nullable;

/**
 * Finds the fastest kernel variants for one layer on one device, see {@link TunableBackend}. Not
 * thread-safe; the device should have nothing else to do.
 *
 * @since 0.1.0
 */
public interface Tuner extends AutoCloseable {
  /**
   * One forward.
   *
   * @param inputs on the device
   * @param lora adapters, or null for the base model
   */
  record Call(ExpertsInputs inputs, @Nullable MoeLoraContext lora) {
    /**
     * Checks the components.
     *
     * @param inputs on the device
     * @param lora adapters, or null for the base model
     */
    public Call {
      Objects.requireNonNull(inputs, "inputs");
    }
  }

  /**
   * What was found.
   *
   * @param chosen the choice, as the backend writes it
   * @param micros time of a forward with it, microseconds
   * @param builtIn what the built-in table would take; equal to {@code chosen} where nothing was
   *     found to be faster
   * @param builtInMicros time of a forward with that, microseconds, measured beside the other
   * @param measured how many variants were measured
   * @param dropped variants that did not work or gave another result, each with the reason
   */
  record Outcome(
      String chosen,
      double micros,
      String builtIn,
      double builtInMicros,
      int measured,
      List<String> dropped) {
    /**
     * Copies the components.
     *
     * @param dropped copied
     */
    public Outcome {
      dropped = List.copyOf(dropped);
    }
  }

  /**
   * Measures every variant that fits forwards of one size, compares each one's output with that of
   * the built-in choice, and writes the fastest to the file at once, atomically: a reader sees the
   * file before or after.
   *
   * @param pass forwards of one number of tokens, with other tokens and routings each, and outputs
   *     of their own, which are overwritten; they are run in turn so that none finds its experts in
   *     a cache. With LoRA all slots hold adapters, of the config's {@code maxRank}
   * @param goOn asked between measurements; false ends the search
   * @param listener told what is measured now
   * @return what was found and written; empty if {@code goOn} ended it before
   * @throws java.io.UncheckedIOException if the file cannot be written
   * @throws io.moe4j.api.DeviceException if the device fails
   */
  Optional<Outcome> tune(List<Call> pass, BooleanSupplier goOn, Consumer<String> listener);

  @Override
  void close();
}
