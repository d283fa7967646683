import copy
import json
import math
import re
import subprocess
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from harness.listed_figures import list_figures

from benchmarks import report
from benchmarks.decomposition_rows import OURS
from benchmarks.results import LEFT_OUT, load
from benchmarks.rows import ROWS, row
from benchmarks.sections import SECTIONS
from lip_fast.bench.rows import Target

COMMIT = "0123456789abcdef0123456789abcdef01234567"
README = f"# Title\n\nbefore\n{report.SLOT.begin}\nold\n{report.SLOT.end}\nafter\n"


def entry(key: str) -> dict[str, Any]:
    size = row(key)
    extra: dict[str, Any] = {
        "row": key,
        "peers": {
            name: {"median_us": 2000.0, "q1_us": 1900.0, "q3_us": 2100.0, "rounds": 5} for name in size.peers
        },
        "gates": [
            {"name": name, "value": 2e-6, "bound": 1e-5, "control": 1e-2, "passed": True}
            for name in size.gates
        ],
    }
    if size.kind in ("one-shot", "scaling"):
        extra["extra_peak_bytes"] = {"ours": 3_000_000, "reference": 60_000_000}
    extra["floors_us"] = {"copy": 250.0, "arithmetic": 500.0}
    if size.kind == "decomposition":
        names = (*size.peers, OURS)
        extra["facts"] = {which: dict.fromkeys(names, 1e-3) for which in ("excess", "values")}
    return {
        "name": f"test[{key}]",
        "stats": {"median": 1e-3, "q1": 0.9e-3, "q3": 1.1e-3},
        "extra_info": extra,
    }


def complete() -> dict[str, Any]:
    return {
        "machine_info": {
            "cpu": "Some CPU",
            "cores": 4,
            "threads": 2,
            "system": "Linux",
            "python": "3.11.7",
            "torch": "2.13.0",
            "node": "secret-host",
        },
        "commit_info": {"id": COMMIT, "dirty": False, "time": "2026-01-02T03:04:05+00:00"},
        "benchmarks": [entry(size.key) for size in ROWS],
        "datetime": "2026-01-03T04:05:06.789+00:00",
        "version": "5.3.1",
    }


class Files:
    """A result and a README in one folder, and what the command does with them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.result = folder / "cpu.json"
        self.readme = folder / "README.md"
        self.readme.write_text(README)

    def save(self, data: Any) -> None:
        self.result.write_text(json.dumps(data))

    def run(self, *options: str) -> int:
        return report.main([str(self.result), "--write", str(self.readme), *options])


@pytest.fixture
def files(tmp_path: Path) -> Files:
    files = Files(tmp_path)
    files.save(complete())
    return files


def paged(data: dict[str, Any], files: Files) -> str:
    files.save(data)
    return report.page(load(files.result, checkout=files.folder))


def cells(text: str, first: str) -> list[str]:
    """The cells of the table line that begins with ``first``."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {first} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def rendered(data: dict[str, Any], files: Files) -> str:
    files.save(data)
    return report.render(load(files.result, checkout=files.folder))


def of(data: dict[str, Any], key: str) -> dict[str, Any]:
    return next(b for b in data["benchmarks"] if b["extra_info"]["row"] == key)


# Tables ------------------------------------------------------------------------------------------------


def test_truncated_rows_show_times_ratios_and_targets(files: Files) -> None:
    data = complete()
    large = of(data, "truncated-adamw-1000x2048")
    large["stats"] |= {"median": 6e-3}
    for name, milliseconds in {"floor": 4.8, "full SVD": 240.0, "svd_lowrank": 12.0}.items():
        large["extra_info"]["peers"][name]["median_us"] = milliseconds * 1e3
    line = cells(rendered(data, files), "AdamW | 1000 x 2048 | 32 + 24")
    assert line == [
        *("AdamW", "1000 x 2048", "32 + 24"),
        *("2.00 ms", "4.80 ms", "500 µs, 12x", "6.00 ms", "1.25x (≤ 1.5 ✓)"),
        *("2.00 ms, 0.333x", "2.00 ms, 0.333x"),
        *("12 ms, 2x (≥ 2.2 ✗)", "240 ms, 40x (≥ 35 ✓)"),
        *("2.00 ms, 0.333x", "2e-06 (≤ 1e-05)"),
    ]


def test_rows_without_target_show_the_ratio_alone(files: Files) -> None:
    data = complete()
    of(data, "truncated-sgd-10x512")["stats"]["median"] = 0.5e-3
    of(data, "truncated-sgd-10x512")["extra_info"]["peers"]["full SVD"]["median_us"] = 250.0
    line = cells(rendered(data, files), "SGD | 10 x 512 | 4 + 3")
    assert line[3:8] == ["2.00 ms", "2.00 ms", "500 µs, 1x", "500 µs", "0.25x"]
    assert line[10:13] == ["2.00 ms, 4x", "250 µs, 0.5x", "2.00 ms, 4x"]


def test_exact_rows(files: Files) -> None:
    text = rendered(complete(), files)
    for size, k in (("1000 x 2048", "900"), ("100 x 512", "90"), ("10 x 512", "9")):
        line = cells(text, f"SGD | {size} | {k}")
        times = ["2.00 ms", "500 µs, 2x", "1.00 ms", "2.00 ms, 2x", "2.00 ms, 2x"]
        assert line == ["SGD", size, k, *times, "2e-06 (≤ 1e-05)"]


def test_a_peer_that_was_not_measured_is_shown_with_its_reason(files: Files) -> None:
    data = complete()
    found = of(data, "truncated-sgd-100x512")["extra_info"]
    del found["peers"]["torchao"]
    found["skipped"] = {"torchao": "torchao is not\n there"}
    text = rendered(data, files)
    assert cells(text, "SGD | 100 x 512 | 32 + 24")[-2] == "n/a"
    assert "Not measured: torchao (torchao is not there)." in text


def test_a_reason_that_says_nothing_is_none(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    data = complete()
    found = of(data, "truncated-sgd-100x512")["extra_info"]
    del found["peers"]["torchao"]
    found["skipped"] = {"torchao": ""}
    files.save(data)
    assert "median of torchao" in refused(files, capsys)
    data = complete()
    data["benchmarks"].remove(of(data, "exact-sgd-1000x2048"))
    data[LEFT_OUT] = {"exact-sgd-1000x2048": " "}
    files.save(data)
    assert "no result for exact-sgd-1000x2048" in refused(files, capsys)


def test_a_row_that_was_left_out_is_shown_with_its_reason(files: Files) -> None:
    data = complete()
    data["benchmarks"].remove(of(data, "exact-sgd-1000x2048"))
    data[LEFT_OUT] = {"exact-sgd-1000x2048": "needs 9 GB of memory, 1 GB are free"}
    text = rendered(data, files)
    assert "Not measured: `exact-sgd-1000x2048` (needs 9 GB of memory, 1 GB are free)." in text
    assert "| SGD | 1000 x 2048 | 900" not in text


def test_every_kind_of_row_has_one_section() -> None:
    kinds = [kind for section in SECTIONS for kind in section.kinds]
    assert sorted(kinds) == sorted({row.kind for row in ROWS})


def test_every_section_says_how_its_rows_are_run_again(files: Files) -> None:
    text = paged(complete(), files)
    for section in SECTIONS:
        part = text[text.index(f"## {section.title}\n") :]
        patterns = re.search(r"make bench-rows ROWS='([^']+)'", part)
        assert patterns is not None
        found = {row.key for row in ROWS if any(fnmatch(row.key, p) for p in patterns[1].split())}
        assert found == {row.key for row in ROWS if row.kind in section.kinds}


def test_optimizer_rows_are_held_against_the_base_step_and_the_products(files: Files) -> None:
    data = complete()
    for rest, milliseconds in (("keep", 6.4), ("drop", 6.6)):
        found = of(data, f"optimizer-1000x2048-{rest}")
        found["stats"] |= {"median": milliseconds * 1e-3}
        for name, microseconds in {"floor": 5000.0, "base step": 1500.0, "three products": 3500.0}.items():
            found["extra_info"]["peers"][name]["median_us"] = microseconds
    text = rendered(data, files)
    for rest, shown in (("keep", ["6.40 ms", "1.28x (≤ 1.3 ✓)"]), ("drop", ["6.60 ms", "1.32x (≤ 1.3 ✗)"])):
        line = cells(text, f"1000 x 2048 | {rest}")
        time, ratio = shown
        times = [time, "1.50 ms", "3.50 ms", f"500 µs, {float(time[:4]) / 0.5:.3g}x"]
        assert line == ["1000 x 2048", rest, *times, ratio, "2e-06 (≤ 1e-05)"]
    assert cells(text, "32000 x 1024 | drop")[-2] == "0.50x (≤ 1.3 ✓)"


def test_an_epoch_is_held_against_the_loop_by_hand(files: Files) -> None:
    data = complete()
    found = of(data, "epoch-mlp")
    found["stats"] |= {"median": 2.6}
    found["extra_info"]["peers"]["by hand"]["median_us"] = 2e6
    found["extra_info"]["peers"]["LIP in the step"]["median_us"] = 5.2e6
    line = cells(rendered(data, files), "60000 rows")
    times = ["2600 ms", "2000 ms", "1.30x (≤ 1.3 ✓)", "5200 ms", "2.00x"]
    assert line == ["60000 rows", *times, "2e-06 (≤ 1e-05)"]


def test_an_optimizer_without_lip_is_held_against_the_base_step(files: Files) -> None:
    data = complete()
    for key, microseconds in (("plain-optimizer-4x512", 1100.0), ("plain-optimizer-2x64", 1120.0)):
        found = of(data, key)
        found["stats"] |= {"median": microseconds * 1e-6}
        found["extra_info"]["peers"]["base step"]["median_us"] = 1000.0
    text = rendered(data, files)
    assert cells(text, "4, 512 wide") == ["4, 512 wide", "1.10 ms", "1.00 ms", "1.10x (≤ 1.1 ✓)"]
    assert cells(text, "2, 64 wide") == ["2, 64 wide", "1.12 ms", "1.00 ms", "1.12x (≤ 1.1 ✗)"]


def test_small_problems(files: Files) -> None:
    data = complete()
    of(data, "small-svd-64")["extra_info"]["peers"]["linalg.svd"]["median_us"] = 500.0
    of(data, "tail-svd-10x512")["extra_info"]["peers"]["default"]["median_us"] = 5000.0
    text = paged(data, files)
    times = ["1.00 ms", "2.00 ms", "500 µs", "2.00 ms"]
    assert cells(text, "64") == ["64", *times, "2e-06 (≤ 1e-05)"]
    line = ["10 x 512", "4", "1.00 ms", "5.00 ms", "5.0x faster", "2e-06 (≤ 1e-05)"]
    assert cells(text, "10 x 512 | 4") == line


def test_one_shot_row(files: Files) -> None:
    data = complete()
    of(data, "one-shot")["extra_info"]["peers"]["floor"]["median_us"] = 800.0
    of(data, "one-shot")["extra_info"]["extra_peak_bytes"] = {"ours": 30_000_000, "reference": 60_000_000}
    text = rendered(data, files)
    assert cells(text, "time") == ["time", "1.00 ms", "2.00 ms", "2.0x faster (≥ 4 ✗)", "800 µs", "1.25x"]
    memory = ["extra peak memory", "30.0 MB", "60.0 MB", "0.50x of it (≤ 0.333 ✗)", "", ""]
    assert cells(text, "extra peak memory") == memory


def test_says_where_and_how_but_not_the_name_of_the_machine(files: Files) -> None:
    text = rendered(complete(), files)
    about = (
        "Some CPU, 4 cores, 2 threads, Linux; Python 3.11.7, torch 2.13.0; commit `0123456789ab`, 2026-01-03"
    )
    assert text.startswith(about)
    assert "`make bench`" in text
    assert "secret-host" not in text
    data = complete()
    data["machine_info"]["environment"] = {"LIP_FAST_BACKEND": "default"}
    assert "torch 2.13.0, LIP_FAST_BACKEND=default; commit" in rendered(data, files)
    assert str(files.folder) not in text


def test_says_where_the_machine_was_busy(files: Files) -> None:
    data = complete()
    assert "busy" not in rendered(data, files)
    of(data, "exact-sgd-10x512")["stats"] |= {"q1": 1e-3, "q3": 1.6e-3}
    assert "1.5x apart in exact-sgd-10x512." in rendered(data, files)


def test_every_table_line_has_the_columns_of_its_header(files: Files) -> None:
    widths = []
    for block in paged(complete(), files).split("\n\n"):
        if block.startswith("|"):
            widths.append({line.count("|") for line in block.splitlines()})
    assert len(widths) >= len(SECTIONS)
    assert all(len(width) == 1 for width in widths)


@pytest.mark.parametrize(
    ("target", "met"),
    [
        (Target("time", "x", at_least=2), True),
        (Target("time", "x", at_least=2.01), False),
        (Target("time", "x", at_most=0.5), True),
        (Target("time", "x", at_most=0.49), False),
    ],
)
def test_target(target: Target, met: bool) -> None:
    assert target.met(1.0, 2.0) is met


# Writing -----------------------------------------------------------------------------------------------


def test_writes_between_the_markers_only(files: Files) -> None:
    assert files.run() == 0
    text = files.readme.read_text()
    assert text.startswith(f"# Title\n\nbefore\n{report.SLOT.begin}\nSome CPU")
    assert text.endswith(f"`.\n{report.SLOT.end}\nafter\n")
    assert "\nold\n" not in text


def test_writing_twice_changes_nothing(files: Files) -> None:
    assert files.run() == 0
    once = files.readme.read_bytes()
    assert files.run() == 0
    assert files.readme.read_bytes() == once
    assert sorted(path.name for path in files.folder.iterdir()) == ["README.md", "cpu.json"]


def test_keeps_bytes_and_mode_outside_the_markers(files: Files) -> None:
    files.readme.write_bytes(README.replace("\n", "\r\n").encode())
    files.readme.chmod(0o640)
    assert files.run() == 0
    assert files.readme.read_bytes().startswith(b"# Title\r\n\r\nbefore\r\n")
    assert files.readme.read_bytes().endswith(b"\r\nafter\r\n")
    assert files.readme.stat().st_mode & 0o777 == 0o640


def test_prints_without_write(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main([str(files.result), "--allow-dirty"]) == 0
    assert capsys.readouterr().out.count("### One optimizer step") == 2
    assert files.readme.read_text() == README


def test_details_and_figures(files: Files) -> None:
    pytest.importorskip("matplotlib")
    page = files.folder / "docs" / "numbers.md"
    page.parent.mkdir()
    assert files.run("--details", str(page)) == 0
    pictures = sorted(path.stem for path in (page.parent / "numbers").iterdir())
    assert pictures == sorted(section.name for section in SECTIONS if section.figure is not None)
    for name in pictures:
        assert (page.parent / "numbers" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert f"](numbers/{name}.png)" in page.read_text()
    for line in files.readme.read_text().splitlines():
        if line.startswith("!["):
            assert (files.folder / line.rpartition("(")[2].rstrip(")")).exists()


# Refusals ----------------------------------------------------------------------------------------------


def refused(files: Files, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """Run, expecting one line on stderr, exit code 2 and an untouched README; the line."""
    before = files.readme.read_bytes() if files.readme.exists() else None
    listing = sorted(files.folder.iterdir())
    assert files.run(*options) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("benchmarks.report: ")
    assert captured.err.count("\n") == 1
    assert (files.readme.read_bytes() if files.readme.exists() else None) == before
    assert sorted(files.folder.iterdir()) == listing
    return captured.err


def _gate(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        of(data, "truncated-sgd-100x512")["extra_info"]["gates"][1][name] = value

    return change


def _set(value: Any, *path: Any) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        place: Any = data
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value

    return change


def _drop(*path: Any) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        place: Any = data
        for step in path[:-1]:
            place = place[step]
        del place[path[-1]]

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_gate("passed", False), "failed the check 'reconstruction'"),
        (_gate("value", 2e-5), "failed the check 'reconstruction'"),
        (_gate("value", math.nan), "failed the check 'reconstruction'"),
        (_gate("value", None), "failed the check 'reconstruction'"),
        (_gate("control", 1e-6), "failed the check 'reconstruction'"),
        (_gate("name", "other"), "lacks the check 'reconstruction'"),
        (_gate("name", None), "check without a name"),
        (_drop("benchmarks", 1, "extra_info", "gates"), "lacks the check 'distance'"),
        (_drop("benchmarks", 1), "no result for truncated-adamw-1000x2048"),
        (_set([], "benchmarks"), "no result for one-shot, truncated"),
        (_drop("benchmarks", 1, "extra_info", "peers", "full SVD"), "median of full SVD"),
        (_set(0, "benchmarks", 1, "extra_info", "peers", "floor", "median_us"), "median of floor"),
        (_drop("benchmarks", 1, "stats"), "has no timings"),
        (_set(math.nan, "benchmarks", 1, "stats", "median"), "positive number, got nan"),
        (_set(True, "benchmarks", 1, "stats", "median"), "positive number, got True"),
        (_set("1", "benchmarks", 1, "stats", "q1"), "positive number, got '1'"),
        (_drop("benchmarks", 0, "extra_info", "extra_peak_bytes"), "peak memory of ours"),
        (_set(0, "benchmarks", 0, "extra_info", "extra_peak_bytes", "ours"), "peak memory of ours"),
        (_set("one-shot", "benchmarks", 1, "extra_info", "row"), "row one-shot twice"),
        (_set("foreign", "benchmarks", 1, "extra_info", "row"), "not a row of these benchmarks: 'foreign'"),
        (_set({}, "benchmarks", 1, "extra_info"), "not a row of these benchmarks: None"),
        (_set(3, "benchmarks", 1), "not a row of these benchmarks: None"),
        (_drop("machine_info"), "does not describe the machine"),
        (_drop("machine_info", "torch"), "machine_info.torch"),
        (_set({"brand_raw": "x"}, "machine_info", "cpu"), "machine_info.cpu"),
        (_drop("benchmarks"), "not a result of pytest-benchmark"),
        (_drop("datetime"), "date of the run"),
        (_set(True, "commit_info", "dirty"), "changes that are in no commit"),
        (_drop("commit_info", "dirty"), "changes that are in no commit"),
        (_set("unversioned", "commit_info", "id"), "unknown commit, 'unversioned'"),
        (_drop("commit_info"), "unknown commit, None"),
    ],
)
def test_refuses(
    files: Files,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[dict[str, Any]], None],
    reason: str,
) -> None:
    data = complete()
    change(data)
    files.save(data)
    assert reason in refused(files, capsys)


@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2]", b'"text"', b"\xff\xfe\x00", b"null"])
def test_refuses_foreign_files(files: Files, capsys: pytest.CaptureFixture[str], content: bytes) -> None:
    files.result.write_bytes(content)
    assert str(files.result) in refused(files, capsys)


def test_refuses_a_missing_result(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    files.result.unlink()
    assert "No such file" in refused(files, capsys)


@pytest.mark.parametrize(
    "text",
    [
        "no markers\n",
        f"{report.SLOT.begin}\n",
        f"{report.SLOT.end}\n{report.SLOT.begin}\n",
        README + README,
    ],
)
def test_refuses_a_readme_without_its_markers(
    files: Files, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    list_figures(monkeypatch)
    files.readme.write_text(text)
    said = refused(files, capsys, "--details", str(files.folder / "page.md"))
    assert (
        f"expected {report.SLOT.begin} and, after it, {report.SLOT.end} once each in {files.readme}" in said
    )


def test_refuses_a_readme_that_is_not_there_or_no_text(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    files.readme.write_bytes(b"\xff\xfe")
    assert "not UTF-8" in refused(files, capsys)
    files.readme.unlink()
    assert "No such file" in refused(files, capsys)


def test_refuses_details_that_are_no_markdown(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    assert "expected a .md file" in refused(files, capsys, "--details", str(files.folder / "page.html"))


def test_bad_options_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        report.main(["--unknown"])
    assert exit_info.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_allow_dirty_accepts_and_says_so(files: Files) -> None:
    data = complete()
    data["commit_info"]["dirty"] = True
    files.save(data)
    assert files.run("--allow-dirty") == 0
    assert "commit `0123456789ab` with changes, 2026-01-03" in files.readme.read_text()
    data["commit_info"]["id"] = "unversioned"
    files.save(data)
    assert files.run("--allow-dirty") == 0
    assert "unknown commit with changes" in files.readme.read_text()


def test_allow_dirty_does_not_accept_a_failed_check(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    data = complete()
    _gate("passed", False)(data)
    files.save(data)
    assert "failed the check" in refused(files, capsys, "--allow-dirty")


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=name", "-c", "user.email=name@example.org", "-c", "commit.gpgsign=false")
    command = ["git", *identity, *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def test_in_a_checkout_the_commit_must_exist(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    git(files.folder, "init", "--quiet")
    git(files.folder, "commit", "--quiet", "--allow-empty", "--message", "first")
    assert f"unknown commit, '{COMMIT}'" in refused(files, capsys)
    data = complete()
    data["commit_info"]["id"] = git(files.folder, "rev-parse", "HEAD")
    files.save(data)
    assert files.run() == 0


def test_complete_results_are_accepted_unchanged(files: Files) -> None:
    data = complete()
    before = copy.deepcopy(data)
    rendered(data, files)
    assert data == before
