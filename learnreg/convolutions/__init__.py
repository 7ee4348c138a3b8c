"""Convolutions as linear operators: filter banks, chains, differences, and what networks need."""
