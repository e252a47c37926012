package io.moe4j.tck;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.config.RoutingConfig;
import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.platform.Platform;
import io.moe4j.api.spi.Support;
import java.util.ArrayList;
import java.util.EnumSet;
import java.util.List;
import java.util.Locale;
import java.util.regex.Pattern;
import java.util.stream.Stream;

/** Whether a refusal says what is wrong. */
final class Refusals {
  /** The value, and what about it. */
  private static final int FEWEST_WORDS = 4;

  private static final List<String> TYPES =
      Stream.of(DeviceType.CPU, DeviceType.CUDA, DeviceType.ROCM, DeviceType.XPU, DeviceType.TPU)
          .map(DeviceType::name)
          .toList();
  private static final Pattern WORD = Pattern.compile("[\\p{L}\\p{N}_.:]+");

  private Refusals() {}

  /** Fails unless every reason {@linkplain #isReadable is readable}. */
  static void requireReadable(MoeConfig config, Platform platform, Support support) {
    for (Support.Reason reason : support.reasons()) {
      if (!isReadable(config, platform, reason)) {
        throw unreadable(config, reason);
      }
    }
  }

  /**
   * Whether a reason says what was given: a value of what its code is about, as a word of its own,
   * and something besides. A sentence without one ("bad argument", "error 2") helps nobody, and
   * neither does a value of something else.
   */
  static boolean isReadable(MoeConfig config, Platform platform, Support.Reason reason) {
    if (reason.code() == null || reason.message() == null) {
      return false;
    }
    String text = reason.message().toLowerCase(Locale.ROOT);
    if (words(text) < FEWEST_WORDS) {
      return false;
    }
    return switch (reason.code()) {
      case DEVICE, CAPABILITY -> namesDevice(text, platform);
      // Versions, files and tools that a config knows nothing of.
      case DRIVER, LOAD_FAILURE -> words(text) >= 5 || namesDevice(text, platform);
      case OTHER ->
          namesDevice(text, platform)
              || EnumSet.allOf(Support.Code.class).stream().anyMatch(c -> names(c, text, config));
      default -> names(reason.code(), text, config);
    };
  }

  /** Whether a text names what a config says of a code's subject. */
  private static boolean names(Support.Code code, String text, MoeConfig c) {
    return switch (code) {
      case DTYPE -> hasAny(text, List.of(c.inputDtype(), c.weightDtype()));
      case QUANTIZATION -> namesQuantisation(text, c);
      case ACTIVATION ->
          hasAny(text, List.of(c.activation(), c.activation().kind()))
              || hasNumber(
                  text,
                  "limit|alpha|beta|clamp|activation",
                  List.of(c.activation().limit(), c.activation().alpha(), c.activation().beta()));
      case ROUTING ->
          hasAny(text, List.of(c.routing().scoring()))
              || namesRoutingSwitch(text, c)
              || hasNumber(
                  text,
                  "rout|group|weight|scor|scal|floor|top_?k|factor|jitter|epsilon",
                  List.of(
                      c.routing().numGroups(),
                      c.routing().topkGroups(),
                      c.routing().sumFloor(),
                      c.routing().jitter(),
                      c.routing().epsilon(),
                      c.routing().scalingFactor(),
                      c.numExperts(),
                      c.topK()));
      case ACTIVATION_FORMAT -> hasAny(text, List.of(c.activationFormat()));
      case PARALLEL ->
          hasNumber(
                  text,
                  "rank|parallel|tp|ep",
                  List.of(c.parallel().tpSize(), c.parallel().epSize(), c.parallel().worldSize()))
              || (c.parallel().replicatedTokens() && text.contains("replicat"));
      case SIZE ->
          hasNumber(
              text,
              "size|hidden|intermediate|expert|token|top_?k|latent|width|feature|dim|row|column"
                  + "|shape|multiple|divi|\\b[hiekt]\\b",
              sizes(c));
      // Switches: the word is the value.
      case BIAS -> text.contains("bias");
      case ROUTER_WEIGHT_ON_INPUT -> has(text, "router[ _-]?weight|weights?[ _-]?on[ _-]?input");
      case EXPERT_MAP -> has(text, "expert[ _-]?map");
      case BATCH_INVARIANCE -> text.contains("invarian");
      case LORA ->
          text.contains("lora")
              || c.lora()
                  .filter(
                      l -> hasNumber(text, "adapter|rank|slot", List.of(l.maxRank(), l.maxLoras())))
                  .isPresent();
      default -> false;
    };
  }

  /** Switches of a router: the word is the value, where the config has it on. */
  private static boolean namesRoutingSwitch(String text, MoeConfig c) {
    RoutingConfig r = c.routing();
    return (r.correctionBias() && text.contains("bias"))
        || (r.renormalize() && text.contains("normali"))
        || (r.expertScale() && text.contains("scale"))
        || (r.byTokenId() && has(text, "token[ _-]?id"))
        || (r.inputNorm().isPresent() && text.contains("norm"))
        || (c.zeroExperts() > 0 && has(text, "zero[ _-]?expert"));
  }

  private static boolean namesQuantisation(String text, MoeConfig c) {
    List<Object> numbers = new ArrayList<>();
    for (QuantScheme s : c.quantSchemes()) {
      numbers.addAll(List.of(s.bits(), s.scaleRows(), s.scaleColumns()));
      if ((!s.symmetric() && has(text, "symmetric|zero[ _-]?point"))
          || (s.actOrder() && has(text, "act[ _-]?order|g_idx"))) {
        return true;
      }
    }
    return hasAny(text, quantisation(c))
        || hasNumber(text, "\\bbit|group|block|row|column|scale", numbers);
  }

  private static boolean has(String text, String regex) {
    return Pattern.compile(regex).matcher(text).find();
  }

  private static List<Object> sizes(MoeConfig c) {
    return List.of(
        c.hiddenSize(),
        c.expertHiddenSize(),
        c.intermediateSize(),
        c.numExperts(),
        c.numLocalExperts(),
        c.topK(),
        c.maxTokens(),
        c.latentSize());
  }

  private static List<Object> quantisation(MoeConfig c) {
    List<Object> all = new ArrayList<>(List.of(c.quantSchemes(), c.weightDtype()));
    for (QuantScheme s : c.quantSchemes()) {
      all.addAll(List.of(s, s.format(), s.activations()));
    }
    return all;
  }

  private static boolean namesDevice(String text, Platform platform) {
    List<Object> facts = new ArrayList<>(TYPES);
    for (DeviceInfo device : platform.devices()) {
      facts.addAll(List.of(device.id(), device.name(), device.memoryBytes()));
      device.capability().ifPresent(facts::add);
      // Counts of processors and the like are in any text.
      device.properties().values().stream()
          .filter(v -> v.chars().anyMatch(Character::isLetter))
          .forEach(facts::add);
    }
    return hasAny(text, facts);
  }

  private static int words(String text) {
    return (int) WORD.matcher(text).results().count();
  }

  /** A number alone may be anything's: what it counts must be there too. */
  private static boolean hasNumber(String text, String subject, List<Object> numbers) {
    return has(text, subject) && hasAny(text, numbers);
  }

  /** Whether one of the values stands in a text, not as a part of another word or number. */
  private static boolean hasAny(String text, List<Object> values) {
    return values.stream()
        .map(v -> v.toString().toLowerCase(Locale.ROOT))
        .filter(v -> !v.isBlank())
        .anyMatch(v ->
            Pattern.compile("(?<![\\p{Alnum}_.])" + Pattern.quote(v) + "(?![\\p{Alnum}_]|\\.\\d)")
                .matcher(text)
                .find());
  }

  static AssertionError unreadable(MoeConfig config, Support.Reason reason) {
    return new AssertionError(
        "MOE-1.2: the refusal of "
            + Problem.describe(config)
            + " says ["
            + reason.code()
            + "] \""
            + reason.message()
            + "\", which names no value that it is about, or nothing besides; say in at least "
            + FEWEST_WORDS
            + " words what was given, "
            + example(config, reason)
            + ", and what is accepted");
  }

  /** What a refusal could have named. */
  private static String example(MoeConfig c, Support.Reason reason) {
    if (reason.code() == null) {
      return "with a code";
    }
    return switch (reason.code()) {
      case DTYPE -> "as \"" + c.inputDtype() + "\" or \"" + c.weightDtype() + "\"";
      case QUANTIZATION -> "as \"" + c.quantSchemes().getFirst() + "\" or its bits or group size";
      case ACTIVATION -> "as \"" + c.activation() + "\"";
      case ROUTING -> "as \"" + c.routing().scoring() + "\" or one of its parameters";
      case ACTIVATION_FORMAT -> "as \"" + c.activationFormat() + "\"";
      case PARALLEL ->
          "as \"tp " + c.parallel().tpSize() + "\" and \"ep " + c.parallel().epSize() + "\"";
      case SIZE -> "as \"hidden size " + c.hiddenSize() + "\", with the size's name";
      case DEVICE, CAPABILITY -> "as the device's name, type or capability";
      case BIAS -> "the word \"bias\"";
      case ROUTER_WEIGHT_ON_INPUT -> "the word \"router weight on input\"";
      case EXPERT_MAP -> "the word \"expert map\"";
      case BATCH_INVARIANCE -> "the word \"batch invariance\"";
      case LORA -> "the word \"LoRA\", or its rank or slots";
      default -> "by its value";
    };
  }
}
