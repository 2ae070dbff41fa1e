// From the sums of a channel to what its values are multiplied with and moved by: in double, once a channel.
#pragma once

#include "batch_norm.h"

// A shift this many variances (of the mean) off has cost digits: the channel is summed again, in double.
constexpr double FAR = 64;

template <class A>
struct Saved {
    A *mean, *low, *rstd, *scale, *offset, *var;
    Saved(void* data, long channels)
        : mean((A*)data), low(mean + channels), rstd(low + channels), scale(rstd + channels), offset(scale + channels),
          var(offset + channels) {}
};

// Walk the values of one channel in double, one after the other: for what the fast sums cannot hold. The mean in two
// steps, the second of what the first has left: equal values have themselves for a mean.
template <class T>
void exact_moments(const Problem& p, long c, double& mean, double& var) {
    const T* x = (const T*)p.x;
    const long step_sample = p.channels * p.positions;
    const long step = p.last ? p.channels : 1, start = p.last ? c : c * p.positions;
    const double n = double(p.samples) * double(p.positions);
    double sum = 0, squares = 0;
    for (long s = 0; s < p.samples; s++)
        for (long i = 0; i < p.positions; i++) sum += widen(x[s * step_sample + start + i * step]);
    const double near = sum / n;
    double rest = 0;
    for (long s = 0; s < p.samples; s++)
        for (long i = 0; i < p.positions; i++) rest += widen(x[s * step_sample + start + i * step]) - near;
    mean = near + rest / n;
    for (long s = 0; s < p.samples; s++) {
        for (long i = 0; i < p.positions; i++) {
            double d = widen(x[s * step_sample + start + i * step]) - mean;
            squares += d * d;
        }
    }
    var = squares / n;
}

// A constant near the mean of a channel, judged by its first values: the zero if that is near enough, since nothing is
// rounded where nothing is taken off; else one that the type of the values holds, which leaves values of one binade exact.
template <class T>
wide<T> shift_of(const T* p, long n, long step) {
    double sum = 0, squares = 0;
    for (long i = 0; i < n; i++) {
        const double v = widen(p[i * step]);
        sum += v;
        squares += v * v;
    }
    const double mean = sum / double(n);
    if (!(mean * mean > 0.8 * squares / double(n)) || !std::isfinite(wide<T>(mean))) return 0;
    return rounded<T>(mean);
}

template <class T>
void finish_forward(const Problem& p, long c, wide<T> shift, double sum, double squares) {
    using A = wide<T>;
    const Saved<A> saved(p.saved, p.channels);
    const double n = double(p.samples) * double(p.positions);
    const double rest = sum / n;
    double mean = double(shift) + rest, low, var = squares / n - rest * rest;
    A high = (A)mean;
    // Two-sum: what rounding took from the mean (for double; for float the difference is exact in double).
    if (sizeof(A) == 8) {
        double part = mean - double(shift);
        low = (double(shift) - (mean - part)) + (rest - part);
    } else {
        low = mean - double(high);
    }
    bool lost = rest * rest > FAR * var || !(var < 1e37) || (var < 1e-30 && p.eps < 1e-20);
    if (lost && !(rest == 0 && var == 0)) {
        exact_moments<T>(p, c, mean, var);
        high = (A)mean;
        low = sizeof(A) == 8 ? 0 : mean - double(high);
    }
    if (var < 0) var = 0;
    const double rstd = 1 / std::sqrt(var + p.eps), scale = p.weight.get(c, 1) * rstd;
    saved.mean[c] = high;
    saved.low[c] = std::isfinite(high) ? (A)low : A(0);
    saved.rstd[c] = (A)rstd;
    saved.scale[c] = (A)scale;
    saved.var[c] = (A)var;
    saved.offset[c] = (A)(p.bias.get(c, 0) - low * scale);
    if (p.running_mean.data) {
        const double m = p.running_mean.get(c, 0), v = p.running_var.get(c, 0);
        p.running_mean.set(c, m + (mean - m) * p.share);
        p.running_var.set(c, v + (var * (n / (n - 1)) - v) * p.share);
    }
}

template <class A, bool FROM_OUTPUT>
INLINE void constants_of(const Problem& p, long c, A& mean, A& scale, A& offset) {
    const Saved<A> saved(p.saved, p.channels);
    // From the output the very number that the forward added is taken off, or its rounding would be in all values alike.
    mean = FROM_OUTPUT ? saved.offset[c] : saved.mean[c];
    scale = saved.scale[c];
    offset = saved.offset[c];
}

template <class A, bool FROM_OUTPUT>
void finish_backward(const Problem& p, long c, double sum, double along, A& slant, A& level) {
    const Saved<A> saved(p.saved, p.channels);
    const double n = double(p.samples) * double(p.positions);
    const double rstd = saved.rstd[c], scale = saved.scale[c], weight = p.weight.get(c, 1);
    const double low = FROM_OUTPUT ? saved.low[c] * scale : saved.low[c];
    // Of the normalized values: `along` is of those times the deviation, or in the in-place mode times the weight.
    const double unit = FROM_OUTPUT ? 1 / weight : rstd;
    const double g_weight = (along - low * sum) * unit;
    const double tilt = -scale * g_weight * unit / n;
    slant = (A)tilt;
    level = (A)(-scale * sum / n - tilt * low);
    p.g_weight.set(c, g_weight);
    p.g_bias.set(c, sum);
}
