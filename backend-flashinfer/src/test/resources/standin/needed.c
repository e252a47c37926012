/* Stands in for a library of CUDA's that a module depends on. */
__attribute__((visibility("default"))) int standin_needed(void) { return 1; }
