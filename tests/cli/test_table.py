from lip_fast.cli.table import aligned, markdown


def test_names_are_aligned_to_the_left_and_numbers_to_the_right() -> None:
    rows = [["head", "ours", "x"], ["10 x 512", "1", ""], ["short"]]
    assert aligned(rows, names=1) == "head      ours  x\n10 x 512     1\nshort"
    assert aligned(rows) == "head      ours  x\n10 x 512  1\nshort"
    assert aligned(rows, names=1, least=5, indent="  ").splitlines()[0] == "  head       ours      x"


def test_markdown() -> None:
    rows = [["name", "n"], ["a|b", "1"]]
    assert markdown(rows) == "| name | n |\n| --- | ---: |\n| a\\|b | 1 |"
    assert markdown(rows, names=2).splitlines()[1] == "| --- | --- |"
    assert markdown(rows, padded=True) == "| name | n |\n| ---- | - |\n| a\\|b | 1 |"
