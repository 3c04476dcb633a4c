"""From the results of a grid to coefficients, a config that scales by them, and a picture."""

import csv

import pytest

from configs import cluttered_digits
from effnet_jax import experiments, models
from effnet_jax.errors import UserError
from effnet_jax.sweeps.folder import Folder
from effnet_jax.sweeps.runs import make_schedule
from effnet_jax.tools import search_scaling

# Raw top-1 of the candidates by seed; the second has the best mean, the third the best run.
TOP1 = {(1.4, 1.0, 1.2): (0.80, 0.82), (1.0, 1.2, 1.2): (0.90, 0.88), (2.0, 1.0, 1.0): (0.7, 0.93)}


def test_the_best_mean_becomes_a_config_that_phi_scales(tmp_path, capsys, monkeypatch):
    config = cluttered_digits.get_config()
    config.model.num_classes = 10
    schedule = make_schedule(config, "seeds:2,grid:step=0.2,tolerance=0.1,equal=1")
    done = {"train_minutes": 1.0, "wall_minutes": 1.2, "threads": 1, "jax": "1"}
    done |= {"device": "cpu", "commit": "abc", "time": "2026-01-01T00:00:00+00:00"}

    def scores(self, name):
        for scheduled in schedule:
            model = scheduled.config.model
            point = (model.alpha, model.beta, model.gamma)
            if scheduled.run.name == name and point in TOP1:
                top1 = TOP1[point][scheduled.config.seed]
                scores = {"val/raw/top1": top1, "val/raw/count": 2000, "val/ema/top1": top1 - 0.1}
                return scores | done
        return None

    monkeypatch.setattr(Folder, "done", scores)
    path = tmp_path / "results.csv"
    Folder(tmp_path).write_results(schedule, path)
    with open(path, newline="") as file:
        assert len(list(csv.DictReader(file))) == 6

    with open(path, "a") as file:  # Another search's rows in the same file don't count.
        other = path.read_text().splitlines()[1].replace("step=0.2", "step=0.3")
        file.write(other.replace("1.4, 1, 1.2", "9, 9, 9").replace(",0.8,", ",0.99,") + "\n")
    search_scaling.propose(config, path, "val/raw", tmp_path, schedule[0].sweep)
    out = capsys.readouterr().out
    assert "alpha=1 beta=1.2 gamma=1.2" in out and "81.00%" in out
    # 0.89 leads 0.815, the mean of 0.7 and 0.93; sd of 0.90 and 0.88 is 0.01414.
    assert "leads the next by 7.50%; its standard deviation over seeds is 1.41%" in out
    assert (tmp_path / "search.png").stat().st_size > 10_000

    again = experiments.read(f"{tmp_path}/scaling.json").model
    assert again.phi == 0
    base = models.coefficients(config.model)
    assert models.coefficients(again) == base  # phi = 0 is the network that was scaled.
    again = experiments.read(f"{tmp_path}/scaling.json:phi=2").model
    scaled = models.coefficients(again)
    assert scaled.width == pytest.approx(base.width * 1.2**2)
    assert scaled.depth == pytest.approx(base.depth)
    assert scaled.resolution == pytest.approx(base.resolution * 1.2**2, abs=0.5)


def test_the_evaluation_that_counts_is_checked_before_the_search(tmp_path):
    flags = ["--evaluation=val/emma", f"--workdir={tmp_path / 'new'}"]
    with pytest.raises(UserError, match=r"unknown --evaluation 'val/emma'; did you mean: val/ema"):
        search_scaling.main(search_scaling.PARSER.parse_args(flags))
    assert not (tmp_path / "new").exists()
