package io.moe4j.integration;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.moe4j.api.config.Activation;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.RmsNorm;
import io.moe4j.api.config.RoutingConfig;
import io.moe4j.api.config.SharedExpertConfig;
import io.moe4j.api.config.SharedExpertConfig.Combine;
import io.moe4j.api.device.Device;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.spi.BlockOps;
import io.moe4j.api.spi.BlockOpsProvider;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.MoeLayerWeights;
import io.moe4j.backend.cpu.CpuBlockOpsProvider;
import io.moe4j.backend.cpu.CpuDeviceProvider;
import io.moe4j.backend.cpu.CpuExpertsBackend;
import io.moe4j.oracle.BackendCatalog;
import io.moe4j.oracle.MoeForward;
import io.moe4j.oracle.MoeLayer;
import io.moe4j.oracle.MoeOracle;
import io.moe4j.oracle.UnsupportedConfigException;
import java.util.List;
import java.util.Map;
import java.util.function.UnaryOperator;
import org.junit.jupiter.api.Test;

/**
 * What a few families need around their experts: asked for, checked at the door, refused in words.
 */
class FamilyFeaturesTest {
  private static MoeOracle oracle(BlockOpsProvider blockOps) {
    return MoeOracle.of(
        BackendCatalog.of(
            List.of(new CpuExpertsBackend()), List.of(new CpuDeviceProvider()), List.of(blockOps)));
  }

  @Test
  void aLayerThatChoosesByTokenIdWantsTheIds() {
    try (Fixture fixture = Fixture.open("families/deepseek_v4");
        MoeOracle oracle = oracle(new CpuBlockOpsProvider());
        MoeLayer layer =
            MoeLayer.builder(fixture.config(0), fixture.checkpoint.weights(0))
                .oracle(oracle)
                .build()) {
      Tensor x = fixture.io.tensor("layers.0.input");
      int tokens = (int) x.size(0);
      Tensor y = Tensor.ofFloats(new float[(int) x.elementCount()], x.shape());
      MoeForward request = MoeForward.of(x, y);
      assertThatThrownBy(() -> layer.forward(request))
          .isInstanceOf(IllegalArgumentException.class)
          .hasMessageContaining("withTokenIds");
      int[] ids = new int[tokens];
      ids[2] = 32; // the vocabulary
      assertThatThrownBy(() -> layer.forward(request.withTokenIds(Tensor.ofInts(ids, tokens))))
          .hasMessageContaining("tokenIds[2] is 32, must be 0..31");
      ids[2] = -1;
      assertThatThrownBy(() -> layer.forward(request.withTokenIds(Tensor.ofInts(ids, tokens))))
          .hasMessageContaining("tokenIds[2] is -1");
      ids[2] = 31;
      layer.forward(request.withTokenIds(Tensor.ofInts(ids, tokens)));
      assertThat(y.toFloats()).isNotEqualTo(new float[(int) x.elementCount()]);
    }
  }

  /** A provider of before these things were known: its default answer refuses them. */
  private static final class Old implements BlockOpsProvider {
    @Override
    public DeviceType deviceType() {
      return DeviceType.CPU;
    }

    @Override
    public BlockOps prepare(MoeConfig config, MoeLayerWeights weights, Device device) {
      return new CpuBlockOpsProvider().prepare(config, weights, device);
    }
  }

  @Test
  void anOlderDeviceRefusesWithTheReason() {
    RmsNorm norm = new RmsNorm(1e-6f);
    SharedExpertConfig average = new SharedExpertConfig(4, Activation.SILU, false, Combine.AVERAGE);
    Map<String, UnaryOperator<MoeConfig.Builder>> features =
        Map.of(
            "token id",
            b -> b.routing(routing().byTokenId(true).build()),
            "router that normalises",
            b -> b.routing(routing().inputNorm(norm).build()),
            "expert scales",
            b -> b.routing(routing().expertScale(true).build()),
            "floor of the weights' sum (0.5)",
            b -> b.routing(routing().sumFloor(0.5f).build()),
            "3 zero experts",
            b -> b.zeroExperts(3),
            "norm of the experts' input",
            b -> b.inputNorm(norm),
            "output bias",
            b -> b.outputBias(true),
            "average with the shared expert",
            b -> b.sharedExpert(average));
    try (MoeOracle old = oracle(new Old());
        MoeOracle now = oracle(new CpuBlockOpsProvider())) {
      features.forEach((reason, feature) -> {
        MoeConfig config = feature.apply(MoeConfig.builder(8, 4, 4, 2)).build();
        assertThatThrownBy(() -> old.select(config))
            .isInstanceOf(UnsupportedConfigException.class)
            .hasMessageContaining(reason);
        assertThat(now.select(config).chosenBackend().name()).isEqualTo("cpu");
      });
    }
  }

  private static RoutingConfig.Builder routing() {
    return RoutingConfig.builder(RoutingConfig.Scoring.SOFTMAX).renormalize(true);
  }

  @Test
  void whatDoesNotGoTogetherIsSaid() {
    RmsNorm norm = new RmsNorm(1e-6f);
    assertThatThrownBy(() -> new RmsNorm(0)).hasMessageContaining("epsilon is 0.0");
    assertThatThrownBy(() -> routing().sumFloor(Float.NaN).build())
        .hasMessageContaining("sumFloor NaN");
    assertThatThrownBy(() -> routing().byTokenId(true).correctionBias(true).build())
        .hasMessageContaining("by token id");
    assertThatThrownBy(() -> MoeConfig.builder(8, 4, 4, 2).zeroExperts(-1).build())
        .hasMessageContaining("zeroExperts is -1");
    assertThatThrownBy(() -> MoeConfig.builder(8, 4, 4, 2).latentSize(4).inputNorm(norm).build())
        .hasMessageContaining("latentSize 4");
    assertThat(MoeConfig.builder(8, 4, 4, 7).zeroExperts(3).build().numChoices()).isEqualTo(7);
    assertThatThrownBy(() -> MoeConfig.builder(8, 4, 4, 8).zeroExperts(3).build())
        .hasMessageContaining("must be 1..numExperts + zeroExperts = 7");
  }
}
