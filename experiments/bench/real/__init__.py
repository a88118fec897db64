"""The sampler on real models, against `generate` and vLLM."""
