"""Modules beside this file (`whole_fields`, `two_organs`, `small_detectors`) are found from the folders below it."""
