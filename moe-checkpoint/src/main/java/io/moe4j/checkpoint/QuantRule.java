package io.moe4j.checkpoint;

import io.moe4j.api.config.ActivationQuant;
import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.config.QuantScheme.ScaleFormat;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;

/** What a config says of one module, should it be quantised. Immutable. */
final class QuantRule {
  /** Whose names and packing a module has. */
  enum Method {
    /** Nobody says. */
    NONE,
    GPTQ,
    AWQ,
    COMPRESSED_TENSORS,
    FP8,
    MODELOPT,
    MXFP4
  }

  /** What codes are. */
  enum Codes {
    UNKNOWN,
    INT,
    FLOAT
  }

  /** What a scale serves. */
  enum Strategy {
    /** Not said: the shape of the scales tells. */
    UNKNOWN,
    TENSOR,
    CHANNEL,
    GROUP,
    BLOCK
  }

  private final Builder b;

  private QuantRule(Builder b) {
    this.b = b;
  }

  static Builder builder(String said, Method method) {
    return new Builder(said, method);
  }

  Method method() {
    return b.method;
  }

  Codes codes() {
    return b.codes;
  }

  /** Bits of a code; 0 = not said. */
  int bits() {
    return b.bits;
  }

  Strategy strategy() {
    return b.strategy;
  }

  /** Rows of a block. */
  int rows() {
    return b.rows;
  }

  /** Columns of a block, or inputs of a group. */
  int columns() {
    return b.columns;
  }

  ScaleFormat scaleFormat() {
    return b.scaleFormat;
  }

  /** Whether zero points are fixed. */
  boolean symmetric() {
    return b.symmetric;
  }

  /** Whether a group index counts. */
  boolean actOrder() {
    return b.actOrder;
  }

  /** What is added to a stored zero point. */
  int zeroOffset() {
    return b.zeroOffset;
  }

  /** What the file was made for. */
  ActivationQuant activations() {
    return b.activations;
  }

  /** A builder with the scales' part of a scheme. */
  QuantScheme.Builder scheme(QuantScheme.Format format) {
    QuantScheme.Builder scheme =
        QuantScheme.builder(format).scaleFormat(b.scaleFormat).activations(b.activations);
    return switch (b.strategy) {
      case TENSOR, UNKNOWN -> scheme.perTensor();
      case CHANNEL -> scheme.perChannel();
      case GROUP -> scheme.group(b.columns);
      case BLOCK -> scheme.block(b.rows, b.columns);
    };
  }

  Builder toBuilder() {
    Builder copy = new Builder(b.said, b.method);
    copy.codes = b.codes;
    copy.bits = b.bits;
    copy.strategy = b.strategy;
    copy.rows = b.rows;
    copy.columns = b.columns;
    copy.scaleFormat = b.scaleFormat;
    copy.symmetric = b.symmetric;
    copy.actOrder = b.actOrder;
    copy.zeroOffset = b.zeroOffset;
    copy.activations = b.activations;
    return copy;
  }

  /** Like {@code config.json (quant_method 'gptq') says 4-bit int, groups of 128, symmetric}. */
  String inWords() {
    List<String> words = new ArrayList<>();
    if (b.codes != Codes.UNKNOWN) {
      words.add((b.bits > 0 ? b.bits + "-bit " : "") + b.codes.name().toLowerCase(Locale.ROOT));
    }
    switch (b.strategy) {
      case TENSOR -> words.add("a scale a tensor");
      case CHANNEL -> words.add("a scale a channel");
      case GROUP -> words.add("groups of " + b.columns);
      case BLOCK -> words.add("blocks of " + b.rows + "x" + b.columns);
      case UNKNOWN -> {
        // Nothing to say.
      }
    }
    if (b.codes == Codes.INT) {
      words.add(b.symmetric ? "symmetric" : "asymmetric");
      words.add(b.actOrder ? "with act-order" : "without act-order");
    }
    return b.said + (words.isEmpty() ? "" : " says " + String.join(", ", words));
  }

  /** Sets one thing at a time. */
  static final class Builder {
    private final String said;
    private final Method method;
    private Codes codes = Codes.UNKNOWN;
    private int bits;
    private Strategy strategy = Strategy.UNKNOWN;
    private int rows;
    private int columns;
    private ScaleFormat scaleFormat = ScaleFormat.FLOAT;
    private boolean symmetric = true;
    private boolean actOrder;
    private int zeroOffset;
    private ActivationQuant activations = ActivationQuant.NONE;

    private Builder(String said, Method method) {
      this.said = said;
      this.method = method;
    }

    Builder codes(Codes kind, int bitsOfCode) {
      codes = kind;
      bits = bitsOfCode;
      return this;
    }

    Builder scales(Strategy serves) {
      strategy = serves;
      return this;
    }

    /** -1 = all inputs, which is a channel. */
    Builder group(int inputs) {
      strategy = inputs < 0 ? Strategy.CHANNEL : Strategy.GROUP;
      rows = 1;
      columns = inputs;
      return this;
    }

    Builder block(int blockRows, int blockColumns) {
      strategy = Strategy.BLOCK;
      rows = blockRows;
      columns = blockColumns;
      return this;
    }

    Builder scaleFormat(ScaleFormat format) {
      scaleFormat = format;
      return this;
    }

    Builder symmetric(boolean fixed) {
      symmetric = fixed;
      return this;
    }

    Builder actOrder(boolean ordered) {
      actOrder = ordered;
      return this;
    }

    Builder zeroOffset(int offset) {
      zeroOffset = offset;
      return this;
    }

    Builder activations(ActivationQuant quant) {
      activations = quant;
      return this;
    }

    QuantRule build() {
      return new QuantRule(this);
    }
  }
}
