"""The decisions are restic's: both are asked about the same points, with the same rules, for the same reasons."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import time
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from incremental_backups_tools.points.retention import (
    UNLIMITED,
    Age,
    KeepPolicy,
    Point,
    parse_age,
    plan_retention,
)
from incremental_backups_tools.repository.layout import encode_backup_id

ZONE = "Europe/Berlin"
POINTS = 16
POLICIES = 24
PERIODS = ["hourly", "daily", "weekly", "monthly", "yearly"]
EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")

# Ends of days, weeks, months and years, both clock changes, and a day that not every month has.
CORNERS = [
    "2019-12-31 23:59:59",
    "2020-01-01 00:00:00",
    "2020-01-01 00:59:59",
    "2020-01-05 23:30:00",
    "2020-01-06 00:30:00",
    "2020-02-29 12:00:00",
    "2020-03-29 01:30:00",
    "2020-03-29 03:30:00",
    "2020-03-31 12:00:00",
    "2020-10-25 00:30:00",
    "2020-10-25 23:30:00",
    "2020-12-31 12:00:00",
]


class Restic:
    """A repository of restic's, and the program."""

    def __init__(self, directory: Path, program: str = "restic") -> None:
        self._command = [program, "--no-cache", "-r", str(directory / "repository")]
        self._environment = {**os.environ, "TZ": ZONE, "RESTIC_PASSWORD": "x", "HOME": str(directory)}
        self._file = directory / "file"
        self._file.write_bytes(b"1")
        self.run("init")
        number = re.search(r"restic (\d+)\.(\d+)", self.run("version"))
        assert number is not None
        # The oldest point has been kept while a rule has some left since 0.16, and the reasons say so since 0.17.
        self.version = (int(number[1]), int(number[2]))

    def run(self, *arguments: str) -> str:
        command = [*self._command, *arguments]
        return subprocess.run(
            command, env=self._environment, check=True, capture_output=True, text=True, timeout=120
        ).stdout

    def back_up(self, local_time: str, tags: list[str]) -> None:
        self.run("backup", "--time", local_time, "--tag", ",".join(tags), str(self._file))

    def forget(self, subset: str, policy: KeepPolicy) -> tuple[list[Point], dict[str, tuple[str, ...]]]:
        """The points tagged *subset*, and the reasons for which each of those that stay does."""
        arguments = [*options_of(policy), "--tag", subset, "--group-by", "", "--dry-run", "--json"]
        (answer,) = json.loads(self.run("forget", *arguments))
        snapshots = [*(answer["keep"] or []), *(answer["remove"] or [])]
        points = [Point(backup_id=id_of(found), tags=tuple(found.get("tags") or ())) for found in snapshots]
        reasons = {id_of(kept["snapshot"]): tuple(kept["matches"]) for kept in answer["reasons"] or []}
        assert set(reasons) == {id_of(found) for found in answer["keep"] or []}
        return points, reasons


def id_of(snapshot: Mapping[str, str]) -> str:
    moment = datetime.fromisoformat(snapshot["time"].replace("Z", "+00:00"))
    return encode_backup_id((moment - EPOCH) // timedelta(microseconds=1) * 1000)


def options_of(policy: KeepPolicy) -> list[str]:
    options = []
    for name in ("last", *PERIODS):
        if count := policy.count_of(name):
            options += [f"--keep-{name}", "unlimited" if count == UNLIMITED else str(count)]
        if name != "last" and (age := policy.age_of(name)):
            options += [f"--keep-within-{name}", str(age)]
    if policy.keep_within:
        options += ["--keep-within", str(policy.keep_within)]
    for tags in policy.keep_tags:
        options += ["--keep-tag", ",".join(tags)]
    return options


def random_age(rng: random.Random) -> Age:
    return parse_age(
        rng.choice(["1h", "5d", "1m", "1m2d", "2m", "11m30d", "1y", "1y2m3d4h", "9999y", "36d23h"])
    )


def random_policy(rng: random.Random, *, unlimited: bool) -> KeepPolicy:
    rules: dict[str, int | Age] = {}
    for name in rng.sample(["last", *PERIODS], rng.randrange(3)):
        rules[f"keep_{name}"] = rng.choice([1, 2, 3, 5, 99, *([UNLIMITED] if unlimited else [])])
    for name in rng.sample(["", *PERIODS], rng.randrange(0 if rules else 1, 3)):
        rules["keep_within" + (f"_{name}" if name else "")] = random_age(rng)
    tags = rng.choice([(), (), (("red",),), (("red", "blue"),), (("red", "blue"), ("green",))])
    return KeepPolicy(keep_tags=tags, **rules)  # type: ignore[arg-type]


def random_local_time(rng: random.Random) -> str:
    if rng.random() < 0.5:
        near = datetime.fromisoformat(rng.choice(CORNERS)) + timedelta(minutes=rng.randrange(-300, 300))
    else:
        near = datetime(2020, 1, 1) + timedelta(minutes=rng.randrange(-400, 400) * 1440 + rng.randrange(1440))
    # Not the hour that the spring leaves out: restic may refuse it.
    return str(
        near if not datetime(2020, 3, 29, 2) <= near < datetime(2020, 3, 29, 3) else datetime(2020, 3, 29)
    )


def fill(restic: Restic, rng: random.Random, count: int) -> None:
    times = dict.fromkeys(rng.sample(CORNERS, count // 2))
    while len(times) < count:
        times[random_local_time(rng)] = None
    for local_time in times:
        tags = rng.sample(["red", "blue", "green"], rng.randrange(3)) + rng.sample(["s0", "s1", "s2"], 2)
        restic.back_up(local_time, tags)


def assert_same_decisions(restic: Restic, subset: str, policy: KeepPolicy) -> None:
    points, theirs = restic.forget(subset, policy)
    assert len(points) > POINTS // 3
    ours = {}
    for decision in plan_retention(points, policy, now_ns=time.time_ns(), timezone=ZoneInfo(ZONE)):
        reasons = [reason.replace(" backup", " snapshot") for reason in decision.reasons]
        if restic.version < (0, 16):
            reasons = [reason for reason in reasons if not reason.startswith("oldest ")]
        if restic.version < (0, 17):
            reasons = [reason.removeprefix("oldest ") for reason in reasons]
        if reasons:
            ours[decision.backup_id] = tuple(reasons)
    assert ours == theirs, options_of(policy)


@pytest.fixture(scope="module")
def restic(tmp_path_factory: pytest.TempPathFactory) -> Restic:
    restic = Restic(tmp_path_factory.mktemp("restic"))
    fill(restic, random.Random(7), POINTS)
    return restic


def test_random_policies(restic: Restic) -> None:
    rng = random.Random(8)
    for _ in range(POLICIES):
        policy = random_policy(rng, unlimited=restic.version >= (0, 16))
        assert_same_decisions(restic, rng.choice(["s0", "s1", "s2"]), policy)
