"""Modules that any process of an instance may use: the memory, the settings, the phases.

They import neither gunicorn nor Flask.
"""
