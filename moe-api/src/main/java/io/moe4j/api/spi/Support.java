package io.moe4j.api.spi;

import java.util.ArrayList;
import java.util.List;
import java.util.Objects;
import java.util.function.Supplier;
import java.util.stream.Collectors;

/**
 * A backend's answer to "could you run this here?": yes, or no with every reason, not just the
 * first.
 *
 * @since 0.1.0
 */
public sealed interface Support {

  /** It could. */
  record Yes() implements Support {}

  /**
   * It could not.
   *
   * @param reasons all of them, at least one
   */
  record No(List<Reason> reasons) implements Support {
    /**
     * Copies the components.
     *
     * @param reasons copied, not empty
     */
    public No {
      reasons = List.copyOf(reasons);
      if (reasons.isEmpty()) {
        throw new IllegalArgumentException("a refusal needs at least one reason");
      }
    }

    @Override
    public String toString() {
      return reasons.stream().map(Reason::message).collect(Collectors.joining("; "));
    }
  }

  /**
   * One reason.
   *
   * @param code what kind, stable, for programs
   * @param message a readable clause with the offending value and the accepted ones: "compute
   *     capability 7.5 is below 8.0"
   */
  record Reason(Code code, String message) {
    /**
     * Checks the components.
     *
     * @param code what kind
     * @param message not blank
     * @throws IllegalArgumentException if the message is blank
     */
    public Reason {
      Objects.requireNonNull(code, "code");
      Objects.requireNonNull(message, "message");
      if (message.isBlank()) {
        throw new IllegalArgumentException(
            "message of reason "
                + code
                + " is blank, must say what was given and what is accepted");
      }
    }
  }

  /** Kinds of reasons. */
  enum Code {
    /** No such device here. */
    DEVICE,
    /** A device is there, but too small or too old. */
    CAPABILITY,
    /** The driver or a native library is missing or too old. */
    DRIVER,
    /** Dtype of weights or hidden states. */
    DTYPE,
    /** Quantisation scheme. */
    QUANTIZATION,
    /** Activation function or its parameters. */
    ACTIVATION,
    /** Routing method (monolithic backends). */
    ROUTING,
    /** STANDARD or BATCHED. */
    ACTIVATION_FORMAT,
    /** Tensor, expert or data parallelism. */
    PARALLEL,
    /** Hidden, intermediate, expert or token counts. */
    SIZE,
    /** Biases of the experts. */
    BIAS,
    /** Router weight on input. */
    ROUTER_WEIGHT_ON_INPUT,
    /** Expert map. */
    EXPERT_MAP,
    /** Bit-exact independence of the batch. */
    BATCH_INVARIANCE,
    /** LoRA, or its rank or slot count. */
    LORA,
    /** The plugin could not be loaded or broke its contract. */
    LOAD_FAILURE,
    /** Anything else. */
    OTHER
  }

  /** {@return the positive answer} */
  static Support yes() {
    return new Yes();
  }

  /**
   * A refusal with one reason.
   *
   * @param code what kind
   * @param message with the offending value and the accepted ones
   * @return the refusal
   */
  static Support no(Code code, String message) {
    return new No(List.of(new Reason(code, message)));
  }

  /** {@return whether it could} */
  default boolean isSupported() {
    return this instanceof Yes;
  }

  /** {@return all reasons, empty for yes} */
  default List<Reason> reasons() {
    return this instanceof No no ? no.reasons() : List.of();
  }

  /** {@return a collector of reasons} */
  static Checks checks() {
    return new Checks();
  }

  /** Collects every reason why not. Not thread-safe. */
  final class Checks {
    private final List<Reason> reasons = new ArrayList<>();

    private Checks() {}

    /**
     * Notes a reason if something does not hold.
     *
     * @param holds the requirement
     * @param code kind of reason if it does not hold
     * @param message evaluated only then
     * @return this
     */
    public Checks require(boolean holds, Code code, Supplier<String> message) {
      if (!holds) {
        reasons.add(new Reason(code, message.get()));
      }
      return this;
    }

    /** {@return yes if every requirement held, else all reasons} */
    public Support result() {
      return reasons.isEmpty() ? yes() : new No(reasons);
    }
  }
}
