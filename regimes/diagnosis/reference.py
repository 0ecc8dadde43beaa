"""The packaged reference: measured networks whose gains are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from regimes.diagnosis.measures import GAINS, MEASURES
from regimes.record.grid import load_netcdf

FILE = Path(__file__).parent / "reference" / "basic.nc"


def reference() -> pd.DataFrame:
    """Return the basic collection of the Model Diagnosis Dataset as a table, indexed by its settings.

    1,690 settings of ResNet-18 on CIFAR-10: 13 widths, 13 batch sizes, 10 shares of the data, means of five seeds, not
    pruned. From Zhou, Chen, Cao, Schürholt, Yang: "MD tree: a model-diagnostic tree grown on loss landscape", ICML
    2024, arXiv 2406.16988; MIT license, Copyright (c) 2024 Yefan, see ``reference/LICENSE``.

    ``gain_data`` is missing where all data were used, as nothing larger was measured. Runs of one's own are added with
    ``pandas.concat([reference(), mine])``.
    """
    data = load_netcdf(FILE)
    frame = data[[name for name in (*MEASURES, *GAINS) if name in data]].to_dataframe()
    frame = frame[[name for name in (*MEASURES, *GAINS) if name in data]]
    full = frame.index.get_level_values("data_fraction") == 1
    return frame.assign(gain_data=np.where(full, np.nan, frame["gain_data"]))
