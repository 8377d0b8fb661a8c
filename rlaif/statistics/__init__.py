"""Statistics with their uncertainty: intervals, calibration, agreement, position bias.

Pure functions over arrays that every floor above may use: no model, no file, no record.
"""
