"""`make gpu-check` in a small size, on whatever device there is."""

from launch.benchmarks import accelerator


def test_every_check_finds_what_it_looks_for(tmp_path):
    found = accelerator.check(60, tmp_path, quick=True)
    assert list(found) == list(accelerator.CHECKS)
    assert all(one["rows"] and not one["cut"] for one in found.values())
    assert all(row["same bits"] and row["of the same bits without"] for row in found["resume"]["rows"])
    assert all(row["ok"] for name in ("parity", "steps") for row in found[name]["rows"])
    assert "| preset |" in (tmp_path / "accelerator.md").read_text()
