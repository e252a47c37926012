/** safetensors, Hugging Face MoE layouts, PEFT adapters. */
module io.moe4j.checkpoint {
  requires transitive io.moe4j.api;
  requires static org.jspecify;
  requires com.fasterxml.jackson.core;
  requires com.fasterxml.jackson.databind;
  requires re2j;
  requires org.slf4j;

  exports io.moe4j.checkpoint;
}
