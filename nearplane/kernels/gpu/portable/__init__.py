"""Triton kernels for codes of fixed width, for every GPU that Triton supports.

Read geometry.py first.
"""
