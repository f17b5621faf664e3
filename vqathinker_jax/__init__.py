"""VQAThinker in JAX: how good does this video look, and why?"""
