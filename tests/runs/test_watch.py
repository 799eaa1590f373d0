"""A question asked in the background: a failure is not an answer, and yes is the last one."""

from __future__ import annotations

import threading

from gaeanet.runs.watch import Watch


def test_it_asks_until_the_answer_is_yes() -> None:
    answers, done = iter([False, OSError("away"), True]), threading.Event()

    def question() -> bool:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        if answer:
            done.set()
        return answer

    watch = Watch(question, interval=0.001)
    assert done.wait(10)
    while not watch.answered_yes:
        pass
    assert next(answers, None) is None


def test_it_asks_no_more_when_closed() -> None:
    asked = threading.Semaphore(0)
    watch = Watch(lambda: asked.release() or False, interval=0.001)
    assert asked.acquire(timeout=10)
    watch.close()
    while asked.acquire(timeout=0.2):
        pass
    assert not watch.answered_yes
