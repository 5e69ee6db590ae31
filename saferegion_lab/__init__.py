"""The workshop beside the product: a tiny diffusion model, benchmarks, encoders and denoisers, the command line."""
