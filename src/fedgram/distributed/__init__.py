"""Processes of a job: launching them, sums and gathers over them, and what happens when one fails."""
