"""The load benchmark: it passes a page that answers rightly, and tells on one that does not."""

import pytest
from serving import served

from benchmarks import load
from page.work import inspection
from pipelines.verdicts import decide


@pytest.mark.parametrize("offset", [0, -1e6])
def test_wrong_answers_are_found_and_right_ones_pass(tiny_checkpoint, tmp_path, monkeypatch, capsys, offset):
    monkeypatch.setattr(load, "SHARES", {"inspect": 50, "inspect_batch": 20, "models": 10, "refused": 20})

    def decide_otherwise(calibration, maps, scores, *args):
        return decide(calibration, maps, scores + offset, *args)

    monkeypatch.setattr(inspection, "decide", decide_otherwise)  # of the page alone
    with served(tiny_checkpoint, tmp_path) as (url, _):
        arguments = ["--requests", "12", "--clients", "2", "--url", url, "--model", str(tiny_checkpoint)]
        with pytest.raises(SystemExit) as ended:
            load.main(arguments)
    rows = {row.split(" | ")[0].strip("| "): row.split(" | ")[1:4] for row in capsys.readouterr().out.splitlines()}
    assert ended.value.code == (1 if offset else 0)
    assert rows["all"][:2] == ["12", "0"]
    assert (int(rows["inspect"][2]) > 0) == bool(offset)
    assert rows["refused"][2] == rows["models"][2] == "0"
