"""Tasks: what one is, how it is found and checked, and those that ship ready to run."""

from mfh.tasks.finding import SHIPPED, find_task

__all__ = ["SHIPPED", "find_task"]
