"""Profiles: those that ship are good, those that are not are told why, and a run follows from its seed alone."""

from pathlib import Path

import pytest

from nanoserve_client.chaos.profile import TARGETS, load_profile, parse_profile, profile_names
from nanoserve_client.chaos.schedule import draw_of_run, make_schedule
from nanoserve_client.errors import InvalidRequest

KILL = '[[fault]]\nkind = "kill"\ntarget = "executor"\n'


def test_every_profile_that_ships_loads_and_says_what_it_is():
    profiles = [load_profile(name) for name in profile_names()]
    assert len(profiles) >= 8
    assert all(profile.summary and profile.faults for profile in profiles)


def test_the_profiles_together_have_every_kind_of_fault_on_every_target():
    drawn = {(spec.kind, spec.target) for name in profile_names() for spec in load_profile(name).faults}
    assert drawn == {(kind, target) for kind, targets in TARGETS.items() for target in targets}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("", "fault"),
        ('summary = "x"', "fault"),
        (KILL.replace("kill", "tickle"), "fault.kind"),
        (KILL.replace("executor", "client"), "fault.target"),
        (KILL + "weight = 0", "fault.weight"),
        (KILL + "seconds = [2, 1]", "fault.seconds"),
        (KILL + 'ways = ["leave"]', "fault.ways"),
        (KILL + "colour = 1", "colour"),
        ("streams = [0, 4]\n" + KILL, "streams"),
        ("nonsense = 1\n" + KILL, "nonsense"),
        (KILL.replace("executor", "api_worker"), "api_workers"),
        ("[[fault", "Expected"),
    ],
)
def test_a_bad_profile_is_refused_by_the_name_of_its_field(text: str, name: str):
    summary = "" if text.startswith("summary") else 'summary = "s"\n'
    with pytest.raises(InvalidRequest, match=name):
        parse_profile("p", summary + text)


def test_a_profile_is_called_what_its_file_is_and_has_the_faults_of_its_tables():
    own = 'summary = "s"\nname = "other"\nfaults = [1]\n'
    assert parse_profile("p", own + KILL) == parse_profile("p", 'summary = "s"\n' + KILL)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path):
    path = tmp_path / "p.toml"
    path.write_bytes(b'summary = "\xff"')
    with pytest.raises(InvalidRequest, match=r"--profile.*UTF-8"):
        load_profile(str(path))


def test_an_unknown_profile_is_told_which_there_are():
    with pytest.raises(InvalidRequest, match=r"--profile: 'nope'.*everything.*kill"):
        load_profile("nope")


def test_a_schedule_follows_from_profile_seed_and_number_alone():
    profile = load_profile("everything")
    schedules = [make_schedule(profile, draw_of_run(profile, 3, number)) for number in range(50)]
    again = [make_schedule(profile, draw_of_run(profile, 3, number)) for number in range(50)]
    other = [make_schedule(profile, draw_of_run(profile, 4, number)) for number in range(50)]
    assert schedules == again
    assert schedules != other
    assert len({fault.kind for schedule in schedules for fault in schedule}) > 8


def test_every_run_has_a_fault_that_comes_while_its_streams_run():
    for name in profile_names():
        profile = load_profile(name)
        for number in range(30):
            schedule = make_schedule(profile, draw_of_run(profile, 0, number))
            assert profile.faults_per_run[0] <= len(schedule) <= profile.faults_per_run[1]
            assert all(0 < fault.after < 1 for fault in schedule)
            assert sorted(schedule, key=lambda fault: fault.after) == list(schedule)
