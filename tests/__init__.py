"""Tests, mirrored after the package. (Another `tests` in site-packages must not stand in its way.)"""
