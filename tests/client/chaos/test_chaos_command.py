"""What `nanoserve chaos` says to whoever reads it."""

import shlex

from nanoserve_client.chaos.command import again, build_parser


def test_a_run_is_played_again_by_the_command_that_is_told():
    words = ["--profile=my faults.toml", "--executor=cpu", "--model=a b", "--seed=3", "--runs=50", "--jobs=2"]
    asked = build_parser().parse_args([*words, "--executor-flag=--x=1", "--executor-flag=--y"])
    program, command, *told = shlex.split(again(asked, 17))
    assert (program, command) == ("nanoserve", "chaos")
    one = build_parser().parse_args(told)
    assert vars(one) == {**vars(asked), "first_run": 17, "runs": 1, "jobs": 1}
