"""Tests that run in Scipion's environment: `pytest inr/tests`, or `scipion3 tests inr.tests.test_workflow`."""
