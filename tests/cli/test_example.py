"""``normscope example``: the script that it prints runs, and normscope finds no defect in it."""

import normscope as ns
from normscope.records import Severity
from normscope.usercode import load_file


def test_the_script_is_printed_whole_and_is_sound(run, tmp_path, capfd):
    script = tmp_path / "train.py"
    script.write_text(run("example").stdout, encoding="utf-8")
    module = load_file(script)
    case = module.make_case()
    assert [found.code for found in ns.check(case) if found.severity is not Severity.INFO] == []
    module.main(epochs=1)
    assert "training steps" in capfd.readouterr().out
    found = ns.compare(f"{script}:make_case", seeds=1, steps=2, questions=["speed"], workers=1, out=tmp_path / "run")
    assert list(found.arms) == ["own", "none"] or list(found.arms) == ["own", "none", "rescaled"]
