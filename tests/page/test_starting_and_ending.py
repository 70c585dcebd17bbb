"""How the page's process begins and ends: an address that is taken, and an end while a network computes."""

import socket
import subprocess
import sys
import threading
import time

import pytest
from paths import ROOT
from sentences import assert_sentence, refused

import app
from page.models.inference_queue import Turns
from page.server.listening import check_address

ENDING = """
import threading, time, torch
from contextlib import closing
from page.models.inference_queue import Turns
turns, image, begun = Turns(), torch.rand(1, 64, 96, 96), threading.Event()
convolution = torch.nn.Conv2d(64, 64, 3)

def compute():
    while True:
        with turns.take(), torch.inference_mode():
            begun.set()
            for _ in range(20):
                convolution(image)

with closing(turns):
    threading.Thread(target=compute, daemon=True).start()
    begun.wait()
"""


@pytest.fixture
def port_in_use():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


def test_a_port_in_use_ends_the_command_with_one_sentence_before_a_model_is_loaded(port_in_use, tmp_path):
    with pytest.raises(SystemExit) as ended:
        app.main(["--port", str(port_in_use), "--models", str(tmp_path / "missing")])
    assert_sentence(ended.value.code, f"port {port_in_use} is in use", "--port")


@pytest.mark.parametrize(("host", "port"), [("192.0.2.1", 7860), ("no host", 7860), ("127.0.0.1", 70000)])
def test_an_address_that_is_not_this_machines_is_refused_with_one_sentence(host, port):
    with refused(ValueError, host, str(port), "--host or --port"):
        check_address(host, port)


def test_a_free_port_is_accepted_and_left_free(port_in_use):
    check_address(None, None)
    check_address("0.0.0.0", port_in_use + 1)
    check_address("[::1]" if socket.has_ipv6 else None, port_in_use + 1)
    check_address(None, port_in_use + 1)


def test_closed_turns_wait_for_the_one_in_hand_and_let_no_other_begin():
    turns, may_end, taken = Turns(slice_seconds=0), threading.Event(), []

    def take(name, until):
        with turns.take():
            taken.append(name)
            until.wait()

    first = threading.Thread(target=take, args=("first", may_end))
    first.start()
    while not taken:
        time.sleep(0.01)
    threading.Thread(target=take, args=("second", may_end), daemon=True).start()
    closing = threading.Thread(target=turns.close)
    closing.start()
    closing.join(0.1)
    assert closing.is_alive()
    may_end.set()
    closing.join(30)
    assert not closing.is_alive()
    assert taken == ["first"]


def test_python_ends_in_peace_while_a_network_computes():
    done = subprocess.run([sys.executable, "-c", ENDING], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
