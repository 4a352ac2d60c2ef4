"""Protocols, compatibility scores and plots."""
