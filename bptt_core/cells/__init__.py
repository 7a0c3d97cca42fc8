"""The recurrent cells: their equations in NumPy, and one descriptor each.

`CELLS` holds the descriptors by name; see `descriptor.Cell` for the fields. The compiled kernels
are tested against the equations in these modules.
"""

from __future__ import annotations

from bptt_core.cells import gru, lstm, rnn
from bptt_core.cells.descriptor import Cell, Layer, State, Tape, uniform
from bptt_core.registry import Registry

__all__ = ["CELLS", "Cell", "Layer", "State", "Tape", "uniform"]

CELLS: Registry[Cell] = Registry("cell")
for _cell in (rnn.RNN_TANH, rnn.RNN_RELU, lstm.LSTM, gru.GRU):
    CELLS.register(_cell)
