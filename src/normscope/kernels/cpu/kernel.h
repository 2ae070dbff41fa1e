#pragma once

#include "problem.h"

// Maps below this many positions are taken as columns, not as runs.
constexpr long SMALL_MAP = 64;

void run_forward(const Problem& p, int type, int act);
void run_backward(const Problem& p, int type, int act, bool from_output);
