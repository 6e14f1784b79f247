"""What can be done with a recording: play it against an executor, or check its plans offline."""
