"""Tables as Markdown and CSV."""

from amess_hf.evaluation.tables import markdown_table, write_csv


def test_markdown_aligns_words_left_and_numbers_right():
    rows = [["full", 70.25, "yes"], ["no anchors", 69, "no"]]
    assert markdown_table(["variant", "accuracy (%)", "kept"], rows, left=(0, 2)) == (
        "| variant | accuracy (%) | kept |\n| --- | ---: | --- |\n| full | 70.25 | yes |\n| no anchors | 69 | no |\n"
    )
    assert markdown_table(["clips", "accuracy"], []).splitlines()[1] == "| --- | ---: |"


def test_csv_keeps_all_digits_and_quotes_commas(tmp_path):
    write_csv(tmp_path / "table.csv", ["what", "value"], [["a, b", 0.1 + 0.2], ["c", None]])
    assert (tmp_path / "table.csv").read_bytes() == b'what,value\n"a, b",0.30000000000000004\nc,\n'
