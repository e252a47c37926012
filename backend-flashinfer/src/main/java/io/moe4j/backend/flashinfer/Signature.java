package io.moe4j.backend.flashinfer;

import io.moe4j.api.DeviceException;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/**
 * The argument list of a FlashInfer function in one of its versions. Written as {@code name:kind},
 * kinds as in {@link Kind#code}.
 *
 * @param function its name
 * @param parameters in order
 */
record Signature(String function, List<Parameter> parameters) {
  /** What TVM-FFI says when a function is called with another number of arguments. */
  private static final Pattern COUNT = Pattern.compile("Expected (\\d+) but got 0 arguments");

  /** The types in the same message, where the library gives them. */
  private static final Pattern TYPES = Pattern.compile("`\\w*\\((0: .*)\\) -> [^`]*`\\. Expected");

  private static final Pattern TYPE = Pattern.compile("(?:^|, )\\d+: ");

  private static final Pattern SPACE = Pattern.compile("\\s+");

  /** Kinds of arguments. */
  enum Kind {
    /** A data type. */
    DTYPE("dt", "DataType", false),
    /** A tensor. */
    TENSOR("T", "DLTensor*", false),
    /** A tensor or nothing. */
    OPTIONAL_TENSOR("T?", "Optional<DLTensor*>", true),
    /** An integer. */
    INT("i", "int", false),
    /** An integer or nothing. */
    OPTIONAL_INT("i?", "Optional<int>", true),
    /** A real number or nothing. */
    OPTIONAL_REAL("f?", "Optional<float>", true),
    /** Yes or no. */
    BOOL("b", "bool", false),
    /** Integers. */
    INTS("i[]", "Array<int>", false),
    /** Integers or nothing. */
    OPTIONAL_INTS("i[]?", "Optional<Array<int>>", true),
    /** Strings. */
    STRINGS("s[]", "Array<str>", false),
    /** Tensors. */
    TENSORS("T[]", "Array<ffi.Tensor>", false),
    /** Tensors or nothing. */
    OPTIONAL_TENSORS("T[]?", "Optional<Array<ffi.Tensor>>", true);

    private final String code;
    private final String type;
    private final boolean optional;

    Kind(String code, String type, boolean optional) {
      this.code = code;
      this.type = type;
      this.optional = optional;
    }

    /** {@return whether nothing may be given} */
    boolean isOptional() {
      return optional;
    }

    private static Kind of(String code) {
      for (Kind k : values()) {
        if (k.code.equals(code)) {
          return k;
        }
      }
      throw new IllegalArgumentException("no kind of argument is written " + code);
    }
  }

  /** One argument. */
  record Parameter(String name, Kind kind) {
    private static Parameter parse(String text) {
      int colon = text.indexOf(':');
      return new Parameter(text.substring(0, colon), Kind.of(text.substring(colon + 1)));
    }
  }

  Signature {
    parameters = List.copyOf(parameters);
  }

  /**
   * Reads a list.
   *
   * @param function name
   * @param parameters {@code name:kind}, separated by white space
   */
  static Signature of(String function, String parameters) {
    return new Signature(
        function,
        SPACE.splitAsStream(parameters).filter(p -> !p.isEmpty()).map(Parameter::parse).toList());
  }

  /** The list with more arguments behind the one named; of a later version. */
  Signature with(String parameters, String behind) {
    List<Parameter> all = new ArrayList<>(this.parameters);
    int at = indexOf(behind) + 1;
    all.addAll(at, of(function, parameters).parameters);
    return new Signature(function, all);
  }

  /** The list with more arguments at the end. */
  Signature withLast(String parameters) {
    return with(parameters, this.parameters.getLast().name());
  }

  private int indexOf(String name) {
    for (int i = 0; i < parameters.size(); i++) {
      if (parameters.get(i).name().equals(name)) {
        return i;
      }
    }
    throw new IllegalArgumentException(function + " has no argument " + name);
  }

  int size() {
    return parameters.size();
  }

  /**
   * Finds which of several lists a loaded function has, by its own word: a call without arguments
   * is refused before anything else happens, with the number of arguments and their types.
   *
   * @param loaded the function
   * @param candidates lists of the versions it may be of
   * @param version for the message
   * @return the one that fits
   * @throws UnavailableException if none does
   */
  static Signature match(TvmFunction loaded, List<Signature> candidates, String version)
      throws UnavailableException {
    String words;
    try (TvmArguments none = TvmArguments.none()) {
      loaded.call(none);
      words = "Expected 0 but got 0 arguments";
    } catch (DeviceException e) {
      words = String.valueOf(e.getMessage());
    }
    Matcher count = COUNT.matcher(words);
    if (!count.find()) {
      throw new UnavailableException(
          loaded + " of FlashInfer " + version + " did not say what arguments it takes: " + words);
    }
    int size = Integer.parseInt(count.group(1));
    for (Signature s : candidates) {
      if (s.size() == size && s.hasTypesOf(words)) {
        return s;
      }
    }
    throw new UnavailableException(
        loaded
            + " of FlashInfer "
            + version
            + " takes "
            + size
            + " arguments, moe4j knows it with "
            + candidates.stream().map(s -> Integer.toString(s.size())).toList()
            + (candidates.stream().anyMatch(s -> s.size() == size) ? " of other types" : ""));
  }

  private boolean hasTypesOf(String words) {
    Matcher types = TYPES.matcher(words);
    if (!types.find()) {
      return true; // an older TVM-FFI gives the number alone
    }
    List<String> given = TYPE.splitAsStream(types.group(1)).filter(t -> !t.isEmpty()).toList();
    return given.equals(parameters.stream().map(p -> p.kind().type).toList());
  }

  /**
   * Puts arguments in order.
   *
   * @param values by name: what {@link NamedArguments} collected
   * @param into where they go
   * @throws IllegalArgumentException if one that must be there is missing
   */
  void pack(Map<String, NamedArguments.Value> values, TvmArguments into) {
    for (Parameter p : parameters) {
      NamedArguments.Value v = values.get(p.name());
      if (v != null) {
        v.addTo(into);
      } else if (p.kind().isOptional()) {
        into.absent();
      } else {
        throw new IllegalArgumentException(function + " needs " + p.name() + ", none was given");
      }
    }
  }

  boolean has(String name) {
    return parameters.stream().anyMatch(p -> p.name().equals(name));
  }

  @Override
  public String toString() {
    StringBuilder text = new StringBuilder(function).append('(');
    for (Parameter p : parameters) {
      text.append(p.name()).append(':').append(p.kind().code).append(' ');
    }
    return text.toString().strip() + ")";
  }
}
