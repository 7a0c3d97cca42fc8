"""The library limits BLAS to one thread and restores the host process's setting."""

from __future__ import annotations

from threadpoolctl import ThreadpoolController

from bptt_core.kernels.blas import OneThread


def threads() -> list[int]:
    libraries = ThreadpoolController().lib_controllers
    return [each.get_num_threads() for each in libraries if "scipy" in each.filepath]


def test_one_thread_inside_and_the_hosts_setting_outside() -> None:
    one_thread = OneThread()
    with ThreadpoolController().limit(limits=2, user_api="blas"):
        before = threads()
        assert before
        with one_thread:
            assert set(threads()) == {1}
            with one_thread:
                assert set(threads()) == {1}
            assert set(threads()) == {1}
        assert threads() == before
