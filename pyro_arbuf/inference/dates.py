"""Dates and durations as numbers of days, and back. Knows nothing of tables, nor of networks."""

import datetime

import numpy as np

MICROSECONDS = 86_400_000_000  # of a day


def days(value: np.ndarray) -> np.ndarray:
    """Days since 1970-01-01 of dates, days of durations, float64; NaN for NaT."""
    unit = np.dtype(f"{'datetime64' if value.dtype.kind == 'M' else 'timedelta64'}[us]")
    return np.where(np.isnat(value), np.nan, value.astype(unit).astype(np.int64) / MICROSECONDS)


def day_of(value: object) -> tuple[float, bool] | None:
    """Days of one date or duration, and whether it is a date; `None` for everything else.

    Raises:
        ValueError: If it is a number of months or years, which differ in length.
    """
    if isinstance(value, datetime.datetime) and value.tzinfo is not None:
        value = value.astimezone(datetime.UTC).replace(tzinfo=None)
    if isinstance(value, datetime.date | np.datetime64):  # pandas' Timestamp is a datetime
        return float(days(np.asarray(value, dtype="datetime64[us]"))), True
    if isinstance(value, datetime.timedelta | np.timedelta64):
        if isinstance(value, np.timedelta64) and np.datetime_data(value)[0] in "YM":
            raise ValueError(f"durations must be of a fixed length, as of days or seconds; got {value}; state the days")
        return float(days(np.asarray(value, dtype="timedelta64[us]"))), False
    return None


def as_dates(numbers: np.ndarray) -> np.ndarray:
    """Dates, datetime64 in microseconds, of days since 1970-01-01; NaT for NaN."""
    missing = np.isnan(numbers)
    stamps = (np.where(missing, 0.0, numbers) * MICROSECONDS).round().astype(np.int64).astype("datetime64[us]")
    return np.where(missing, np.datetime64("NaT", "us"), stamps)
