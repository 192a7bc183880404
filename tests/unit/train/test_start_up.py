"""Where the time of a start goes."""

from __future__ import annotations

from pipeline.train.start_up import StartUpClock


def test_phases_add_up_to_the_time_since_the_process_began() -> None:
    moments = iter([12.0, 12.5, 13.0, 15.0, 15.25])
    clock = StartUpClock(began=10.0, now=lambda: next(moments))
    clock.enter("data")
    clock.enter("import")  # again
    clock.enter("model")
    clock.enter("load")
    assert clock.read() == {"import": 2.5, "data": 0.5, "model": 2.0, "load": 0.25}
