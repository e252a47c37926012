package io.moe4j.cli;

import static java.util.Locale.ROOT;

import io.moe4j.checkpoint.AdapterPolicy;
import io.moe4j.checkpoint.CheckpointOptions;
import io.moe4j.checkpoint.LoadProgress;
import org.jspecify.annotations.Nullable;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Option;

/** What {@code moe run} and {@code moe inspect} let their users say about models and adapters. */
final class AdapterOptions {
  /** How B's columns fold the experts; the names are those of {@code lora_B_layout}. */
  enum LoraBLayout {
    RANK_MAJOR(AdapterPolicy.FusedOrder.RANK_MAJOR),
    GROUPED_BY_EXPERT(AdapterPolicy.FusedOrder.GROUPED_BY_EXPERT);

    private final AdapterPolicy.FusedOrder order;

    LoraBLayout(AdapterPolicy.FusedOrder order) {
      this.order = order;
    }

    @Override
    public String toString() {
      return name().toLowerCase(ROOT);
    }
  }

  @Mixin private LayoutOption layout = new LayoutOption();

  @Option(
      names = "--root",
      paramLabel = "PREFIX",
      description =
          "Which of several models in the checkpoint is meant: what its tensors' names have in front"
              + " of 'layers.', like thinker.model. or model. (a draft head beside a model, an omni"
              + " model).")
  private @Nullable String root;

  @Option(
      names = "--policy",
      paramLabel = "WHICH",
      description =
          "What to do with parts of an adapter that cannot be applied: default (refuse what would"
              + " change the MoE block, report the rest), strict (refuse all), lenient (report all)."
              + " Default: ${DEFAULT-VALUE}.",
      defaultValue = "default")
  private AdapterFiles.Policy policy;

  @Option(
      names = "--router-lora",
      description =
          "Apply an adapter's factors on the router: they change the logits of its tokens, and with"
              + " them may change who computes a token. Refused without this option.")
  private boolean routerLora;

  @Option(
      names = "--lora-b-layout",
      paramLabel = "ORDER",
      description =
          "How lora_B of fused experts folds them, where adapter_config.json does not say it:"
              + " rank_major (PEFT) or grouped_by_expert (Unsloth before September 2026,"
              + " Megatron-Bridge).")
  private @Nullable LoraBLayout loraBLayout;

  @Option(
      names = "--fused-side",
      paramLabel = "SIDE",
      description =
          "Which side of a fused parameter [E, dim1, dim2] lora_A covers, where it is square and"
              + " peft_version does not tell: dim1 or dim2.")
  private AdapterPolicy.@Nullable FusedSide fusedSide;

  @Option(
      names = "--single-target",
      paramLabel = "NAME",
      description =
          "Which fused parameter a lone pair of factors belongs to, where target_parameters are not"
              + " given and its shape fits several: like gate_up_proj or down_proj.")
  private @Nullable String singleTarget;

  @SuppressWarnings("NullAway.Init") // picocli sets them
  AdapterOptions() {}

  AdapterPolicy policy() {
    AdapterPolicy p = policy.policy().withRouter(routerLora);
    if (loraBLayout != null) {
      p = p.withLoraBOrder(loraBLayout.order);
    }
    if (fusedSide != null) {
      p = p.withSide(fusedSide);
    }
    if (singleTarget != null) {
      if (singleTarget.isBlank()) {
        throw CliException.usage("--single-target is empty, must be a parameter like down_proj");
      }
      p = p.withSingleTarget(singleTarget);
    }
    return p;
  }

  CheckpointOptions checkpoint(LoadProgress progress) {
    CheckpointOptions o = layout.options().withProgress(progress);
    return root == null ? o : o.withRoot(root);
  }

  /** A message of the library in the words of the command line. */
  static String inOptions(String message) {
    return message
        .replace("AdapterPolicy.LENIENT", "--policy lenient")
        .replace("AdapterPolicy.DEFAULT", "--policy default")
        .replace("AdapterPolicy.withRouter(true)", "--router-lora")
        .replace(
            "AdapterPolicy.withLoraBOrder(order) decides: GROUPED_BY_EXPERT",
            "--lora-b-layout decides: grouped_by_expert")
        .replace("before, RANK_MAJOR after", "before, rank_major after")
        .replace("Megatron-Bridge, RANK_MAJOR for", "Megatron-Bridge, rank_major for")
        .replace("AdapterPolicy.withLoraBOrder(RANK_MAJOR) says", "--lora-b-layout rank_major says")
        .replace("AdapterPolicy.withSide(side)", "--fused-side")
        .replace("AdapterPolicy.withSingleTarget(name)", "--single-target")
        .replace("CheckpointOptions.withRoot", "--root");
  }
}
