"""Rows as a sweep writes them, with made-up accuracies."""

import csv
import pathlib

HEADER = (
    "sweep,name,series,label,data,seed,base,phi,alpha,beta,gamma,width,depth,resolution,parameters,"
    "multiply_adds,epochs,batch_size,val/raw/top1,val/raw/count,val/ema/top1,val/ema/top5,"
    "val/ema/count,train_minutes,wall_minutes,threads,jax,jaxlib,device,devices,cpus,python,commit,time"
)
COLUMNS = next(csv.reader([HEADER]))
DEFAULTS = {
    "sweep": "methods",
    "series": "width",
    "label": "2x (w=1.5)",
    "data": "cluttered_digits/test",
    "seed": 0,
    "base": "efficientnet",
    "alpha": 1.2,
    "beta": 1.1,
    "gamma": 1.15,
    "width": 0.5,
    "depth": 0.3,
    "resolution": 48,
    "parameters": 400_000,
    "multiply_adds": 6_123_456,
    "epochs": 8.0,
    "batch_size": 64,
    "val/raw/top1": 0.5,
    "val/raw/count": 2000.0,
    "val/ema/count": 2000.0,
    "train_minutes": 1.5,
    "jax": "0.10.2",
    "device": "cpu",
    "commit": "abc",
    "time": "2026-11-22T10:00:00+00:00",
}


def row(top1: float | str = 0.75, **changes) -> dict:
    """A row with the given accuracy of the averaged weights, and other columns by name."""
    assert changes.keys() <= set(COLUMNS)
    return dict.fromkeys(COLUMNS, "") | DEFAULTS | {"val/ema/top1": top1} | changes


def write(path: pathlib.Path, rows: list[dict]) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        columns = dict.fromkeys([*COLUMNS, *(key for row in rows for key in row)])
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


# Of eval.py: B5 and B4 with the classes of Flowers and Pets, and one that is no network of ours.
EVALUATIONS = """\
data,identity,phi,width,depth,resolution,parameters,batch_size,epochs,seed,top1,top5,loss,mean_per_class,count,step,weights,jax,jaxlib,device,devices,cpus,python,commit,time
oxford_flowers102/test,6149 records 1,0.0,1.6,2.2,456,28549782,256,350.0,0,0.9,0.99,0.1,0.985,6149,2000,ema,0.10,0.10,cpu,1,2,3.11,abc,2026-11-26T09:20:05+00:00
oxford_flowers102/test,6149 records 1,0.0,1.6,2.2,456,28549782,256,350.0,0,0.8,0.99,0.1,0.7,6149,2000,raw,0.10,0.10,cpu,1,2,3.11,abc,2026-11-26T09:20:06+00:00
oxford_flowers102/validation,1020 records 1,0.0,1.6,2.2,456,28549782,256,350.0,0,1.0,1.0,0.1,1.0,1020,2000,ema,0.10,0.10,cpu,1,2,3.11,abc,2026-11-26T09:20:07+00:00
oxford_iiit_pet/test,3669 records 1,,1.4,1.8,380,17614957,256,350.0,0,0.94,0.99,0.1,,3669,2000,ema,0.10,0.10,cpu,1,2,3.11,abc,2026-11-26T09:20:08+00:00
oxford_iiit_pet/test,3669 records 1,,1.4,1.8,380,5,256,350.0,0,0.94,0.99,0.1,,3669,2000,ema,0.10,0.10,cpu,1,2,3.11,abc,2026-11-26T09:20:08+00:00
"""  # noqa: E501


def swept(sweep: str, *values: dict, **changes) -> list[dict]:
    """Rows of a sweep of keys: for each of `values` two seeds, better from row to row."""
    rows = []
    for number, each in enumerate(values):
        label = ", ".join(f"{key}={text}" for key, text in each.items())
        keys = {f"config.{key}": text for key, text in each.items()}
        for seed in (0, 1):
            top1 = 0.5 + 0.05 * number + 0.02 * seed
            rows.append(row(top1, sweep=sweep, label=label, seed=seed, **changes) | keys)
    return rows


def methods(seeds: int = 3) -> list[dict]:
    """The base and four methods at two multiples, with a sample deviation of 1 point."""
    rows = []
    for seed in range(seeds):
        shared = {"sweep": f"seeds:{seeds},methods:2,4", "seed": seed}
        shift = 0.01 * (seed - 1)
        rows.append(
            row(**shared, series="base", label="1x", multiply_adds=3_000_000, top1=0.7 + shift)
        )
        for multiple in (2, 4):
            for number, method in enumerate(("width", "depth", "resolution", "compound")):
                cost = multiple * 3_000_000 + 1000 * number
                top1 = 0.72 + 0.02 * multiple + 0.005 * number + shift
                rows.append(
                    row(
                        **shared,
                        series=method,
                        label=f"{multiple}x ({method[0]}=1.5)",
                        multiply_adds=cost,
                        top1=top1,
                    )
                )
    return rows
