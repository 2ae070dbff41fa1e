// Layer, RMS, group and instance normalization, forward and backward: rows of values, each with statistics of its own.
//
//   xhat = (x - mean) * rstd,   y = xhat * gain + shift
//
// As a problem of batch normalization a row is a channel of one sample; so its statistics are taken and kept in the same
// way, right at any offset. Gain and shift are beside that: of a column (`span` 1: layer and RMS norm), or of `span`
// values in a row (group and instance norm, where a row is some channels of a sample).
#pragma once

#include "problem.h"

struct RowProblem : Problem {
    PerChannel gain, shift, g_gain, g_shift;
    long groups = 1;      // rows that differ in their gains: those of row r begin at (r % groups) * gains()
    long span = 1;        // values of a row that share a gain
    bool centred = true;  // else no mean is taken off: RMS norm

    long rows() const { return channels; }
    long size() const { return positions; }
    long gains() const { return positions / span; }
};

void run_rows_forward(const RowProblem& p, int type);
void run_rows_backward(const RowProblem& p, int type);
