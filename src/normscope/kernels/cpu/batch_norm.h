// Batch normalization in training, forward and backward, with its activation: the arithmetic of one stretch of memory.
//
//   z = (x - mean) * scale + offset,   y = act(z),   scale = weight * rstd,   offset = bias - low * scale
//
// The mean is a high and a low part: x - high is exact near the mean, where an offset would eat the digits. z is built
// from the same numbers by the same operations in the backward, so that the mask of the activation is the forward's,
// bit for bit, and none is stored.
#pragma once

#include "problem.h"

constexpr int TILE = NORMSCOPE_BYTES == 32 ? 2 : 4;  // vectors side by side: what the registers hold
constexpr long DEEP = 8;                             // rows that a tile's inputs are fetched ahead
constexpr long AHEAD = 512;                          // bytes that outputs are fetched for writing ahead

template <class A>
struct Constants {
    vec<A> mean, scale, offset;
};

template <int ACT, class V, class A>
INLINE V activate(V z, A slope) {
    if (ACT == RELU) return z <= A(0) ? V{} : z;  // so that NaN stays NaN
    if (ACT == LEAKY_RELU) return z > A(0) ? z : z * slope;
    return z;
}
template <int ACT, class V, class A>
INLINE V activation_gradient(V z, V g, A slope) {
    if (ACT == RELU) return z <= A(0) ? V{} : g;
    if (ACT == LEAKY_RELU) return z > A(0) ? g : g * slope;
    return g;
}

// What the backward needs of one vector: the input beyond the mean, and the cotangent before the activation. In the
// in-place mode, the normalized value before its scale (times weight), taken back from the output.
template <int ACT, bool FROM_OUTPUT, class A>
INLINE void read_back(vec<A> x, vec<A>& g, const Constants<A>& c, A slope, A inverse_slope, vec<A>& centred) {
    if (FROM_OUTPUT) {
        vec<A> z = ACT == LEAKY_RELU ? (x > A(0) ? x : x * inverse_slope) : x;
        g = activation_gradient<ACT>(x, g, slope);
        centred = z - c.mean;  // here the offset
    } else {
        centred = x - c.mean;
        g = activation_gradient<ACT>(fma(centred, c.scale, c.offset), g, slope);
    }
}

// The processor's own prefetcher stops at the end of a page: begin the next run for it, `jump` elements on.
template <class T>
INLINE void fetch_start(const T* p) {
    for (int line = 0; line < 4; line++) __builtin_prefetch((const char*)p + 64 * line, 0, 3);
}

// Where a pass over a run is followed by: `x` elements on, what the next block's first pass will read; `run` elements
// on, the run that this pass goes to next. 0 for nothing.
struct Ahead {
    long x, run;
};

// ------------------------------------------------------------------------------------------ runs of one channel

template <class T>
void moments_of_run(const T* p, long n, long jump, wide<T> shift, vec<wide<T>>& sum, vec<wide<T>>& squares) {
    using A = wide<T>;
    constexpr long L = lanes<A>;
    vec<A> c = spread<A>(shift), s[4] = {}, q[4] = {};
    long i = 0;
    fetch_start(p + jump);
    for (; i + 4 * L <= n; i += 4 * L) {
        for (int u = 0; u < 4; u++) {
            vec<A> d = load(p + i + u * L) - c;
            s[u] += d;
            q[u] = fma(d, d, q[u]);
        }
    }
    for (; i + L <= n; i += L) {
        vec<A> d = load(p + i) - c;
        s[0] += d;
        q[0] = fma(d, d, q[0]);
    }
    if (i < n) {
        vec<A> d = load_first(p + i, n - i, c) - c;
        s[1] += d;
        q[1] = fma(d, d, q[1]);
    }
    sum += (s[0] + s[1]) + (s[2] + s[3]);
    squares += (q[0] + q[1]) + (q[2] + q[3]);
}

template <class T, int ACT, bool STREAM>
void normalize_run(const T* p, T* y, long n, Ahead next, const Constants<wide<T>>& k, wide<T> slope) {
    using A = wide<T>;
    constexpr long L = lanes<A>;
    const Constants<A> c = k;
    long i = 0;
    const long ahead = AHEAD / long(sizeof(T));
    for (; i + 4 * L <= n; i += 4 * L) {
        const long on = i + ahead < n ? ahead : next.run - n + ahead;
        for (int u = 0; u < 4; u++) {
            if (u * L * sizeof(T) % 64 == 0) {
                if (!STREAM) __builtin_prefetch(y + i + u * L + on, 1, 3);
                if (next.x) __builtin_prefetch(p + i + u * L + next.x, 0, 2);
            }
            put<STREAM>(y + i + u * L, activate<ACT>(fma(load(p + i + u * L) - c.mean, c.scale, c.offset), slope));
        }
    }
    for (; i + L <= n; i += L) {
        store(y + i, activate<ACT>(fma(load(p + i) - c.mean, c.scale, c.offset), slope));
    }
    if (i < n) {
        vec<A> x = load_first(p + i, n - i, c.mean);
        store_first(y + i, n - i, activate<ACT>(fma(x - c.mean, c.scale, c.offset), slope));
    }
}

template <class T, int ACT, bool FROM_OUTPUT>
void gradient_sums_of_run(const T* x, const T* g, long n, long jump, const Constants<wide<T>>& k, wide<T> slope,
                          vec<wide<T>>& sum, vec<wide<T>>& along) {
    using A = wide<T>;
    constexpr long L = lanes<A>;
    const Constants<A> c = k;
    const A inverse = A(1) / slope;
    vec<A> s[4] = {}, q[4] = {}, centred;
    long i = 0;
    fetch_start(x + jump);
    fetch_start(g + jump);
    for (; i + 4 * L <= n; i += 4 * L) {
        for (int u = 0; u < 4; u++) {
            vec<A> d = load(g + i + u * L);
            read_back<ACT, FROM_OUTPUT, A>(load(x + i + u * L), d, c, slope, inverse, centred);
            s[u] += d;
            q[u] = fma(d, centred, q[u]);
        }
    }
    for (; i + L <= n; i += L) {
        vec<A> d = load(g + i);
        read_back<ACT, FROM_OUTPUT, A>(load(x + i), d, c, slope, inverse, centred);
        s[0] += d;
        q[0] = fma(d, centred, q[0]);
    }
    if (i < n) {
        vec<A> d = load_first(g + i, n - i, vec<A>{});
        read_back<ACT, FROM_OUTPUT, A>(load_first(x + i, n - i, c.mean), d, c, slope, inverse, centred);
        s[1] += d;
        q[1] = fma(d, centred, q[1]);
    }
    sum += (s[0] + s[1]) + (s[2] + s[3]);
    along += (q[0] + q[1]) + (q[2] + q[3]);
}

// The cotangent of x is scale * g + slant * centred + level.
template <class A>
struct Projection {
    vec<A> slant, level;
};

template <class T, int ACT, bool FROM_OUTPUT, bool STREAM>
void gradient_of_run(const T* x, const T* g, T* out, long n, Ahead next, const Constants<wide<T>>& k,
                     const Projection<wide<T>>& projection, wide<T> slope) {
    using A = wide<T>;
    constexpr long L = lanes<A>;
    const Constants<A> c = k;
    const Projection<A> j = projection;
    const A inverse = A(1) / slope;
    vec<A> centred;
    long i = 0;
    const long ahead = AHEAD / long(sizeof(T));
    for (; i + 4 * L <= n; i += 4 * L) {
        const long on = i + ahead < n ? ahead : next.run - n + ahead;
        for (int u = 0; u < 4; u++) {
            if (u * L * sizeof(T) % 64 == 0) {
                if (!STREAM) __builtin_prefetch(out + i + u * L + on, 1, 3);
                if (next.x) {
                    __builtin_prefetch(x + i + u * L + next.x, 0, 2);
                    __builtin_prefetch(g + i + u * L + next.x, 0, 2);
                }
            }
            vec<A> d = load(g + i + u * L);
            read_back<ACT, FROM_OUTPUT, A>(load(x + i + u * L), d, c, slope, inverse, centred);
            put<STREAM>(out + i + u * L, fma(centred, j.slant, fma(d, c.scale, j.level)));
        }
    }
    for (; i + L <= n; i += L) {
        vec<A> d = load(g + i);
        read_back<ACT, FROM_OUTPUT, A>(load(x + i), d, c, slope, inverse, centred);
        store(out + i, fma(centred, j.slant, fma(d, c.scale, j.level)));
    }
    if (i < n) {
        vec<A> d = load_first(g + i, n - i, vec<A>{});
        read_back<ACT, FROM_OUTPUT, A>(load_first(x + i, n - i, c.mean), d, c, slope, inverse, centred);
        store_first(out + i, n - i, fma(centred, j.slant, fma(d, c.scale, j.level)));
    }
}

// ------------------------------------------------------------------- tiles of columns: U vectors side by side, rows deep
// A tile is `stride` apart from row to row. TAIL: one vector of which only the first n lanes are there.

// One value a column, as arrays: of a whole row of memory, or of the columns of a block.
template <class A>
struct Columns {
    A *mean, *scale, *offset, *slant, *level;
    long deep = 0;  // rows ahead that the second pass fetches: none where the first has left them in the cache
};

template <class T, int U, bool TAIL>
INLINE void moments_of_tile(const T* p, long stride, long rows, long n, const wide<T>* shift, double* sum,
                            double* squares) {
    using A = wide<T>;
    constexpr long L = lanes<A>;
    vec<A> c[U], s[U] = {}, q[U] = {};
    for (int u = 0; u < U; u++) c[u] = TAIL ? load_first(shift, n, vec<A>{}) : load(shift + u * L);
    for (long r = 0; r < rows; r++, p += stride) {
        for (int u = 0; u < U; u++) {
            if (!TAIL && u * L * sizeof(T) % 64 == 0) __builtin_prefetch(p + DEEP * stride + u * L, 0, 3);
            vec<A> d = (TAIL ? load_first(p, n, c[u]) : load(p + u * L)) - c[u];
            s[u] += d;
            q[u] = fma(d, d, q[u]);
        }
    }
    for (int u = 0; u < U; u++) {
        for (long i = 0; i < (TAIL ? n : L); i++) {
            sum[u * L + i] += s[u][i];
            squares[u * L + i] += q[u][i];
        }
    }
}

template <class T, int ACT, bool STREAM, int U, bool TAIL>
INLINE void normalize_tile(const T* p, T* y, long stride, long rows, long n, const Columns<wide<T>>& k, long at,
                           wide<T> slope) {
    using A = wide<T>;
    constexpr long L = lanes<A>;
    Constants<A> c[U];
    for (int u = 0; u < U; u++) {
        auto take = [&](const A* v) { return TAIL ? load_first(v + at, n, vec<A>{}) : load(v + at + u * L); };
        c[u] = {take(k.mean), take(k.scale), take(k.offset)};
    }
    for (long r = 0; r < rows; r++, p += stride, y += stride) {
        for (int u = 0; u < U; u++) {
            if (!TAIL && k.deep && u * L * sizeof(T) % 64 == 0) __builtin_prefetch(p + k.deep * stride + u * L, 0, 3);
            if (!TAIL && !STREAM && u * L * sizeof(T) % 64 == 0) __builtin_prefetch(y + 4 * stride + u * L, 1, 3);
            vec<A> x = TAIL ? load_first(p, n, c[u].mean) : load(p + u * L);
            vec<A> z = activate<ACT>(fma(x - c[u].mean, c[u].scale, c[u].offset), slope);
            if (TAIL) {
                store_first(y, n, z);
            } else {
                put<STREAM && U == TILE>(y + u * L, z);
            }
        }
    }
}

template <class T, int ACT, bool FROM_OUTPUT, int U, bool TAIL>
INLINE void gradient_sums_of_tile(const T* x, const T* g, long stride, long rows, long n, const Columns<wide<T>>& k,
                                  long at, wide<T> slope, double* sum, double* along) {
    using A = wide<T>;
    constexpr long L = lanes<A>;
    const A inverse = A(1) / slope;
    Constants<A> c[U];
    vec<A> s[U] = {}, q[U] = {}, centred;
    for (int u = 0; u < U; u++) {
        auto take = [&](const A* v) { return TAIL ? load_first(v + at, n, vec<A>{}) : load(v + at + u * L); };
        c[u] = {take(k.mean), take(k.scale), take(k.offset)};
    }
    for (long r = 0; r < rows; r++, x += stride, g += stride) {
        for (int u = 0; u < U; u++) {
            if (!TAIL && u * L * sizeof(T) % 64 == 0) {
                __builtin_prefetch(x + DEEP * stride + u * L, 0, 3);
                __builtin_prefetch(g + DEEP * stride + u * L, 0, 3);
            }
            vec<A> d = TAIL ? load_first(g, n, vec<A>{}) : load(g + u * L);
            vec<A> v = TAIL ? load_first(x, n, c[u].mean) : load(x + u * L);
            read_back<ACT, FROM_OUTPUT, A>(v, d, c[u], slope, inverse, centred);
            s[u] += d;
            q[u] = fma(d, centred, q[u]);
        }
    }
    for (int u = 0; u < U; u++) {
        for (long i = 0; i < (TAIL ? n : L); i++) {
            sum[u * L + i] += s[u][i];
            along[u * L + i] += q[u][i];
        }
    }
}

template <class T, int ACT, bool FROM_OUTPUT, bool STREAM, int U, bool TAIL>
INLINE void gradient_of_tile(const T* x, const T* g, T* out, long stride, long rows, long n,
                             const Columns<wide<T>>& k, long at, wide<T> slope) {
    using A = wide<T>;
    constexpr long L = lanes<A>;
    const A inverse = A(1) / slope;
    Constants<A> c[U];
    Projection<A> j[U];
    vec<A> centred;
    for (int u = 0; u < U; u++) {
        auto take = [&](const A* v) { return TAIL ? load_first(v + at, n, vec<A>{}) : load(v + at + u * L); };
        c[u] = {take(k.mean), take(k.scale), take(k.offset)};
        j[u] = {take(k.slant), take(k.level)};
    }
    for (long r = 0; r < rows; r++, x += stride, g += stride, out += stride) {
        for (int u = 0; u < U; u++) {
            if (!TAIL && k.deep && u * L * sizeof(T) % 64 == 0) {
                __builtin_prefetch(x + k.deep * stride + u * L, 0, 3);
                __builtin_prefetch(g + k.deep * stride + u * L, 0, 3);
            }
            if (!TAIL && !STREAM && u * L * sizeof(T) % 64 == 0) __builtin_prefetch(out + 4 * stride + u * L, 1, 3);
            vec<A> d = TAIL ? load_first(g, n, vec<A>{}) : load(g + u * L);
            vec<A> v = TAIL ? load_first(x, n, c[u].mean) : load(x + u * L);
            read_back<ACT, FROM_OUTPUT, A>(v, d, c[u], slope, inverse, centred);
            vec<A> z = fma(centred, j[u].slant, fma(d, c[u].scale, j[u].level));
            if (TAIL) {
                store_first(out, n, z);
            } else {
                put<STREAM && U == TILE>(out + u * L, z);
            }
        }
    }
}

// Call `tile` for all columns from `from` to `to`: full tiles, then single vectors, then what is left of one.
template <class A, class Full, class Single, class Rest>
INLINE void over_tiles(long from, long to, Full&& full, Single&& single, Rest&& rest) {
    constexpr long L = lanes<A>;
    long k = from;
    for (; k + TILE * L <= to; k += TILE * L) full(k);
    for (; k + L <= to; k += L) single(k);
    if (k < to) rest(k, to - k);
}
