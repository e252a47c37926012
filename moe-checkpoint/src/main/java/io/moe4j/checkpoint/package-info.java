/** safetensors, Hugging Face MoE layouts, PEFT adapters. */
@NullMarked
package io.moe4j.checkpoint;

import org.jspecify.annotations.NullMarked;
