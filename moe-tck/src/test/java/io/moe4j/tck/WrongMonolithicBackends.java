package io.moe4j.tck;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.RoutingConfig;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.spi.MonolithicInputs;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import org.jspecify.annotations.Nullable;

/** Experts that route by themselves, with a mistake each. */
final class WrongMonolithicBackends {
  private WrongMonolithicBackends() {}

  private static Tensor copy(Tensor logits, DType read) {
    Tensor same = Tensor.of(read, logits.segment(), logits.shape());
    return Tensor.ofFloats(same.toFloats(), logits.shape());
  }

  /** Accepts adapters and computes the base model. */
  static final class MonolithicLoraIgnored extends MonolithicReference {
    @Override
    @Nullable MoeLoraContext lora(@Nullable MoeLoraContext lora) {
      return null;
    }
  }

  /** Chooses by the scores alone. */
  static final class RoutingBiasIgnored extends MonolithicReference {
    @Override
    MonolithicInputs inputs(MonolithicInputs in) {
      return new MonolithicInputs(in.hidden(), in.routerLogits(), null, in.output());
    }
  }

  /** 16 bits are 16 bits. */
  static final class Bf16LogitsReadAsF16 extends MonolithicReference {
    @Override
    MonolithicInputs inputs(MonolithicInputs in) {
      return in.routerLogits().dtype() == DType.BF16
          ? new MonolithicInputs(
              in.hidden(), copy(in.routerLogits(), DType.F16), in.correctionBias(), in.output())
          : in;
    }
  }

  /** Knows one way to route. */
  static final class OneRoutingForAll extends MonolithicReference {
    @Override
    MoeConfig config(MoeConfig config) {
      return config.toBuilder().routing(RoutingConfig.SIGMOID).build();
    }
  }

  /** Leaves the factor on the weights to the layer, which does not know of it. */
  static final class ScalingForgotten extends MonolithicReference {
    @Override
    MoeConfig config(MoeConfig config) {
      return config.toBuilder()
          .routing(config.routing().toBuilder().scalingFactor(1).build())
          .build();
    }
  }
}
