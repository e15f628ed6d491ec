"""Triton kernels, each the twin of a plain function one room up. Imported only when chosen.

Every operation is registered with torch, so that compiled graphs take it whole; its gradient is
written by hand. With TRITON_INTERPRET=1 all of it runs on a CPU, slowly, which is how it is tested.
"""
