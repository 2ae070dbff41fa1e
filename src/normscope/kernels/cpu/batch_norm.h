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
        vec<A> v[4];
        load_several<T, 4>(p + i, v);
        for (int u = 0; u < 4; u++) {
            vec<A> d = v[u] - c;
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
        }
        vec<A> v[4];
        load_several<T, 4>(p + i, v);
        for (int u = 0; u < 4; u++) v[u] = activate<ACT>(fma(v[u] - c.mean, c.scale, c.offset), slope);
        store_several<T, 4, STREAM>(y + i, v);
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
        vec<A> d[4], v[4];
        load_several<T, 4>(g + i, d);
        load_several<T, 4>(x + i, v);
        for (int u = 0; u < 4; u++) {
            read_back<ACT, FROM_OUTPUT, A>(v[u], d[u], c, slope, inverse, centred);
            s[u] += d[u];
            q[u] = fma(d[u], centred, q[u]);
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
        }
        vec<A> d[4], v[4];
        load_several<T, 4>(g + i, d);
        load_several<T, 4>(x + i, v);
        for (int u = 0; u < 4; u++) {
            read_back<ACT, FROM_OUTPUT, A>(v[u], d[u], c, slope, inverse, centred);
            v[u] = fma(centred, j.slant, fma(d[u], c.scale, j.level));
        }
        store_several<T, 4, STREAM>(out + i, v);
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

// The values of a tile's row, or of its constants; and back.
template <class T, int U, bool TAIL>
INLINE void row_of_tile(const T* p, long n, const vec<wide<T>>* fill, vec<wide<T>>* v) {
    if constexpr (TAIL) {
        v[0] = load_first(p, n, fill ? fill[0] : vec<wide<T>>{});
    } else {
        load_several<T, U>(p, v);
    }
}
template <class T, int U, bool TAIL>
INLINE void constants_of_tile(const wide<T>* p, long n, vec<wide<T>>* v) {
    if constexpr (TAIL) {
        v[0] = load_first(p, n, vec<wide<T>>{});
    } else {
        load_with<T, U>(p, v);
    }
}
template <class T, int U, bool TAIL, bool STREAM>
INLINE void put_row_of_tile(T* p, long n, const vec<wide<T>>* v) {
    if constexpr (TAIL) {
        store_first(p, n, v[0]);
    } else {
        store_several<T, U, STREAM && U == TILE>(p, v);
    }
}
template <class T, int U, bool TAIL>
INLINE void add_sums_of_tile(vec<wide<T>>* s, vec<wide<T>>* q, long n, double* first, double* second) {
    constexpr long L = lanes<wide<T>>;
    in_order<T, U>(s);
    in_order<T, U>(q);
    for (int u = 0; u < U; u++) {
        for (long i = 0; i < (TAIL ? n : L); i++) {
            first[u * L + i] += s[u][i];
            second[u * L + i] += q[u][i];
        }
    }
}
template <class T, int U>
INLINE void fetch_row(const T* p) {
    for (int u = 0; u < U; u++)
        if (u * lanes<wide<T>> * sizeof(T) % 64 == 0) __builtin_prefetch(p + u * lanes<wide<T>>, 0, 3);
}
template <class T, int U>
INLINE void fetch_row_for_writing(T* p) {
    for (int u = 0; u < U; u++)
        if (u * lanes<wide<T>> * sizeof(T) % 64 == 0) __builtin_prefetch(p + u * lanes<wide<T>>, 1, 3);
}

template <class T, int U, bool TAIL>
INLINE void moments_of_tile(const T* p, long stride, long rows, long n, const wide<T>* shift, double* sum,
                            double* squares) {
    using A = wide<T>;
    vec<A> c[U], s[U] = {}, q[U] = {};
    constants_of_tile<T, U, TAIL>(shift, n, c);
    for (long r = 0; r < rows; r++, p += stride) {
        if (!TAIL) fetch_row<T, U>(p + DEEP * stride);
        vec<A> v[U];
        row_of_tile<T, U, TAIL>(p, n, c, v);
        for (int u = 0; u < U; u++) {
            vec<A> d = v[u] - c[u];
            s[u] += d;
            q[u] = fma(d, d, q[u]);
        }
    }
    add_sums_of_tile<T, U, TAIL>(s, q, n, sum, squares);
}

template <class T, int ACT, bool STREAM, int U, bool TAIL>
INLINE void normalize_tile(const T* p, T* y, long stride, long rows, long n, const Columns<wide<T>>& k, long at,
                           wide<T> slope) {
    using A = wide<T>;
    vec<A> mean[U], scale[U], offset[U];
    constants_of_tile<T, U, TAIL>(k.mean + at, n, mean);
    constants_of_tile<T, U, TAIL>(k.scale + at, n, scale);
    constants_of_tile<T, U, TAIL>(k.offset + at, n, offset);
    for (long r = 0; r < rows; r++, p += stride, y += stride) {
        if (!TAIL && k.deep) fetch_row<T, U>(p + k.deep * stride);
        if (!TAIL && !STREAM) fetch_row_for_writing<T, U>(y + 4 * stride);
        vec<A> v[U];
        row_of_tile<T, U, TAIL>(p, n, mean, v);
        for (int u = 0; u < U; u++) v[u] = activate<ACT>(fma(v[u] - mean[u], scale[u], offset[u]), slope);
        put_row_of_tile<T, U, TAIL, STREAM>(y, n, v);
    }
}

template <class T, int ACT, bool FROM_OUTPUT, int U, bool TAIL>
INLINE void gradient_sums_of_tile(const T* x, const T* g, long stride, long rows, long n, const Columns<wide<T>>& k,
                                  long at, wide<T> slope, double* sum, double* along) {
    using A = wide<T>;
    const A inverse = A(1) / slope;
    vec<A> mean[U], scale[U], offset[U], s[U] = {}, q[U] = {}, centred;
    constants_of_tile<T, U, TAIL>(k.mean + at, n, mean);
    constants_of_tile<T, U, TAIL>(k.scale + at, n, scale);
    constants_of_tile<T, U, TAIL>(k.offset + at, n, offset);
    for (long r = 0; r < rows; r++, x += stride, g += stride) {
        if (!TAIL) {
            fetch_row<T, U>(x + DEEP * stride);
            fetch_row<T, U>(g + DEEP * stride);
        }
        vec<A> d[U], v[U];
        row_of_tile<T, U, TAIL>(g, n, nullptr, d);
        row_of_tile<T, U, TAIL>(x, n, mean, v);
        for (int u = 0; u < U; u++) {
            read_back<ACT, FROM_OUTPUT, A>(v[u], d[u], Constants<A>{mean[u], scale[u], offset[u]}, slope, inverse, centred);
            s[u] += d[u];
            q[u] = fma(d[u], centred, q[u]);
        }
    }
    add_sums_of_tile<T, U, TAIL>(s, q, n, sum, along);
}

template <class T, int ACT, bool FROM_OUTPUT, bool STREAM, int U, bool TAIL>
INLINE void gradient_of_tile(const T* x, const T* g, T* out, long stride, long rows, long n,
                             const Columns<wide<T>>& k, long at, wide<T> slope) {
    using A = wide<T>;
    const A inverse = A(1) / slope;
    vec<A> mean[U], scale[U], offset[U], slant[U], level[U], centred;
    constants_of_tile<T, U, TAIL>(k.mean + at, n, mean);
    constants_of_tile<T, U, TAIL>(k.scale + at, n, scale);
    constants_of_tile<T, U, TAIL>(k.offset + at, n, offset);
    constants_of_tile<T, U, TAIL>(k.slant + at, n, slant);
    constants_of_tile<T, U, TAIL>(k.level + at, n, level);
    for (long r = 0; r < rows; r++, x += stride, g += stride, out += stride) {
        if (!TAIL && k.deep) {
            fetch_row<T, U>(x + k.deep * stride);
            fetch_row<T, U>(g + k.deep * stride);
        }
        if (!TAIL && !STREAM) fetch_row_for_writing<T, U>(out + 4 * stride);
        vec<A> d[U], v[U];
        row_of_tile<T, U, TAIL>(g, n, nullptr, d);
        row_of_tile<T, U, TAIL>(x, n, mean, v);
        for (int u = 0; u < U; u++) {
            read_back<ACT, FROM_OUTPUT, A>(v[u], d[u], Constants<A>{mean[u], scale[u], offset[u]}, slope, inverse, centred);
            v[u] = fma(centred, slant[u], fma(d[u], scale[u], level[u]));
        }
        put_row_of_tile<T, U, TAIL, STREAM>(out, n, v);
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
