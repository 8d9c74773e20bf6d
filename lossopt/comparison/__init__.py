"""Comparing variants of a configuration: plan -> paired runs -> statistics. The page is made in `lossopt.report`."""
