"""How many bicycles will be hired tomorrow? The total of a day from a week of hourly rows, and what to order for it.

A day has 24 hours, and each is predicted from its weather and from the week before. But the decision, how many helpers
to book, rests on their sum. Hours err together: on a day that is busier than its weather says, all of them are. Joint
draws of the 24 hours know that. Independent draws, one for each hour, are as good hour by hour, and their sum is far
too certain.

    python tutorials/06_tables_total_of_a_day.py
    BIKE_SHARING=hour.csv python tutorials/06_tables_total_of_a_day.py    # real hires, 2011-2012
    DAY_NUMBER=1 python tutorials/06_tables_total_of_a_day.py             # with the number of the day as a column

The number of the day is no feature here. Beyond the observed days the network would expect anything of it: with it,
95 % of the days lie in the intervals that should hold 80 %. Leave out a column in which all predictions lie ahead,
unless its trend is what you are after. Of the real days 86 % lie in the joint's intervals, and 57 % in the independent
ones. Simulated days vary by more than their columns say, and both are too narrow there: 62 % and 33 %.

One network serves any table, with no training and no settings: 1 to 16 columns on any scale, see docs/tables.md. The
answers are checked against the days as they came, 120 of them: how often is the total within its interval, and how
often would there have been too few helpers?

The real hires are not distributed here: hour.csv of the Bike Sharing data set, UCI Machine Learning Repository 275
(Fanaee-T and Gama 2013, https://archive.ics.uci.edu/dataset/275). Without them the days are simulated. The figure
beside this file is of the real ones.
"""

# %% Hourly rows of days: hour, kind of day, weather, and how many bicycles were hired
import os
import tempfile
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

import pyro_arbuf
from pyro_arbuf import ArBufferJoint
from pyro_arbuf.random_state import seeded

SMOKE_TEST = bool(os.environ.get("SMOKE_TEST"))
NUM_DAYS, NUM_DRAWS = (3, 20) if SMOKE_TEST else (120, 500)
HIRES, DAY_NUMBER = os.environ.get("BIKE_SHARING"), bool(os.environ.get("DAY_NUMBER"))
FOLDER = Path(tempfile.mkdtemp()) if SMOKE_TEST or DAY_NUMBER else Path(__file__).parent
FIGURE = FOLDER / "06_tables_total_of_a_day.png"
FEATURES = ["hr", "weekday", "workingday", "weathersit", "temp", "hum", "windspeed"] + ["day"] * DAY_NUMBER
NUM_WEEK = 7  # days that are observed

plt.style.use("pyro_arbuf.house")  # the style of all figures here
torch.set_num_threads(1)


def simulate(num_days: int) -> pd.DataFrame:
    """Days as those of the data set, with a demand of their own that no column says."""
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({"day": np.repeat(np.arange(num_days), 24), "hr": np.tile(np.arange(24), num_days)})
    rows["weekday"] = rows.day % 7
    rows["workingday"] = rows.weekday.between(1, 5).astype(int)
    season = 0.5 - 0.3 * np.cos(2 * np.pi * rows.day / 365)
    rows["temp"] = season + 0.08 * np.sin(2 * np.pi * (rows.hr - 9) / 24) + rng.normal(0, 0.08, num_days)[rows.day]
    rows["weathersit"] = rng.choice([1, 2, 3], num_days, p=[0.65, 0.25, 0.1])[rows.day]
    rows["hum"] = np.clip(0.45 + 0.12 * rows.weathersit + rng.normal(0, 0.08, len(rows)), 0.1, 1)
    rows["windspeed"] = np.abs(rng.normal(0.19, 0.1, len(rows)))
    commute = np.exp(-((rows.hr - 8) ** 2) / 3) + 1.3 * np.exp(-((rows.hr - 17.5) ** 2) / 5)
    leisure = np.exp(-((rows.hr - 14) ** 2) / 20)
    shape = 0.05 + np.where(rows.workingday == 1, commute, 0.9 * leisure) + 0.3 * leisure
    demand = np.exp(rng.normal(0, 0.25, num_days))[rows.day]  # of the whole day
    mean = 350 * shape * (0.4 + rows.temp) * np.array([1, 0.85, 0.45])[rows.weathersit - 1] * demand
    rows["cnt"] = rng.poisson(mean * rng.gamma(30, 1 / 30, len(rows)))
    return rows


def read(path: str) -> pd.DataFrame:
    """The real days, numbered; a new one begins where the hour is smaller than the one before."""
    rows = pd.read_csv(path)
    return rows.assign(day=(rows.hr.diff() < 0).cumsum())


rows = simulate(731) if HIRES is None else read(HIRES)
of_day = dict(list(rows.groupby("day")))
whole = [day for day in of_day if day >= NUM_WEEK and len(of_day[day]) == 24]
days = sorted(np.random.default_rng(1).choice(whole, NUM_DAYS, replace=False).tolist())
print(f"{'simulated' if HIRES is None else 'real'} hires: {len(of_day)} days; {NUM_DAYS} of them are predicted\n")

# %% The week before is the context, the 24 hours of the day are predicted together
net = pyro_arbuf.load(os.environ.get("TABULAR", "tabular"))


def draw_totals(day: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Draws of the total by the joint and by independent predictions, and the log density that the joint is ahead."""
    week, new = pd.concat([of_day[day - i] for i in range(NUM_WEEK, 0, -1)]), of_day[day]
    ctx = net.condition(week[FEATURES], week["cnt"])
    joint = ArBufferJoint(ctx, new[FEATURES])  # without a column of days the rows have no order of time
    alone = joint.marginals()
    with seeded(day):
        together, apart = (d.sample((NUM_DRAWS,)).clamp(min=0).sum(-1) for d in (joint, alone))
    ahead = joint.log_prob(new["cnt"]) - alone.log_prob(new["cnt"])
    return together.numpy(), apart.numpy(), ahead.item()


start = time.process_time()
joint_draws, alone_draws, ahead = (np.array(part) for part in zip(*map(draw_totals, days), strict=True))
truth = np.array([of_day[day]["cnt"].sum() for day in days])
print(f"{(time.process_time() - start) / NUM_DAYS:.2f} s per day, {NUM_DRAWS} draws of both kinds")
error = ahead.std() / np.sqrt(NUM_DAYS)
print(f"joint minus independent log density of the 24 hours as they came: {ahead.mean():.1f} ({error:.1f}) nats\n")

# %% Known answers, first: how often is the total within its interval?
WAYS = {"joint": joint_draws, "independent": alone_draws}
print("the total of a day         days within the interval of      width of the 80 %")
print("                              50 %      80 %      95 %     interval, median")
coverage = {}
for name, draws in WAYS.items():
    for share in (0.5, 0.8, 0.95):
        low, high = np.quantile(draws, [(1 - share) / 2, (1 + share) / 2], axis=1)
        coverage[name, share] = ((low <= truth) & (truth <= high)).mean()
    low, high = np.quantile(draws, [0.1, 0.9], axis=1)
    shown = "".join(f"{100 * coverage[name, share]:8.0f} %" for share in (0.5, 0.8, 0.95))
    print(f"{name:25s}{shown}{np.median(high - low):18.0f}")

# %% Second: the decision. A helper moves 100 bicycles, and on at most one day in ten there may be too few of them.
HANDLED, ALLOWED = 100, 0.1
print(f"\nhelpers booked for at most {100 * ALLOWED:.0f} % of days with too few: median, and days that had too few")
for name, draws in WAYS.items():
    booked = np.ceil(np.quantile(draws, 1 - ALLOWED, axis=1) / HANDLED)
    print(f"{name:15s}{np.median(booked):6.0f}   {100 * (booked < truth / HANDLED).mean():3.0f} %")

# %% The picture
figure, axes = plt.subplots(1, 2, figsize=(12, 4), layout="constrained", width_ratios=(3, 1.3))
shown = np.arange(min(NUM_DAYS, 40))
for shift, (name, draws), colour in zip((-0.15, 0.15), WAYS.items(), ("C0", "C1"), strict=True):
    low, middle, high = np.quantile(draws[shown], [0.1, 0.5, 0.9], axis=1)
    label = f"{name}: {100 * coverage[name, 0.8]:.0f} % of {NUM_DAYS} days within"
    axes[0].errorbar(shown + shift, middle, [middle - low, high - middle], fmt="none", lw=3, color=colour, label=label)
axes[0].plot(shown, truth[shown], "k.", ms=7, label="the day as it came")
axes[0].set(title="hires of a day from the week before: 80 % intervals", xlabel="day", ylabel="bicycles")
axes[0].legend()
ranks = {name: (draws < truth[:, None]).mean(1) for name, draws in WAYS.items()}
for name, colour in zip(WAYS, ("C0", "C1"), strict=True):
    axes[1].plot(np.sort(ranks[name]), (np.arange(NUM_DAYS) + 0.5) / NUM_DAYS, color=colour, label=name)
axes[1].axline((0, 0), slope=1, color="0.6", lw=1, label="calibrated")
axes[1].set(title="of the total, as it came", xlabel="predicted probability of a smaller total", ylabel="share of days")
axes[1].legend()
figure.savefig(FIGURE, dpi=110)
print(f"figure: {FIGURE.relative_to(Path.cwd()) if FIGURE.is_relative_to(Path.cwd()) else FIGURE}")
