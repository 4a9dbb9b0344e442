from hypothesis import given, settings
from hypothesis import strategies as st

from activation_dataset.input_counts import Written
from activation_dataset.metadata import InputFile
from corpus.task import Notice, RejectedTask
from tests.transforms.merges import any_merge
from transforms.report_inputs import GatherReport, InputReport

REJECTED = RejectedTask("a.json", "x", "bad_cell", "", "task", 2)
NOTICE = Notice("a.json", "y", "same_content", "")
FILE = InputFile("a.json", 3, "00")


@settings(max_examples=30)
@given(st.data())
def test_everything_is_reported_whatever_the_merges(data):
    reported = [Written(1, 2), REJECTED, NOTICE, FILE, "notes.txt", Written(1, 3), REJECTED]
    found = data.draw(any_merge(GatherReport(), reported))
    assert found == InputReport(
        Written(2, 5), (REJECTED, REJECTED), (NOTICE,), (FILE,), ("notes.txt",)
    )
    assert (found.counts.samples.written, found.counts.samples.read) == (5, 9)
