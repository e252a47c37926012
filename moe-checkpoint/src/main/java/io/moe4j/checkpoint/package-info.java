/**
 * safetensors, Hugging Face MoE layouts, adapters of PEFT and mlx-lm: from files to {@code
 * MoeConfig}, {@code MoeLayerWeights} and {@code LoraAdapter}.
 *
 * <pre>{@code
 * try (MoeCheckpoint model = MoeCheckpoint.open(modelDirectory)) {
 *   PeftAdapter adapter =
 *       PeftAdapter.load(adapterDirectory, "billing", model, AdapterPolicy.DEFAULT);
 *   for (int layer : model.layers()) {
 *     MoeConfig config = model.config(layer).toBuilder().lora(new LoraConfig(8, 64)).build();
 *     MoeLayerWeights weights = model.weights(layer);
 *     LoraLayer lora = adapter.adapter().layer(layer);
 *   }
 * }
 * }</pre>
 *
 * <p>Weights are views of mapped files and live as long as the {@link
 * io.moe4j.checkpoint.MoeCheckpoint} is open; adapters are copied and outlive their files. What is
 * read is immutable and may be shared between threads.
 *
 * <p>Files are not trusted. Whatever they hold, opening and loading end in one of: success; {@link
 * io.moe4j.api.CheckpointException} for a file that is missing, damaged, or in a form that is not
 * understood; {@link io.moe4j.api.AdapterException} for an adapter whose content does not fit the
 * model or is refused by the policy. Sizes are checked before memory is taken for them or time is
 * spent on them, and regular expressions from files run on an engine that is linear in time.
 * Nothing that would change a MoE block's result is ever left out silently: a tensor of a block
 * that is not understood, or that the config promises and the files lack, refuses the checkpoint;
 * every tensor of an adapter is accounted for in its {@link io.moe4j.checkpoint.AdapterReport}, and
 * only what is recognised as standing beside the MoE blocks (attention, norms, other towers) counts
 * as such.
 *
 * <p>What no block needs may be damaged or missing. Using what a closed checkpoint handed out, or
 * asking it for weights, is an {@link java.lang.IllegalStateException}.
 *
 * <p>Model families are {@link io.moe4j.checkpoint.CheckpointLayout}s: qwen2_moe, qwen3_moe,
 * qwen3_next, olmoe, deepseek_v2, deepseek_v3, kimi_k2, glm4_moe, mixtral, phimoe, gpt_oss,
 * llama4_text, granitemoe, nemotron_h; in the form they are published in and in the fused form of
 * transformers 5, alone or inside a model that wraps them. Others are described by hand.
 */
@NullMarked
package io.moe4j.checkpoint;

import org.jspecify.annotations.NullMarked;
