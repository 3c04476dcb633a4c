"""What a finished run shows: where the time went, by sums made by hand."""

from rich.console import Console

from effnet_jax.report import finish


def row(moment: float, at: int, event: str | None = None, **seconds: float) -> dict:
    happened = {"event": event} if event else {}
    return {"time": moment, "step": at, **happened, "seconds": seconds}


# Checkpoints at steps 10 and 15, a roll-back, and killed after step 18.
FIRST = [
    row(100, 0, "start", start=10),
    row(130, 10, start=1, compile=9, data=2, step=18),
    row(137, 10, evaluation=4, checkpoint=3),
    row(148, 15, step=10, checkpoint=1),
    row(160, 20, data=1, step=11),
    row(162, 15, "rollback", rework=2),
    row(165, 18, step=3),
]
# Its checkpoint 15 could not be read. The next one came after 55 s, and took 20 s to start.
SECOND = [row(240, 10, "start", start=20), row(270, 20, compile=5, step=25)]


def test_what_came_after_the_checkpoint_that_a_run_went_back_to_is_rework():
    first = finish.account(FIRST)
    parts = {"start": 11, "compile": 9, "data": 2, "step": 31, "evaluation": 4, "checkpoint": 4}
    assert first == {**parts, "profile": 0, "rework": 14, "downtime": 0}
    assert sum(first.values()) == 165 - 90  # Every second is somewhere, and once.
    both = finish.account(FIRST + SECOND)
    parts = {"start": 31, "compile": 14, "data": 2, "step": 43, "evaluation": 4, "checkpoint": 3}
    assert both == {**parts, "profile": 0, "rework": 28, "downtime": 55}
    assert sum(both.values()) == 270 - 90


def test_the_table_has_the_share_of_each_part_without_the_time_between_two_starts():
    console = Console(width=100)
    with console.capture() as captured:
        console.print(finish.time_table(FIRST + SECOND))
    shown = captured.get()
    assert "goodput 34.4%: 2 start(s), 1 roll-back(s)" in shown  # 43 of 125 s.
    assert "22.4%" in shown  # Rework.
    assert "not running, between starts" in shown
    assert "55.0" in shown


def test_results_go_by_evaluation_and_weights():
    scores = {f"val/{w}/{k}": v for w, k, v in (("raw", "top1", 0.5), ("raw", "top5", 0.75))}
    scores |= {"val/raw/count": 360, "real/ema/top1": 0.625, "real/ema/top5": 1.0}
    scores |= {"val/raw/mean_per_class": 0.475}
    scores |= {"val/raw/loss": 1.25, "real/ema/count": 40}
    console = Console(width=100)

    def cells(classes: int) -> list[list[str]]:
        with console.capture() as captured:
            console.print(finish.result_table(scores, "step 7", classes))
        rows = [line for line in captured.get().splitlines() if "%" in line]
        return [[cell.strip() for cell in row.strip("│ ").split("│")] for row in rows]

    assert cells(6) == [
        ["val/raw", "50.00%", "75.00%", "47.50%", "1.2500", "360"],
        ["real/ema", "62.50%", "100.00%", "", "", "40"],
    ]
    assert cells(5)[0] == ["val/raw", "50.00%", "47.50%", "1.2500", "360"]
