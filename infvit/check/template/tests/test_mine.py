"""Every check of infvit on the attention: shapes, masks, precision, gradients, FLOPs."""

from mine_attn import Mine

from infvit.check import check


def test_no_check_fails() -> None:
    report = check(Mine, fast=True)
    assert not report.failed, report
