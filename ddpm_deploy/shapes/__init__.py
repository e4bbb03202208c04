"""Coloured shapes with captions: an unlimited set to train text to image on."""
