"""Servers on the nodes: launched, examined, explained and measured."""
